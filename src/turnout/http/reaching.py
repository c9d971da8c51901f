"""The connections to a configured endpoint: from its URL to a pool that dials as the URL asks for."""

from __future__ import annotations

from urllib.parse import urlsplit

from turnout.core.options import Endpoint, Pool
from turnout.http.client import EndpointPool
from turnout.http.dialling import dialler

_HTTP_PORT, _HTTPS_PORT = 80, 443


def engine_pool(endpoint: Endpoint, pool: Pool, connect_timeout_s: float) -> EndpointPool:
    """Return a pool of connections to an endpoint."""
    url = urlsplit(endpoint.url)
    secure = url.scheme == "https"
    host, port = url.hostname or "", url.port or (_HTTPS_PORT if secure else _HTTP_PORT)
    public_only = bool(endpoint.provider) and not endpoint.private
    dial = dialler(host, port, secure=secure, ca_file=endpoint.tls_ca, public_only=public_only)
    return EndpointPool(host, port, pool, connect_timeout_s, dial)

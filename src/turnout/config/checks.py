"""Rules that span more than one field. Each names the field to change, the value seen and what was expected."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urlsplit

from turnout.config.errors import HIDDEN, Problem, shown
from turnout.config.schema import Config

Whereabouts = Callable[[str], str]
PORT_MAX = 65_535


def cross_checks(config: Config, where: Whereabouts) -> list[Problem]:
    """Check a configuration whose every field is valid by itself."""
    found = [
        *_listeners(config),
        *_addresses(config),
        *_orders(config),
        *_endpoints(config),
        *_models(config),
        *_keys(config),
        *_coordinator(config),
        *_selection(config),
    ]
    return [Problem(where(key), key, seen, expected) for key, seen, expected in found]


Finding = tuple[str, str, str]


def _listeners(config: Config) -> Iterator[Finding]:
    server = config.server
    if host_port(server.listen) is None:
        yield "server.listen", shown("", server.listen), "host:port, with IPv6 hosts in brackets, port 0 to 65535"
    elif config.auth.mode == "open" and not is_loopback(server.listen):
        expected = f"keys while server.listen is {server.listen}; open needs a loopback address such as 127.0.0.1 (K9)"
        yield "auth.mode", shown("", config.auth.mode), expected
    if server.admin_listen and host_port(server.admin_listen) is None:
        yield "server.admin_listen", shown("", server.admin_listen), 'host:port, or "" for no admin listener'
    elif server.admin_listen == server.listen and not server.listen.endswith(":0"):
        yield "server.admin_listen", shown("", server.admin_listen), "another address than server.listen"
    if config.ledger.url and not config.ledger.url.startswith(("sqlite:///", "postgresql://", "postgres://")):
        yield "ledger.url", shown("", config.ledger.url), 'sqlite:///file, postgresql://…, or "" for no ledger'


def _addresses(config: Config) -> Iterator[Finding]:
    for number, one in enumerate(config.server.uncapped_addresses):
        try:
            ipaddress.ip_network(one, strict=False)
        except ValueError:
            yield (
                f"server.uncapped_addresses[{number}]",
                shown("", one),
                "an IP address or a network such as 10.0.0.0/8",
            )


def _orders(config: Config) -> Iterator[Finding]:
    """Pairs where one bound only makes sense above the other."""
    server, breaker, retry, timeout = config.server, config.breaker, config.retry, config.timeout
    pairs = [
        ("server.head_max_bytes", server.head_max_bytes, "request_line_max_bytes", server.request_line_max_bytes),
        ("breaker.open_max_s", breaker.open_max_s, "open_s", breaker.open_s),
        ("retry.attempts", retry.attempts, "attempts_per_model", retry.attempts_per_model),
        ("timeout.first_token_s", timeout.first_token_s, "first_token_failover_s", timeout.first_token_failover_s),
    ]
    for key, value, other, least in pairs:
        if value < least:
            yield key, shown(key, value), f"at least {key.partition('.')[0]}.{other} = {least}"


def _endpoints(config: Config) -> Iterator[Finding]:
    if not config.endpoint and not config.coordinator.enabled:
        yield "endpoint", "", "at least one [[endpoint]] table with name, url and models"
    yield from _repeated("endpoint", "name", (endpoint.name for endpoint in config.endpoint))
    for index, endpoint in enumerate(config.endpoint):
        path = f"endpoint[{index}]"
        if not _is_base_url(endpoint.url):
            yield (
                f"{path}.url",
                shown("", endpoint.url),
                "http://host:port or https://host:port, with a port from 1 to 65535",
            )
        if endpoint.tls_ca and (wrong := _unusable_ca(endpoint.tls_ca)):
            yield f"{path}.tls_ca", shown("", endpoint.tls_ca), f"a file of certificates in PEM form ({wrong})"
        if endpoint.kv_ports[0] > endpoint.kv_ports[1]:
            yield f"{path}.kv_ports", shown("", endpoint.kv_ports), "the first port, then the last"
        if endpoint.load_header and endpoint.kv_ranks > 1:
            yield f"{path}.load_header", "true", f"false with {path}.kv_ranks > 1: it tells of one rank's queue alone"
        for name in endpoint.served_as:
            if name not in endpoint.models:
                yield f"{path}.served_as", shown("", name), f"only names listed in {path}.models"


def _models(config: Config) -> Iterator[Finding]:
    ids = {model.id for model in config.model} | {name for endpoint in config.endpoint for name in endpoint.models}
    yield from _repeated("model", "id", (model.id for model in config.model))
    owner: dict[str, str] = {}
    for index, model in enumerate(config.model):
        for position, alias in enumerate(model.aliases):
            key = f"model[{index}].aliases[{position}]"
            if alias in ids:
                yield key, shown("", alias), "a name that is no model id (M2)"
            elif alias.startswith("auto"):
                yield key, shown("", alias), "a name that does not start with auto, which asks for selection (M2)"
            elif alias in owner:
                yield key, shown("", alias), f"a unique alias; {owner[alias]} has the same (M2)"
            owner.setdefault(alias, key)
    default = config.models.default
    if default and default not in ids and default not in owner:
        yield (
            "models.default",
            shown("", default),
            "a known model id or alias: " + ", ".join(sorted(ids | owner.keys())),
        )


def _keys(config: Config) -> Iterator[Finding]:
    if config.auth.mode == "keys" and not config.key:
        expected = 'at least one [[key]] table (turnout keys new prints one), or auth.mode = "open" on loopback'
        yield "key", "", expected
    yield from _repeated("key", "name", (key.name for key in config.key))
    yield from _repeated("key", "digest", (key.digest for key in config.key))
    for index, key in enumerate(config.key):
        for position, pattern in enumerate(key.models):
            if "*" in pattern[:-1]:
                yield f"key[{index}].models[{position}]", shown("", pattern), "an exact id, prefix* or * (K7)"
        if key.expires_at is not None and not _is_instant(key.expires_at):
            expected = "an ISO 8601 instant with offset, such as 2027-01-31T00:00:00+00:00"
            yield f"key[{index}].expires_at", shown("", key.expires_at), expected
        if key.budget_usd is not None and not config.ledger.url:
            yield f"key[{index}].budget_usd", shown("", key.budget_usd), "a ledger.url: it keeps what was spent"
        if key.budget_days > config.ledger.hourly_days:
            expected = f"at most ledger.hourly_days, {config.ledger.hourly_days}: older sums are deleted"
            yield f"key[{index}].budget_days", shown("", key.budget_days), expected


def _coordinator(config: Config) -> Iterator[Finding]:
    door = config.coordinator
    address = door.bind.removeprefix("tcp://").replace(":*", ":0")
    if host_port(address) is None:
        yield "coordinator.bind", shown("", door.bind), "tcp://address:port, port 0 to 65535 or *"
    elif not is_loopback(address) and not door.allow_remote:
        expected = "a loopback address, unless coordinator.allow_remote = true"
        yield "coordinator.bind", shown("", door.bind), expected
    if door.curve_clients and not door.curve_secret_file:
        yield "coordinator.curve_secret_file", shown("", ""), "a file, since coordinator.curve_clients names keys"
    if door.deterministic and not door.expected_engines:
        yield "coordinator.expected_engines", shown("", 0), "at least 1 while coordinator.deterministic is true"
    if door.model and door.tokenizer == "none":
        expected = "bytes or hf:directory while coordinator.model lets HTTP clients in"
        yield "coordinator.tokenizer", shown("", door.tokenizer), expected


def _selection(config: Config) -> Iterator[Finding]:
    selection = config.selection
    ids = {model.id for model in config.model}.union(*(endpoint.models for endpoint in config.endpoint))
    if selection.default_model and selection.default_model not in ids:
        yield "selection.default_model", shown("", selection.default_model), "the id of a model that is served"
    for name, preset in selection.presets.items():
        if preset.alpha + preset.speed_weight > 1:
            seen = f"{preset.alpha:g} + {preset.speed_weight:g}"
            yield f"selection.presets.{name}", shown("", seen), "alpha + speed_weight of at most 1"
    for index, key in enumerate(config.key):
        for position, permission in enumerate(key.permissions):
            kind, equals, most = permission.partition("=")
            if kind == "response_cache" and (not equals or most not in ("off", "exact", "semantic")):
                expected = "response_cache=off, response_cache=exact or response_cache=semantic"
                yield f"key[{index}].permissions[{position}]", shown("", permission), expected


def _repeated(table: str, field: str, values: Iterable[str]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        key = f"{table}[{index}].{field}"
        if value in first:
            seen = HIDDEN if field == "digest" else shown("", value)
            yield key, seen, f"a unique {field}; {table}[{first[value]}] has the same"
        first.setdefault(value, index)


def host_port(address: str) -> tuple[str, int] | None:
    """Split `host:port` (IPv6 in brackets); None when it is no such address."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > len(str(PORT_MAX)) or int(port) > PORT_MAX:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        return (host, int(port)) if _ip(host) is not None else None
    if not host or any(letter in ":/[]@ \t" for letter in host):
        return None
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Say whether a listener on this `host:port` can be reached from this machine only."""
    split = host_port(address)
    if split is None:
        return False
    ip = _ip(split[0])
    return split[0] == "localhost" if ip is None else ip.is_loopback


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_base_url(url: str) -> bool:
    try:
        split = host_port(urlsplit(url).netloc)
    except ValueError:
        return False
    return split is not None and split[1] > 0


def _unusable_ca(file: str) -> str:
    """Say why nobody can be trusted by this file; "" when it can be used."""
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _is_instant(text: str) -> bool:
    try:
        return dt.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False

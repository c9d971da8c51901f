"""Who is asking: API keys as a snapshot of digests (request-path §5). Identity fails closed."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

from turnout.core.options import Key
from turnout.core.types import Refusal

_KEY_MAX_BYTES: Final = 256
_UNKNOWN_DIGEST: Final = "0" * 64


class Principal:
    """A tenant with one of its keys; `key_id` "" is the anonymous principal. Never changed."""

    __slots__ = (
        "budget_days",
        "budget_nusd",
        "ceiling_in",
        "ceiling_out",
        "key_id",
        "models",
        "permissions",
        "tenant",
    )

    def __init__(
        self,
        tenant: str,
        key_id: str,
        models: tuple[str, ...] = ("*",),
        permissions: tuple[str, ...] = (),
        ceiling_in: int | None = None,
        ceiling_out: int | None = None,
        budget_nusd: int | None = None,
        budget_days: int = 30,
    ) -> None:
        self.tenant: Final = tenant
        self.key_id: Final = key_id
        self.models: Final = models
        self.permissions: Final = permissions
        self.ceiling_in: Final = ceiling_in
        self.ceiling_out: Final = ceiling_out
        """Most that a model chosen for it may cost, micro-USD per 1M tokens of input and output; None is no limit."""
        self.budget_nusd: Final = budget_nusd
        self.budget_days: Final = budget_days

    @property
    def has_ceiling(self) -> bool:
        """Tell whether prices matter to what may be chosen."""
        return self.ceiling_in is not None or self.ceiling_out is not None

    def may_use(self, model: str) -> bool:
        """Match the concrete id against exact ids, `prefix*` and `*` (K7)."""
        for pattern in self.models:
            if pattern == "*" or pattern == model or (pattern.endswith("*") and model.startswith(pattern[:-1])):  # noqa: PLR1714
                return True
        return False


ANONYMOUS: Final = Principal("anonymous", "")
INVALID_KEY: Final = Refusal(
    401,
    "invalid_api_key",
    "No valid API key was given. Expected a known key as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
    type="authentication_error",
    headers=((b"www-authenticate", b"Bearer"),),
)


class Principals:
    """The keys of one configuration snapshot."""

    def __init__(self, keys: Iterable[Key], *, open_mode: bool, utc_s: Callable[[], float]) -> None:
        self._utc_s = utc_s
        self._open = open_mode
        self.expiring = False
        self.budget_days = 0
        """How far the budgets of these keys look back; 0: none has one."""
        self._by_digest: dict[str, tuple[str, Key, Principal, float]] = {}
        for key in keys:
            digest = key.digest.removeprefix("sha256:")
            expires = datetime.fromisoformat(key.expires_at).timestamp() if key.expires_at else float("inf")
            self.expiring = self.expiring or key.expires_at is not None
            if key.budget_usd is not None:
                self.budget_days = max(self.budget_days, key.budget_days)
            self._by_digest[digest] = (
                digest,
                key,
                Principal(
                    key.tenant,
                    key.name,
                    tuple(key.models),
                    tuple(key.permissions),
                    _micro(key.max_input_usd_per_1m),
                    _micro(key.max_output_usd_per_1m),
                    None if key.budget_usd is None else round(key.budget_usd * 1_000_000_000),
                    key.budget_days,
                ),
                expires,
            )

    def identify(self, carriers: tuple[bytes, ...]) -> Principal | Refusal:
        """Return who presents these keys.

        Unknown and revoked keys take the same way; what is known is told only after a full key was proved (K4, K6).

        Args:
            carriers: the keys of the request, one per header that carried one.

        """
        found: list[Principal | Refusal] = []
        for token in carriers:
            result = self._lookup(token)
            if result is not None:
                found.append(result)
        if not found:
            return ANONYMOUS if self._open else INVALID_KEY
        first = found[0]
        for other in found[1:]:
            if type(other) is not type(first) or (
                isinstance(other, Principal) and isinstance(first, Principal) and other.tenant != first.tenant
            ):
                return INVALID_KEY
        return first

    def _lookup(self, token: bytes) -> Principal | Refusal | None:
        digest = hashlib.sha256(token).hexdigest()
        entry = self._by_digest.get(digest)
        stored = entry[0] if entry is not None else _UNKNOWN_DIGEST
        if not hmac.compare_digest(stored, digest) or entry is None or len(token) > _KEY_MAX_BYTES:
            return None
        _, key, principal, expires = entry
        if key.state == "active" and expires > self._utc_s():
            return principal
        code = {"revoked": "key_revoked", "inactive": "key_inactive"}.get(key.state, "key_expired")
        return Refusal(403, code, f"This API key is {code.removeprefix('key_')}.", type="permission_error")


def _micro(usd: float | None) -> int | None:
    return None if usd is None else round(usd * 1_000_000)


def carriers(headers: dict[bytes, bytes]) -> tuple[bytes, ...]:
    """Return the keys that a head carries: bearer token and x-api-key; never from the query (K1)."""
    found = []
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(b" ")
        token = token.strip(b" \t")
        if scheme.lower() == b"bearer" and token:
            found.append(token)
    api_key = headers.get(b"x-api-key")
    if api_key:
        found.append(api_key)
    return tuple(found)

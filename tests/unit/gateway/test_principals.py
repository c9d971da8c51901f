"""Keys as a snapshot of digests (request-path §5): who is who, and what is told to whom."""

from __future__ import annotations

import hashlib

import pytest

from turnout.core.options import Key
from turnout.core.types import Refusal
from turnout.gateway.principals import ANONYMOUS, INVALID_KEY, Principal, Principals, carriers

NOW_S = 1_700_000_000.0


def key(name: str, secret: str, tenant: str = "t1", **members: object) -> Key:
    digest = "sha256:" + hashlib.sha256(secret.encode()).hexdigest()
    return Key(name=name, tenant=tenant, digest=digest, **members)  # type: ignore[arg-type]


KEYS = [
    key("one", "secret-one"), key("same-tenant", "secret-same"), key("other", "secret-other", "t2"),
    key("revoked", "secret-revoked", state="revoked"), key("inactive", "secret-inactive", state="inactive"),
    key("past", "secret-past", expires_at="2023-11-14T22:13:19+00:00"), key("future", "secret-future", expires_at="2023-11-14T22:13:21+00:00"),
]  # fmt: skip


def who(*tokens: str | bytes, open_mode: bool = False) -> Principal | Refusal:
    snapshot = Principals(KEYS, open_mode=open_mode, utc_s=lambda: NOW_S)
    return snapshot.identify(tuple(t.encode() if isinstance(t, str) else t for t in tokens))


def test_a_known_key_is_its_tenant() -> None:
    assert isinstance(one := who("secret-one"), Principal)
    assert (one.tenant, one.key_id) == ("t1", "one")


@pytest.mark.parametrize("token", ["", "secret-on", "secret-one ", "Secret-one", "x" * 300, b"\xff\xfe", "' OR 1=1 --"])
def test_K5_everything_else_gets_the_same_answer(token: str | bytes) -> None:
    assert who(token) is INVALID_KEY
    assert who() is INVALID_KEY


@pytest.mark.parametrize(
    ("tokens", "key_id"),
    [
        (("secret-one", "secret-one"), "one"),
        (("secret-one", "secret-same"), "one"),
        (("unknown", "secret-other"), "other"),
        (("secret-other", "unknown"), "other"),
    ],
)
def test_K2_two_carriers_of_one_tenant_or_with_one_known_key(tokens: tuple[str, ...], key_id: str) -> None:
    found = who(*tokens)
    assert isinstance(found, Principal)
    assert found.key_id == key_id


def test_K2_known_keys_of_two_tenants_are_nobody() -> None:
    assert who("secret-one", "secret-other") is INVALID_KEY


@pytest.mark.parametrize(
    ("secret", "code"),
    [("secret-revoked", "key_revoked"), ("secret-inactive", "key_inactive"), ("secret-past", "key_expired")],
)
@pytest.mark.parametrize("open_mode", [False, True])
def test_K6_K9_a_proven_key_that_may_not_is_told_why(secret: str, code: str, open_mode: bool) -> None:  # noqa: FBT001
    refusal = who(secret, open_mode=open_mode)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code, refusal.type) == (403, code, "permission_error")


def test_a_key_expires_at_its_instant() -> None:
    times = iter([NOW_S, NOW_S + 1.0])
    snapshot = Principals(KEYS, open_mode=False, utc_s=lambda: next(times))
    assert snapshot.expiring
    assert isinstance(snapshot.identify((b"secret-future",)), Principal)
    assert isinstance(snapshot.identify((b"secret-future",)), Refusal)


@pytest.mark.parametrize("tokens", [(), ("unknown",), ("",)])
def test_K9_open_mode_serves_strangers_as_anonymous(tokens: tuple[str, ...]) -> None:
    assert who(*tokens, open_mode=True) is ANONYMOUS


@pytest.mark.parametrize(
    ("patterns", "model", "allowed"),
    [
        (("*",), "any/thing", True), (("m",), "m", True), (("m",), "m2", False), (("m*",), "m2", True), (("org/*",), "org/x", True),
        (("org/*",), "org", False), (("a", "b*"), "bc", True), ((), "m", False), (("m",), "M", False), (("*x",), "x", False), (("**",), "*y", True),
    ],
)  # fmt: skip
def test_K7_model_lists_hold_ids_prefixes_and_the_star(patterns: tuple[str, ...], model: str, allowed: bool) -> None:  # noqa: FBT001
    assert Principal("t", "k", patterns).may_use(model) is allowed


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({b"authorization": b"Bearer k"}, (b"k",)), ({b"authorization": b"bEaReR  k "}, (b"k",)), ({b"x-api-key": b"k"}, (b"k",)),
        ({b"authorization": b"Bearer k", b"x-api-key": b"l"}, (b"k", b"l")), ({b"authorization": b"Basic k"}, ()), ({b"authorization": b"Bearer"}, ()),
        ({b"authorization": b"k"}, ()), ({b"x-api-key": b""}, ()), ({b"x-goog-api-key": b"k"}, ()), ({b"cookie": b"key=k"}, ()), ({}, ()),
    ],
)  # fmt: skip
def test_K1_a_key_is_read_from_two_headers(headers: dict[bytes, bytes], found: tuple[bytes, ...]) -> None:
    assert carriers(headers) == found


def test_K4_only_digests_are_kept() -> None:
    snapshot = Principals(KEYS, open_mode=False, utc_s=lambda: NOW_S)
    kept = {name: getattr(snapshot, name) for name in dir(snapshot) if not name.startswith("__")}
    assert "_by_digest" in kept
    assert "secret" not in repr(kept)

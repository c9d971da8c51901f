"""Every default that the pages of selection and response cache state, as the code has it."""

from __future__ import annotations

from turnout.core.response_cache.store import Bounds
from turnout.core.selection import knobs, pin
from turnout.core.selection.bundle import DEFAULT_TOP_P
from turnout.core.selection.embedder import HASHGRAM_DIM, HASHGRAM_ID
from turnout.core.selection_options import ResponseCache, Selection


def test_documented_defaults_equal_code() -> None:
    options = Selection()
    stated: dict[str, object] = {
        "bundle_dir": "", "version": "latest", "build_versions": [], "top_p": None, "max_prompt_bytes": 1024,
        "embed_text": "last_user", "default_model": "", "price_source": "price_book", "presets": {}, "pin_enabled": True,
        "pin_max_sessions": 100_000, "pin_ttl_s": 3600.0, "switch_threshold_usd": 0.001, "horizon_turns": 3,
        "tier_upgrade": False, "cold_follow_fresh": False,
    }  # fmt: skip
    assert {name: getattr(options, name) for name in stated} == stated
    assert (DEFAULT_TOP_P, HASHGRAM_ID, HASHGRAM_DIM) == (4, "hashgram-v1", 1024)
    assert (knobs.DEFAULT_ALPHA, knobs.DEFAULT_TOKENS) == (0.53, 2000)
    assert (pin.HORIZON_TURNS, pin.THRESHOLD_USD, pin.CACHED_PRICE_FACTOR) == (3, 0.001, 0.1)


def test_the_response_caches_defaults() -> None:
    options = ResponseCache()
    stated = {
        "enabled": False, "threshold": 0.95, "store_tool_calls": False, "tenants_max": 1024, "buckets_max": 512,
        "entries_max": 1024, "tenant_bytes": 32 * 2**20, "total_bytes": 256 * 2**20, "body_max_bytes": 2**20, "ttl_s": 3600.0,
        "single_flight_wait_ms": 2000, "single_flight_max": 64,
    }  # fmt: skip
    assert {name: getattr(options, name) for name in stated} == stated
    assert Bounds() == Bounds(
        tenants=options.tenants_max,
        buckets_per_tenant=options.buckets_max,
        entries_per_bucket=options.entries_max,
        tenant_bytes=options.tenant_bytes,
        total_bytes=options.total_bytes,
        body_bytes=options.body_max_bytes,
        ttl_s=options.ttl_s,
    )

"""KV events in every form seen in the field, and what must not stop a subscriber."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from turnout.core.prefix.kv_events import Cleared, Removed, Stored
from turnout.engines.kv_events import decode

pack = msgspec.msgpack.encode
HASH = (0x1122334455667788).to_bytes(32, "big")


def stored(**more: object) -> dict[str, object]:
    return {
        "type": "BlockStored",
        "block_hashes": [7, 8],
        "parent_block_hash": None,
        "token_ids": [1, 2, 3, 4],
        "block_size": 2,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        **more,
    }


def as_array(event: dict[str, object]) -> list[object]:
    return list(event.values())


BATCHES: dict[str, Callable[[list[Any]], object]] = {
    "array of arrays": lambda events: [1.5, [as_array(event) for event in events], 3],
    "array of maps": lambda events: [1.5, events, 3],
    "map of arrays": lambda events: {"ts": 1.5, "events": [as_array(e) for e in events], "data_parallel_rank": 3},
    "map of maps": lambda events: {"ts": 1.5, "events": events, "attn_dp_rank": 3},
}


@pytest.mark.parametrize("form", BATCHES)
def test_kv_events_both_encodings(form: str) -> None:
    """T65: array and map, independently for batch and event; unknown types and fields are skipped and counted."""
    events = [
        stored(),
        {"type": "BlockRemoved", "block_hashes": [7], "medium": "CPU"},
        {"type": "BlockMoved", "what": 1},
        {"type": "AllBlocksCleared"},
    ]
    batch = decode(pack(BATCHES[form](events)))
    assert batch is not None
    assert batch.events == (Stored((7, 8), None, (1, 2, 3, 4), 2), Removed((7,), 1), Cleared())
    assert (batch.rank, batch.skipped, batch.bad) == (3, 1, ())


def test_older_sglang_events_end_early_and_newer_ones_late() -> None:
    short = ["BlockStored", [7], 5, [1], 1, None]
    late = ["BlockStored", [7], 5, [1], 1, None, "DISK", None, None, 0, "full_attention", None, "local", "mine", 9]
    batch = decode(pack([0.0, [short, ["BlockRemoved", [7]], late]]))
    assert batch is not None
    assert batch.events == (Stored((7,), 5, (1,), 1), Removed((7,)), Stored((7,), 5, (1,), 1, 3, group=0))
    assert batch.rank is None


def test_hashes_are_unsigned_64_bit_whatever_they_came_as() -> None:
    batch = decode(pack([0.0, [["BlockRemoved", [HASH, -1, 2**63, b"\x05"]]]]))
    assert batch is not None
    assert batch.events == (Removed((0x1122334455667788, 2**64 - 1, 2**63, 5)),)


def test_parent_nil_absent_or_zero_is_the_root() -> None:
    no_parent = {key: value for key, value in stored().items() if key != "parent_block_hash"}
    batch = decode(pack([0.0, [stored(parent_block_hash=0), no_parent, stored(parent_block_hash=HASH)]]))
    assert batch is not None
    parents = [event.parent for event in batch.events if isinstance(event, Stored)]
    assert parents == [None, None, 0x1122334455667788]


def test_speculation_pairs_give_their_first_token() -> None:
    batch = decode(pack([0.0, [stored(token_ids=[[1, 2], [2, 3], [3, 4], [4, 5]])]]))
    assert batch is not None
    assert [event.tokens for event in batch.events if isinstance(event, Stored)] == [(1, 2, 3, 4)]


def test_extra_keys_are_salt_lora_or_mixed_in() -> None:
    event = stored(lora_name="sql", extra_keys=[["sql", "tenant-7"], ["image-1"]])
    batch = decode(pack([0.0, [event, stored(parent_block_hash=9, extra_keys=[["tenant-7"], None])]]))
    assert batch is not None
    first, second = (event for event in batch.events if isinstance(event, Stored))
    assert (first.lora, first.salt, first.mixins) == ("sql", "tenant-7", (b"", pack(["image-1"])))
    assert (second.salt, second.mixins) == ("", (pack(["tenant-7"]), b""))


def test_windowed_groups_are_marked() -> None:
    events = [
        stored(kv_cache_spec_kind="sliding_window", group_idx=1),
        stored(kv_cache_spec_sliding_window=1024),
        stored(kv_cache_spec_kind="full"),
    ]
    batch = decode(pack([0.0, events]))
    assert batch is not None
    assert [event.full for event in batch.events if isinstance(event, Stored)] == [False, False, True]


def test_block_with_copies_left_is_not_removed() -> None:
    batch = decode(pack([0.0, [{"type": "BlockRemoved", "block_hashes": [1, 2], "remaining_copy_counts": [1, 0]}]]))
    assert batch is not None
    assert batch.events == (Removed((2,)),)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (5, "shape"),
        ([], "shape"),
        (stored(block_hashes="x"), "block_hashes"),
        (stored(block_hashes=[1.5, 2]), "hash"),
        (stored(token_ids=[1, "2"]), "token_ids"),
        (stored(token_ids=7), "token_ids"),
        (stored(block_size=0), "block_size"),
        (stored(block_size=None), "block_size"),
        (stored(block_hashes=[0] * 65_537), "oversized"),
        (stored(parent_block_hash=""), "hash"),
    ],
)
def test_bad_event_is_counted_and_the_rest_is_read(event: object, reason: str) -> None:
    batch = decode(pack([0.0, [event, ["AllBlocksCleared"]]]))
    assert batch is not None
    assert (batch.events, batch.bad, batch.oversized) == ((Cleared(),), (reason,), reason == "oversized")


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01", pack(5), pack([1.0]), pack({"ts": 1}), pack([1.0, 2])])
def test_what_is_no_batch_is_none(payload: bytes) -> None:
    assert decode(payload) is None

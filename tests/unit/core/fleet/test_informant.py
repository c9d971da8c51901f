"""What is believed of a rank's KV events, and when (scheduling §3.1, §3.2)."""

from __future__ import annotations

import msgspec
import pytest

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.informant import Informant
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.registry import Fleet
from turnout.core.prefix.keys import root_key, token_keys
from turnout.core.prefix.kv_events import Batch, Cleared, KvEvent, Removed, Stored

TOKENS = tuple(range(12))


def root(lora: str, salt: str, block: int) -> int:
    return root_key("m", space="tok", block=block, lora=lora, cache_salt=salt)


KEYS = token_keys(TOKENS, root("", "", 4), 4, 8)


class Heard:
    """One endpoint with one informant, and a publisher that counts."""

    def __init__(self, **prefix: object) -> None:
        self.fleet = Fleet(options.Scheduling(), options.Prefix(**prefix), options.Breaker())  # type: ignore[arg-type]
        self.endpoint: EndpointState = self.fleet.add(
            options.Endpoint(name="a", url="http://127.0.0.1:1", models=["m"]), 0.0
        )
        self.informant = self.listen()
        self.seq = self.said = 0

    def listen(self, rank: int = 0) -> Informant:
        return Informant(self.fleet, self.endpoint, rank, root, held_max=100, silence_s=30.0)

    def say(self, *events: KvEvent, now: float = 0.0, batch: Batch | None = None) -> int | None:
        self.said += 1  # every payload is another one
        start = self.informant.received(self.seq, self.said, batch or Batch(events), now)
        self.seq += 1
        return start

    def depth(self, keys: list[int] | None = None) -> float:
        found = self.fleet.exact.match(KEYS if keys is None else keys, self.fleet.exact.live)
        return found.get(self.informant.stream.bit, 0.0)

    @property
    def mode(self) -> Mode:
        return self.endpoint.mode


def stored(first: int = 0, last: int = 3, parent: int | None = None, **more: object) -> Stored:
    """Blocks first … last-1 of TOKENS, with hashes 100, 101, …"""
    event = Stored(tuple(range(100 + first, 100 + last)), parent, TOKENS[4 * first : 4 * last], 4)
    return msgspec.structs.replace(event, **more)


def test_keys_are_our_own_chain_over_the_tokens() -> None:
    heard = Heard()
    heard.say(stored(0, 2), stored(2, 3, parent=101))
    assert (heard.depth(), heard.mode, heard.endpoint.block_tokens) == (3, Mode.EXACT, 4)


def test_removed_block_ends_the_match_and_clear_ends_all() -> None:
    heard = Heard()
    heard.say(stored())
    heard.say(Removed((101,)))
    assert heard.depth() == 1
    heard.say(Cleared())
    assert (heard.depth(), heard.mode) == (0, Mode.EXACT)


def test_orphans_wait_for_their_parent() -> None:
    heard = Heard()
    heard.say(stored(2, 3, parent=101), stored(1, 2, parent=100))
    assert heard.depth() == 0
    heard.say(stored(0, 1))
    assert heard.depth() == 3


def test_move_to_host_memory_keeps_the_block_at_its_credit() -> None:
    heard = Heard()
    heard.say(stored())
    moved = Stored((102,), 101, (), 4, 1)
    heard.say(moved, Removed((102,)))
    assert heard.depth() == pytest.approx(2.8)
    heard.say(Removed((102,), 1))
    assert heard.depth() == 2


def test_salt_and_adapter_select_the_root() -> None:
    heard = Heard()
    heard.say(stored(salt="s"), stored(lora="l", hashes=(1, 2, 3)))
    assert heard.depth() == 0
    assert heard.depth(token_keys(TOKENS, root("", "s", 4), 4, 8)) == 3
    assert heard.depth(token_keys(TOKENS, root("l", "", 4), 4, 8)) == 3


def test_images_match_no_text() -> None:
    heard = Heard()
    heard.say(stored(mixins=(b"", b"image", b"")))
    assert heard.depth() == 1


def test_windowed_blocks_are_left_out_with_their_removals() -> None:
    heard = Heard()
    heard.say(stored(), stored(group=1, full=False))
    heard.say(Removed((100, 101, 102), group=1))
    assert (heard.depth(), heard.informant.counts["left_out"]) == (3, 3)


def test_lengths_that_contradict_are_bad() -> None:
    heard = Heard()
    heard.say(stored(tokens=(1, 2, 3)), Stored((9,), None, (), 4))
    assert heard.informant.counts["bad_length"] == 1
    assert heard.informant.counts["bad_unknown_move"] == 1
    assert heard.depth() == 0


def test_event_gap_degrades_index() -> None:
    """T66: gap, restart, late join: replay or DEGRADED, never silently wrong."""
    heard = Heard()
    heard.say(stored(0, 2))
    heard.seq = 5
    assert heard.say(stored(2, 3, parent=101)) == 1
    assert heard.informant.replayed([], 0.0) is None
    assert (heard.mode, heard.depth(), heard.informant.counts["missing"]) == (Mode.DEGRADED, 3, 4)
    assert [(str(b.name), reason) for _, b, reason in heard.informant.transitions] == [
        ("EXACT", "complete"),
        ("DEGRADED", "gap"),
    ]
    heard.seq = 0
    heard.say(stored(0, 1))
    assert (heard.mode, heard.depth()) == (Mode.EXACT, 1)


def test_gap_that_a_replay_closes_leaves_no_doubt() -> None:
    heard = Heard()
    heard.say(stored(0, 1))
    heard.seq = 2
    assert heard.say(stored(2, 3, parent=101)) == 1
    heard.informant.replayed([(1, 9, Batch((stored(1, 2, parent=100),)))], 0.0)
    assert (heard.mode, heard.depth()) == (Mode.EXACT, 3)


def test_late_join_without_replay_is_degraded_until_a_turnover() -> None:
    heard = Heard()
    heard.endpoint.kv_capacity_tokens = 12
    heard.seq = 7
    assert heard.say(stored(0, 1)) == 0
    heard.informant.replayed([], 0.0)
    assert heard.mode is Mode.DEGRADED
    heard.say(stored(1, 3, parent=100))
    heard.say(Stored((7,), None, (90, 91, 92, 93), 4))
    assert (heard.mode, heard.informant.transitions[-1][2]) == (Mode.EXACT, "turnover")


def test_blocks_older_than_the_gap_go_with_the_turnover() -> None:
    heard = Heard()
    heard.endpoint.kv_capacity_tokens = 8
    heard.say(stored())
    heard.seq = 3
    heard.say(Stored((7,), None, (90, 91, 92, 93), 4))
    heard.informant.replayed([], 0.0)
    assert heard.depth() == 3
    heard.say(stored(0, 1))
    assert (heard.mode, heard.depth(), heard.fleet.exact.evicted["turnover"]) == (Mode.EXACT, 1, 2)


def test_silence_while_attempts_finish_is_doubted_and_the_next_word_clears_it() -> None:
    heard = Heard()
    heard.say(stored())
    heard.informant.tick(31.0)
    assert heard.mode is Mode.EXACT
    heard.endpoint.attempts_total = 10
    heard.informant.tick(31.0)
    assert heard.mode is Mode.DEGRADED
    heard.say(now=32.0)
    assert heard.mode is Mode.EXACT


def test_stream_that_stays_away_is_approximate() -> None:
    heard = Heard()
    heard.say(stored())
    heard.informant.disconnected(1.0)
    heard.informant.tick(60.0)
    assert heard.mode is Mode.EXACT
    heard.informant.tick(62.0)
    assert heard.mode is Mode.APPROXIMATE
    heard.say(now=70.0)
    assert heard.mode is Mode.EXACT


def test_rubbish_is_doubted() -> None:
    heard = Heard()
    heard.say(stored())
    for number in range(11):
        heard.say(now=1.0, batch=Batch(bad=("shape",)))
        assert (heard.mode is Mode.DEGRADED) == (number == 10)


def test_payload_that_does_not_decode_is_a_missing_number() -> None:
    heard = Heard()
    heard.say(stored())
    heard.informant.received(1, 1, None, 0.0)
    heard.seq = 2
    assert heard.say() == 1
    assert heard.informant.counts["bad_payload"] == 1


def test_endpoint_of_which_one_rank_is_silent_is_believed_in_part() -> None:
    heard = Heard()
    second = heard.listen(1)
    assert heard.mode is Mode.APPROXIMATE
    heard.say(stored())
    assert heard.mode is Mode.DEGRADED
    second.received(0, 0, Batch((stored(0, 1),)), 0.0)
    assert heard.mode is Mode.EXACT
    assert len(heard.endpoint.streams) == 2


def test_cap_gives_up_the_stream_unused_for_longest() -> None:
    heard = Heard(exact_max_blocks=2)
    heard.say(stored(0, 1))
    heard.say(stored())
    assert (heard.mode, heard.fleet.exact.pairs, heard.depth()) == (Mode.APPROXIMATE, 0, 0)
    heard.say(stored())
    assert heard.mode is Mode.APPROXIMATE
    assert heard.informant.transitions[-1][2] == "cap"


def test_removal_leaves_nothing_behind() -> None:
    heard = Heard()
    heard.say(stored())
    heard.fleet.remove("a")
    assert (heard.depth(), heard.fleet.exact.pairs, heard.fleet.exact.live) == (0, 0, 0)
    heard.say(stored())
    assert heard.fleet.exact.pairs == 0

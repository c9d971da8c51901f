"""The life of requests, engines and clients at the door, as transcripts (coordinator §4 to §6)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from turnout.coordinator.rehearsal import Rehearsal
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines import megatron as wire
from turnout.engines.megatron import PROBE_ID, Header

A, B, C = b"mp-coord-0", b"mp-coord-1", b"mp-coord-2"
X, Y = b"\0\0\0\0x", b"\0\0\0\0y"
ABORT, PROBE = Header.ABORT_REQUEST.value, [Header.ABORT_REQUEST.value, PROBE_ID]


def world(**options: Any) -> Rehearsal:
    return Rehearsal(Coordinator(**options))


def served(**options: Any) -> Rehearsal:
    there = world(**options)
    there.engines(A)
    there.clients(X)
    return there


def submitted(there: Rehearsal, engine: bytes = A) -> list[int]:
    """Server ids of the requests an engine was sent since the last look."""
    return [message[1] for message in there.read(engine) if message[0] == Header.SUBMIT_REQUEST]


def failure(message: list[Any]) -> tuple[int, str, str]:
    """Client id, event type and text of a failed reply."""
    header, number, reply = message
    assert (header, reply["status"], reply["request_id"]) == (21, "FAILED", number)
    return number, reply["events"][0]["type"], reply["events"][0]["payload"]["message"]


def test_request_partial_and_reply_travel_unchanged_under_each_sides_own_number() -> None:
    there = served()
    there.say(X, wire.submit(0, "hi", {"temperature": 0.5}))
    ((header, number, *rest),) = there.read(A)
    assert (header, rest) == (20, ["hi", {"temperature": 0.5}, None])
    assert 1 <= number < PROBE_ID
    there.progress(A, number)
    there.finish(A, number, extra=["tensor", [1, 2]])
    partial, final = there.read(X)
    assert partial == [22, 0, {"request_id": number, "new_tokens": [1]}]
    assert final == [
        21,
        0,
        {"request_id": number, "status": "COMPLETED", "generated_tokens": [1], "extra": ["tensor", [1, 2]]},
    ]
    assert there.leftovers() == {}


def test_equal_numbers_of_different_clients_do_not_meet() -> None:
    there = served()
    there.clients(Y)
    there.say(X, wire.submit(0, "x", {}))
    there.say(Y, wire.submit(0, "y", {}))
    first, second = submitted(there)
    there.finish(A, second, first)
    assert [message[1] for message in there.read(X)] == [0]
    assert there.read(Y)[0][2]["request_id"] == second
    assert there.leftovers() == {}


def test_a_refused_request_is_answered_and_leaves_nothing() -> None:
    there = served()
    there.say(X, wire.submit(3, "", {}))
    assert failure(there.read(X)[0]) == (3, "ERROR_NONTRANSIENT", "turnout: bad_field:prompt")
    there.say(X, wire.submit(4, "p", {"streaming_interval": 0}))
    assert failure(there.read(X)[0])[0] == 4
    assert there.read(A) == []
    assert there.leftovers() == {}


def test_a_duplicate_of_an_open_number_is_not_answered() -> None:
    there = served()
    there.say(X, wire.submit(3, "p", {}))
    there.say(X, wire.submit(3, "q", {}))
    assert there.read(X) == []
    assert len(submitted(there)) == 1
    assert there.door.tally.invalid["SUBMIT_REQUEST", "duplicate_id"] == 1


def test_our_own_client_reads_errors_as_messages_of_their_own() -> None:
    there = world()
    there.engines(A)
    there.clients(X, ours=True)
    there.say(X, wire.submit(3, "", {}))
    there.say(X, b"\xc1")
    assert there.read(X) == [[29, 3, "bad_field:prompt", True], [29, None, "undecodable", True]]


# T11
def test_bad_message_never_stops_loop() -> None:
    there = served()
    there.say(X, wire.submit(0, "p", {}))
    (number,) = submitted(there)
    for frames in (
        [],
        [X],
        [X, b"", b""],
        [X, b"\xc1"],
        [X, b"\x91\x63"],
        [X, b"\x92\x14\x00"],
        [A, b"\x92\x15\x05"],
        [b"?", b"\x91\x28"],
    ):
        there.carry(there.door.on_message(frames, there.now))
    assert sum(there.door.tally.invalid.values()) == 8
    there.finish(A, number)
    assert [message[:2] for message in there.read(X)] == [[21, 0]]
    assert there.leftovers() == {}


# T12
def test_removed_engine_fails_over_its_requests() -> None:
    there = served()
    there.say(X, wire.submit(0, "seen", {}))
    there.say(X, wire.submit(1, "unseen", {}))
    first, second = submitted(there)
    there.progress(A, first)
    there.engines(B)
    there.gone.add(A)
    there.read(X)
    there.wait(6.0)  # the probe of a silent engine finds out
    assert there.door.tally.unreachable == {"engine": 1}
    assert failure(there.read(X)[0]) == (0, "ERROR_TRANSIENT", "turnout: engine_lost")
    (resent,) = there.read(B)
    assert resent[0] == 20
    assert resent[1] not in {first, second}
    assert resent[2:] == ["unseen", {}, None]
    there.finish(B, resent[1])
    assert there.read(X)[0][1] == 1
    assert there.leftovers() == {}
    assert there.door.tally.resent == 1


def test_replies_of_a_lost_engine_are_read_within_the_grace() -> None:
    there = served(late_grace_s=0.5)
    there.clients(Y)
    there.say(X, wire.submit(0, "p", {}))
    (number,) = submitted(there)
    there.gone.add(A)
    there.say(Y, wire.submit(0, "finds out", {}))
    there.finish(A, number)
    assert [message[:2] for message in there.read(X)] == [[21, 0]]
    there.wait(1.0)
    assert there.door.tally.failed == {}  # the other one waits for an engine
    there.engines(B)
    assert len(submitted(there, B)) == 1


def test_an_engine_that_says_goodbye_is_settled_at_once() -> None:
    there = served()
    there.say(X, wire.submit(0, "p", {}))
    submitted(there)
    there.engines(B)
    there.say(A, wire.DISCONNECT)
    assert len(submitted(there, B)) == 1
    assert there.door.roster.lost == {}


# T13
def test_empty_pool_keeps_running() -> None:
    there = served(pending_max=2, empty_wait_s=5.0)
    there.say(A, wire.DISCONNECT)
    for number in range(3):
        there.say(X, wire.submit(number, "p", {}))
    assert failure(there.read(X)[0]) == (2, "ERROR_TRANSIENT", "turnout: pending_full")
    there.wait(1.0)
    there.engines(B)
    assert len(submitted(there, B)) == 2
    there.say(B, wire.DISCONNECT)  # both wait again
    there.wait(5.1)
    assert [failure(message) for message in there.read(X)] == [
        (number, "ERROR_TRANSIENT", "turnout: no_engine") for number in (0, 1)
    ]
    assert there.leftovers() == {}
    there.engines(C)
    there.say(X, wire.submit(9, "p", {}))
    assert len(submitted(there, C)) == 1


# T14
def test_removal_renumbers_nobody() -> None:
    there = Rehearsal(Coordinator(block_tokens=2), Affinity(policy="longest_prefix"))
    there.engines(A, B, C)
    there.clients(X)
    there.say(X, wire.submit(0, [1, 2, 3, 4], {}))
    there.say(X, wire.submit(1, [5, 6, 7, 8], {}))
    there.say(X, wire.submit(2, [9, 9, 9, 9], {}))
    before = {engine.name: (engine.bit, len(engine.open)) for engine in there.door.roster.live.values()}
    holder = next(name for name in (b"mp-coord-1", b"mp-coord-2") if there.door.roster.live[name].open)
    there.say(A, wire.DISCONNECT)
    after = {engine.name: engine.bit for engine in there.door.roster.live.values()}
    assert after == {name: bit for name, (bit, _) in before.items() if name != "mp-coord-0"}
    prompt = there.door.roster.live[holder].open
    first = next(iter(prompt.values())).request.keys
    choice = there.door.chooser.choose(first, there.door.roster.eligible, there.now)
    assert choice.engine.identity == holder


# T41
def test_vanished_client_never_stops_loop() -> None:
    there = served()
    there.clients(Y)
    there.say(X, wire.submit(0, "p", {}))
    there.say(X, wire.submit(1, "p", {}))
    there.say(Y, wire.submit(0, "p", {}))
    first, second, other = submitted(there)
    there.gone.add(X)
    there.finish(A, first)
    there.finish(A, other)
    assert there.read(Y)[0][1] == 0
    assert [ABORT, second] in there.read(A)
    assert X not in there.door.clients.known
    assert there.door.tally.unreachable == {"client": 1}
    assert there.leftovers() == {}


# T44
def test_late_reply_is_counted() -> None:
    there = served()
    there.say(X, wire.submit(0, "p", {}))
    (number,) = submitted(there)
    there.finish(A, number)
    there.finish(A, number)
    there.progress(A, number)
    there.finish(A, 5)
    assert len(there.read(X)) == 1
    assert there.door.tally.dropped == {"late": 2, "unknown": 1}


def test_a_reply_for_another_engines_request_is_foreign() -> None:
    there = served()
    there.engines(B)
    there.say(X, wire.submit(0, "p", {}))
    owner = A if there.door.roster.live[A].open else B
    other = B if owner == A else A
    (number,) = submitted(there, owner)
    there.finish(other, number)
    there.progress(other, number)
    assert there.read(X) == []
    assert there.door.tally.dropped == {"foreign": 2}
    assert there.door.tally.internal_errors == {"ENGINE_REPLY": 1, "ENGINE_REPLY_PARTIAL": 1}
    records = [record for record in there.door.records.take() if record.event == "coordinator_message_error"]
    assert [(record.level, record.fields["server_id"]) for record in records] == [("error", number)] * 2
    there.finish(owner, number)
    assert len(there.read(X)) == 1


# T45
def test_abort_frees_slot_of_dead_engine() -> None:
    there = served(abort_wait_s=30.0)
    there.say(X, wire.submit(0, "p", {}))
    (number,) = submitted(there)
    there.say(X, wire.abort(0))
    there.say(X, wire.abort(0))
    assert there.read(A) == [[ABORT, number]]
    there.progress(A, number)
    assert there.read(X) == []  # what comes after an abort is not wanted
    assert len(there.door.roster.live[A].open) == 1
    there.wait(30.1)
    assert there.door.roster.live[A].open == {}
    assert failure(there.read(X)[0]) == (0, "ERROR_TRANSIENT", "turnout: aborted")
    assert there.leftovers() == {}


def test_an_aborted_request_still_gets_its_final_reply_once() -> None:
    there = served()
    there.say(X, wire.submit(0, "p", {}))
    (number,) = submitted(there)
    there.say(X, wire.abort(0))
    there.finish(A, number)
    assert [message[:2] for message in there.read(X)] == [[21, 0]]
    there.wait(40)
    assert there.read(X) == []


# T51
def test_same_identity_inherits_nothing() -> None:
    there = Rehearsal(Coordinator(block_tokens=2), Affinity(policy="longest_prefix"))
    there.engines(A)
    there.clients(X)
    there.say(X, wire.submit(0, [1, 2, 3, 4], {}))
    (number,) = submitted(there)
    old = there.door.roster.live[A]
    there.engines(A)
    new = there.door.roster.live[A]
    assert (new.incarnation, new.bit != old.bit) == (2, True)
    (again,) = submitted(there)  # the restarted process has never heard of it
    assert again != number
    there.finish(A, number)
    assert there.door.tally.dropped == {"late": 1}
    there.finish(A, again)
    keys = there.door.blocks.keys([1, 2, 3, 4])[0]
    assert there.door.chooser.index.match(keys, old.bit) == {}
    assert there.door.tally.registrations == {"new": 1, "again": 1}
    assert there.leftovers() == {}


def test_three_engines_are_asked_and_then_the_client_is_told() -> None:
    there = served(attempts=3)
    there.engines(B, C, b"mp-coord-3")
    there.say(X, wire.submit(0, "p", {}))
    for _ in range(3):
        holder = next(engine for engine in there.door.roster.live.values() if engine.open)
        there.say(holder.identity, wire.DISCONNECT)
    assert failure(there.read(X)[0])[2] == "turnout: engine_lost"
    assert (there.door.tally.resent, there.door.tally.exhausted) == (2, 1)


def test_an_engine_found_gone_while_sending_costs_no_try() -> None:
    there = served(attempts=1)
    there.engines(B, C)
    there.gone.update((A, B))
    there.say(X, wire.submit(0, "p", {}))
    assert len(submitted(there, C)) == 1
    assert there.door.tally.resent == 0
    assert A not in there.door.roster.live
    assert there.door.tally.lookups == {"no_hash": 1}


def test_an_engine_that_only_lost_its_connection_is_taken_back() -> None:
    there = served()
    there.gone.add(A)
    there.say(X, wire.submit(0, "p", {}))
    assert there.read(A) == []
    there.wait(2.0)
    assert not there.door.ready
    there.gone.clear()
    there.wait(1.1)
    assert there.door.ready
    assert len(submitted(there)) == 1
    assert there.door.tally.registrations == {"new": 1, "adopted": 1}


def test_expected_engines_are_adopted_after_a_restart_of_the_door() -> None:
    there = world(expected_engines=2, deterministic=True)
    there.gone.add(B)
    there.clients(X)
    there.say(X, wire.submit(0, "p", {}))
    there.wait(1.1)
    assert set(there.door.roster.live) == {A}
    assert there.leftovers() == {"pending": 1, "clients": 1}
    there.finish(A, 77)  # a reply to the door that ran before
    assert there.door.tally.dropped == {"unknown": 1}
    there.gone.clear()
    there.wait(1.1)
    assert there.door.ready
    assert len(submitted(there)) == 1


def test_a_reply_of_a_lost_engine_proves_that_it_lives() -> None:
    there = served(late_grace_s=0.1)
    there.gone.add(A)
    there.say(X, wire.submit(0, "p", {}))
    there.wait(0.5)
    there.gone.clear()
    there.finish(A, 12345)
    assert there.door.tally.registrations == {"new": 1, "adopted": 1}
    assert len(submitted(there)) == 1


def test_a_contested_identity_raises_an_alarm() -> None:
    there = world()
    for _ in range(5):
        there.engines(A)
        there.wait(1.0)
    assert there.door.tally.contested == 2
    assert any(record.event == "identity_contested" for record in there.door.records.take())


def test_silent_engines_with_open_requests_are_probed_and_others_are_not() -> None:
    there = served()
    there.engines(B)
    there.say(X, wire.submit(0, "p", {}))
    holder = next(engine for engine in there.door.roster.live.values() if engine.open)
    there.read(A), there.read(B)
    there.wait(12.0)
    assert there.read(holder.identity) == [PROBE, PROBE]
    assert there.read(B if holder.identity == A else A) == []


def test_clients_with_open_requests_are_probed() -> None:
    there = served()
    there.say(X, wire.submit(0, "p", {}))
    there.wait(31.5)
    assert there.read(X) == [[1]]
    there.gone.add(X)
    there.wait(31.0)
    assert X not in there.door.clients.known
    assert there.leftovers() == {}


def test_a_full_house_makes_sure_of_its_idle_clients_first() -> None:
    there = world(clients_max=2)
    there.clients(X, Y)
    there.say(b"late", wire.connect())
    assert there.read(b"late") == []
    there.gone.add(X)
    there.say(b"later", wire.connect())
    assert there.read(b"late") == [[1]]
    assert list(there.door.clients.known) == [Y, b"late"]
    assert there.door.tally.clients_refused == 2


def test_a_deadline_ends_a_request_on_both_sides() -> None:
    there = served(request_timeout_s=10.0)
    there.say(X, wire.submit(0, "p", {}))
    (number,) = submitted(there)
    there.wait(10.1)
    assert [ABORT, number] in there.read(A)
    assert failure(there.read(X)[0])[2] == "turnout: deadline"
    assert there.leftovers() == {}


def test_a_client_that_says_goodbye_takes_its_requests_along() -> None:
    there = served()
    there.say(X, wire.submit(0, "p", {}))
    (number,) = submitted(there)
    there.say(X, wire.DISCONNECT)
    assert there.read(A) == [[ABORT, number]]
    assert (there.read(X), there.leftovers()) == ([], {})
    there.finish(A, number)
    assert there.door.tally.dropped == {"late": 1}


def test_a_saturated_engine_gets_nothing_until_it_has_room() -> None:
    there = served()
    there.carry(there.door.saturated(A, there.now, full=True))
    there.say(X, wire.submit(0, "p", {}))
    assert there.read(A) == []
    there.carry(there.door.saturated(A, there.now, full=False))
    assert len(submitted(there)) == 1


def test_strangers_are_muted_after_ten_invalid_messages_and_known_peers_never() -> None:
    there = served()
    for _ in range(12):
        there.say(b"stranger", b"\xc1")
        there.say(X, b"\xc1")
        there.say(A, b"\xc1")
    assert there.door.tally.muted == 2
    there.say(b"stranger", wire.connect())
    assert there.read(b"stranger") == []
    there.wait(60.1)
    there.clients(b"stranger")
    assert there.door.tally.invalid["unknown", "undecodable"] == 10 + 12 + 12


def test_records_are_held_back_per_reason_and_name_no_payload() -> None:
    there = served()
    there.door.records.take()
    for _ in range(25):
        there.say(X, wire.submit(0, "", {"secret-prompt": 1}))
    records = there.door.records.take()
    assert len(records) == 10
    assert "secret" not in msgspec.json.encode([record.fields for record in records]).decode()
    there.wait(1.0)
    there.say(X, wire.submit(0, "", {}))
    (record,) = there.door.records.take()
    assert record.fields["suppressed"] == 15
    assert (record.level, record.fields["error_type"], record.fields["peer"]) == ("warning", "client_error", X.hex())


def test_a_bug_of_ours_ends_one_message_and_its_request() -> None:
    def broken(_: str) -> list[int]:
        raise RuntimeError("tokenizer")

    there = Rehearsal(tokenize=broken)
    there.engines(A)
    there.clients(X)
    there.say(X, wire.submit(0, "text", {}))
    assert there.door.tally.internal_errors == {"SUBMIT_REQUEST": 1}
    assert failure(there.read(X)[0])[2] == "turnout: internal"
    there.say(X, wire.submit(1, [1, 2], {}))
    assert len(submitted(there)) == 1


def test_kv_handoff_is_served_only_when_switched_on() -> None:
    there = served()
    there.say(X, wire.submit_with_kv(0, "p", {}, {"meta": 1}, [4]))
    there.say(X, wire.release(7))
    assert failure(there.read(X)[0])[2] == "turnout: not_served"
    assert there.read(A) == []
    there = served(kv_handoff=True)
    there.engines(B)
    there.say(X, wire.submit_with_kv(0, "p", {}, {"meta": 1}, [4]))
    sent = there.read(A) + there.read(B)
    assert [(message[0], message[2:]) for message in sent] == [(24, ["p", {}, {"meta": 1}, [4]])]
    there.say(X, wire.release(7))
    assert (there.read(A), there.read(B)) == ([[25, 7]], [[25, 7]])


def test_shutdown_is_ignored_unless_allowed() -> None:
    there = served()
    there.say(X, wire.signal(Header.SHUTDOWN))
    assert not there.door.closing
    there = served(allow_shutdown=True)
    there.say(X, wire.signal(Header.SHUTDOWN))
    assert there.door.closing
    there.say(X, wire.submit(0, "p", {}))
    assert failure(there.read(X)[0]) == (0, "ERROR_TRANSIENT", "turnout: draining")


def test_a_second_greeting_is_ignored() -> None:
    there = served()
    there.say(X, wire.connect())
    assert there.read(X) == []


@pytest.mark.parametrize("media", [None, {}, {"image": b"x"}])
def test_requests_with_media_have_no_keys(media: object) -> None:
    there = Rehearsal(Coordinator(block_tokens=2))
    there.engines(A)
    there.clients(X)
    there.say(X, wire.submit(0, [1, 2, 3, 4], {}, media))
    (attempt,) = there.door.requests.open.values()
    assert len(attempt.request.keys) == (0 if media else 2)


def test_an_engine_that_hashes_otherwise_raises_an_alarm_once() -> None:
    there = Rehearsal(Coordinator(block_tokens=4, model="m"))
    there.engines(A)
    there.clients(X)
    right = [4832768347186360981, 8533535913844734714]  # the golden vector of scheduling §1.2
    for number, hashes in enumerate((right, [1, 2], [1, 2])):
        there.say(X, wire.submit(number, list(range(11)), {}))
        (sent,) = submitted(there)
        there.door.roster.live[A].parity_known &= number == 2
        there.finish(A, sent, precomputed_block_hashes=hashes, block_size_tokens=4)
    assert there.door.tally.hash_mismatches == 1


def test_server_ids_wrap_and_skip_what_is_open_or_was_ours() -> None:
    there = served()
    there.door.requests._ids._next = PROBE_ID - 1
    for number in range(3):
        there.say(X, wire.submit(number, "p", {}))
    assert submitted(there) == [PROBE_ID - 1, 1, 2]
    there.finish(A, 1)
    there.door.requests._ids._next = PROBE_ID - 1
    there.say(X, wire.submit(1, "p", {}))
    assert submitted(there) == [3]

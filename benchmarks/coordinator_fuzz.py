"""Random and mutated messages at the coordinator door with honest traffic beside them, and an oracle of its own.

The oracle (`expected`) is written from coordinator §3 as the slow, plain reading of each row, apart from the table that
the door uses; both must agree on every message, so that the invalid counters add up exactly.
"""

# ruff: noqa: PLR2004 - the wire numbers and the odds of each kind of message stand where they are used

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec

from turnout.coordinator.rehearsal import Rehearsal
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines import megatron as wire

ENGINES = [b"mp-coord-%d" % number for number in range(4)]
HONEST = [b"\0hon%d" % number for number in range(2)]
HOSTILE = [b"\0bad%d" % number for number in range(3)]
KEYS_POISON = ("streaming_interval", "top_n_logprobs", "num_tokens_to_generate")
SIGNALS = (40, 41, 42, 43, 45, 46, 47)
KNOWN = {0, 1, *range(20, 27), *range(40, 48), 60, 61, 80, 81}
NAMES = {header.value: header.name for header in wire.Header}
ARITY = {0: (1, 2), 20: (4, 5), 21: (2,), 22: (2,), 23: (2,), 24: (6,), 25: (2,), 44: (2,), 60: (1,), 61: (1,)}
encode = msgspec.msgpack.encode


def expected(payload: bytes, role: str, opened: set[int]) -> tuple[str, int] | None:
    """Reason and number of refusals of this payload; None when it is accepted whole."""
    try:
        value = msgspec.msgpack.decode(payload)
    except Exception:  # noqa: BLE001 - whatever the decoder raises is the answer
        return "undecodable", 1
    if not _plain(value, 32):
        return "undecodable", 1
    if not isinstance(value, list) or not value:
        return "not_a_list", 1
    head = value[0]
    if not _int(head):
        return "bad_header", 1
    if head not in KNOWN:
        return "unknown_header", 1
    wrong = _sender(head, role)
    if wrong:
        return wrong, 1
    if len(value) not in ARITY.get(head, (1,)):
        return "arity", 1
    return _fields(head, value, opened)


def _sender(head: int, role: str) -> str:
    if head in {1, 26, 80, 81}:
        return "unexpected_header"
    if head == 0:
        return "role_conflict" if role == "engine" else ""
    if head == 60:
        return "" if role != "nobody" else "unknown_sender"
    wanted = "engine" if head in {21, 22} else "client"
    if role == wanted:
        return ""
    return "unknown_sender" if role == "nobody" else "wrong_direction"


def _fields(head: int, value: list[Any], opened: set[int]) -> tuple[str, int] | None:
    bad = ""
    if head == 0 and len(value) == 2 and not _map(value[1]):
        bad = "options"
    elif head in {20, 24}:
        bad = _request(head, value, opened)
    elif head in {23, 25} and not (_int(value[1]) and value[1] >= 0):
        bad = "id"
    elif head == 44 and not _int(value[1]):
        bad = "epoch"
    elif head in {21, 22}:
        if not isinstance(value[1], list):
            return "bad_item", 1
        count = sum(not _item(head, item) for item in value[1])
        return ("bad_item", count) if count else None
    if bad == "duplicate_id":
        return bad, 1
    return (f"bad_field:{bad}", 1) if bad else None


def _request(head: int, value: list[Any], opened: set[int]) -> str:
    number, prompt, sampling = value[1:4]
    if not (_int(number) and number >= 0):
        return "id"
    if number in opened:
        return "duplicate_id"
    if not (isinstance(prompt, (str, list)) and prompt) or (isinstance(prompt, list) and not all(map(_int, prompt))):
        return "prompt"
    if not _map(sampling):
        return "sampling"
    for key, least in (("streaming_interval", 1), ("top_n_logprobs", 0), ("num_tokens_to_generate", 0)):
        if key in sampling and not (_int(sampling[key]) and sampling[key] >= least):
            if key == "num_tokens_to_generate" and sampling[key] is None:
                continue
            return key
    if sampling.get("return_prompt_top_n_logprobs") and sampling.get("skip_prompt_log_probs"):
        return "return_prompt_top_n_logprobs"
    if any(key.startswith("_") or key in {"serialize", "deserialize", "add_attributes"} for key in sampling):
        return "sampling"
    if head == 20:
        return "multimodal" if len(value) == 5 and value[4] is not None and not _map(value[4]) else ""
    if not _map(value[4]):
        return "kv_meta"
    return "" if isinstance(value[5], list) and all(map(_int, value[5])) else "src_block_ids"


def _item(head: int, item: Any) -> bool:
    if not isinstance(item, dict) or not _int(item.get("request_id")):
        return False
    return head == 21 or isinstance(item.get("new_tokens"), list)


def _int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _plain(value: Any, depth: int) -> bool:
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return True
    if depth == 0 or not isinstance(value, (list, dict)):
        return False
    if isinstance(value, dict):
        return all(isinstance(key, (str, bytes)) and _plain(item, depth - 1) for key, item in value.items())
    return all(_plain(item, depth - 1) for item in value)


ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, float("nan"), "", "x", b"", b"\xff",
    [], [1], [True], [[]], {}, {"a": 1}, {"request_id": 1}, {"request_id": True, "new_tokens": []}, {b"k": 1},
)  # fmt: skip
BOMBS = (
    b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01", b"\x91" * 3000, b"\x81\xa1a" * 2000, b"\x92\x14\xd6\xff\0\0\0\0",
    b"\x92\x15\x81\x01\x02",
    b"\x92\x15\xa2\xff\xfe", b"\x92\x28\x81\x90\x01", b"\x91\x91" * 40 + b"\x90",
)  # fmt: skip


class Fuzz:
    """One seeded run. `round` sends one hostile message; honest traffic goes on by itself."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        options = Coordinator(block_tokens=4, allow_control=False, pending_max=100_000, clients_max=4096)
        self.there = Rehearsal(options, Affinity(max_blocks=30_000))
        self.there.engines(*ENGINES)
        self.there.clients(*HONEST, *HOSTILE)
        self.invalid: Counter[str] = Counter()
        self.sent = 0
        self.honest_sent = 0
        self.honest_done = 0
        self._numbers = dict.fromkeys(HONEST, 0)

    def run(self, messages: int) -> None:
        """Send this many hostile messages, then let everything end."""
        for _ in range(messages):
            self._hostile()
            self.sent += 1
            if self.sent % 20 == 0:
                self._honest()
        self._serve(everything=True)
        for client in HOSTILE:
            self.there.say(client, wire.DISCONNECT)
        self.there.wait(1.0)
        self._serve(everything=True)
        self._collect()

    def faults(self) -> list[str]:
        """Everything that is not as it must be; empty when the run was good."""
        door = self.there.door
        counted: Counter[str] = Counter()
        for (_, reason), count in door.tally.invalid.items():
            counted[reason] += count
        found = [
            f"{reason}: counted {counted[reason]}, sent {self.invalid[reason]}"
            for reason in sorted(counted.keys() | self.invalid.keys())
            if counted[reason] != self.invalid[reason]
        ]
        if self.honest_done != self.honest_sent:
            found.append(f"honest requests: {self.honest_sent} sent, {self.honest_done} answered")
        if self.there.leftovers():
            found.append(f"left over: {self.there.leftovers()}")
        if any(name not in {"ENGINE_REPLY", "ENGINE_REPLY_PARTIAL"} for name in door.tally.internal_errors):
            found.append(f"internal errors: {dict(door.tally.internal_errors)}")
        if len(door.roster) != len(ENGINES):
            found.append(f"engines: {len(door.roster)} of {len(ENGINES)} left")
        return found

    # -- hostile ------------------------------------------------------------------------------------------------------

    def _hostile(self) -> None:
        rng = self.rng
        there = self.there
        kind = rng.random()
        identity = rng.choice(HOSTILE) if kind < 0.6 else rng.choice(ENGINES) if kind < 0.85 else rng.randbytes(6)
        if identity in HOSTILE and there.door.clients.get(identity) is None:
            there.inbox.pop(identity, None)
            there.clients(identity)  # it had said goodbye; as a stranger it would soon be muted
        payload = self._payload()
        if rng.random() < 0.02:
            frames = rng.choice([[identity], [identity, payload, b""], [rng.randbytes(256), payload]])
            self.invalid["frame_count"] += 1
            there.carry(there.door.on_message(frames, there.now))
            return
        client = there.door.clients.get(identity)
        role = "client" if client else "engine" if identity in there.door.roster.live else "nobody"
        if not payload and role != "client":
            return  # a registration; strangers that register would get honest requests
        if payload[:2] == b"\x91\x3c" and role == "engine":
            return
        verdict = (
            ("role_conflict", 1) if not payload else expected(payload, role, set(client.open) if client else set())
        )
        if verdict is not None:
            self.invalid[verdict[0]] += verdict[1]
        if verdict is None and role != "engine":
            self._accepted(payload, role)
        there.say(identity, payload)

    def _accepted(self, payload: bytes, role: str) -> None:
        """Count what is valid and still not served here."""
        head = msgspec.msgpack.decode(payload)[0]
        if head in {24, 25}:
            self.invalid["not_served"] += 1
        elif head in SIGNALS or head in {44, 61}:
            self.invalid["not_allowed"] += 1
        elif head == 0 and role == "client":
            self.invalid["connected_already"] += 1

    def _payload(self) -> bytes:
        rng = self.rng
        kind = rng.random()
        if kind < 0.08:
            return rng.randbytes(rng.randrange(40))
        if kind < 0.12:
            return rng.choice(BOMBS)
        elements = self._legal()
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            self._mutate(elements)
        payload = encode(elements)
        kind = rng.random()
        if kind < 0.08:
            return payload[: rng.randrange(len(payload) + 1)]
        if kind < 0.12:
            return payload + rng.randbytes(1 + rng.randrange(3))
        if kind < 0.18:
            at = rng.randrange(len(payload))
            return payload[:at] + rng.randbytes(1) + payload[at + 1 :]
        return payload

    def _legal(self) -> list[Any]:
        rng = self.rng
        head = rng.choice((0, 1, 20, 20, 20, 21, 21, 22, 22, 23, 24, 25, 26, 44, *SIGNALS, 61, 80, 81))
        number = rng.randrange(50)
        sampling = {"num_tokens_to_generate": 4, "streaming": True, rng.choice(KEYS_POISON): rng.choice((1, 3))}
        prompt = rng.choice(("text", [1, 2, 3, 4, 5, 6, 7, 8], [rng.randrange(9) for _ in range(9)]))
        rest: dict[int, list[Any]] = {
            20: [number, prompt, sampling, rng.choice((None, {}))],
            21: [[{"request_id": rng.randrange(3000), "status": "COMPLETED"}]],
            22: [[{"request_id": rng.randrange(3000), "new_tokens": [1]}]],
            23: [number],
            24: [number, prompt, sampling, {}, [1]],
            25: [number],
            44: [number],
        }
        return [head, *rest.get(head, [])]

    def _mutate(self, elements: list[Any]) -> None:
        rng = self.rng
        kind = rng.randrange(5)
        odd = rng.choice(ODD)
        if kind == 0 and elements:
            elements[rng.randrange(len(elements))] = odd
        elif kind == 1 and elements:
            del elements[rng.randrange(len(elements))]
        elif kind == 2:
            elements.append(odd)
        elif kind == 3 and len(elements) > 3 and isinstance(elements[3], dict):
            key = rng.choice((*KEYS_POISON, "return_prompt_top_n_logprobs", "skip_prompt_log_probs", "_x", "serialize"))
            elements[3] = {**elements[3], key: odd}
        elif elements and isinstance(elements[-1], list):
            elements[-1] = [*elements[-1], odd]

    # -- honest -------------------------------------------------------------------------------------------------------

    def _honest(self) -> None:
        there = self.there
        client = self.rng.choice(HONEST)
        number = self._numbers[client]
        self._numbers[client] = number + 1
        there.say(client, wire.submit(number, [number % 7] * 12, {"streaming": True}))
        self.honest_sent += 1
        there.now += 0.01
        there.carry(there.door.tick(there.now))
        self._serve(everything=False)
        self._collect()

    def _serve(self, *, everything: bool) -> None:
        """Engines answer what they hold; now and then they leave something for later."""
        there = self.there
        for identity in ENGINES:
            there.inbox.pop(identity, None)
            engine = there.door.roster.live.get(identity)
            ready = list(engine.open) if engine is not None else []
            if not everything:
                ready = [number for number in ready if self.rng.random() < 0.7]
            for number in ready:
                # A partial of a request that the client aborted is dropped, and its final reply ends it.
                there.progress(identity, number)
                there.finish(identity, number)

    def _collect(self) -> None:
        there = self.there
        for client in HONEST:
            self.honest_done += sum(message[0] == 21 for message in there.read(client))
        for identity in list(there.inbox):
            if identity not in ENGINES and identity not in HONEST:
                there.inbox.pop(identity)

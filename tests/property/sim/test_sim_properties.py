"""The prefix store against brute force, tokens against their definition, and text that resumes exactly."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.sim import virtual
from turnout.sim.blocks import BlockStore, extend_chain
from turnout.sim.engine import EngineModel
from turnout.sim.options import EngineOptions
from turnout.sim.sequence import Work
from turnout.sim.text import pack, rendered_of

ENDS = frozenset(b" \n" + bytes(range(0xF8, 0x100)))


def generate(prompt: bytes, max_tokens: int, **options: Any) -> virtual.Generation:
    work = Work(prompt=prompt, tokens=pack(prompt), max_tokens=max_tokens)
    (only,) = virtual.run(EngineModel(EngineOptions(**options)), [(0.0, work)])
    return only


@settings(max_examples=60, deadline=None)
@given(prompt=st.binary(min_size=1, max_size=80), cut=st.integers(0, 60), name=st.sampled_from(["a", "b"]))
def test_generating_from_prompt_and_emitted_text_yields_exactly_the_rest(prompt: bytes, cut: int, name: str) -> None:
    whole = generate(prompt, 60, mean_output_tokens=30)
    emitted = whole.text[: 4 * min(cut, len(whole.token_at) - 1)]
    rest = generate(prompt + emitted.encode(), 60 - len(emitted) // 4, mean_output_tokens=30, name=name)
    assert (emitted + rest.text, rest.finish) == (whole.text, whole.finish)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_tokens_follow_their_definition(rendered: bytes) -> None:
    words: list[bytearray] = [bytearray()]
    for byte in rendered:
        words[-1].append(byte)
        if byte in ENDS:
            words.append(bytearray())
    pieces = [bytes(word[at : at + 4]) for word in words for at in range(0, len(word), 4)]
    assert pack(rendered) == b"".join(piece.ljust(4, b"\0") for piece in pieces)
    if b"\0" not in rendered:
        assert rendered_of(pack(rendered)) == rendered


class BruteForce:
    """The prefix store with lists: every block is a row (key, holders, last use)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: list[int] = []
        self.idle: list[int] = []
        self.partial = 0

    @property
    def used(self) -> int:
        return len(set(self.held)) + self.partial

    def evict(self) -> None:
        while self.used + len(self.idle) > self.capacity:
            self.idle.pop(0)


@settings(max_examples=80, deadline=None)
@given(
    capacity=st.integers(1, 12),
    moves=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 5)), max_size=40),
)
def test_the_store_equals_brute_force_and_never_exceeds_its_capacity(
    capacity: int, moves: list[tuple[int, int, int]]
) -> None:
    store, brute = BlockStore(capacity), BruteForce(capacity)
    live: list[tuple[list[int], int]] = []
    for family, length, choice in moves:
        if choice < 3:
            chain: list[int] = []
            # Chains of one family share all but their last block.
            extend_chain(chain, b"%d" % family * 4 * (length - 1) + b"%d" % choice * 4, 4, 0)
            found = store.found(chain)
            present = set(brute.held) | set(brute.idle)
            assert found == next((at for at, key in enumerate(chain) if key not in present), len(chain))
            waking = [key for key in chain[:found] if key in brute.idle]
            fits = brute.used + len(waking) + len(chain) - found <= capacity
            assert store.admit(chain[:found], len(chain) - found) == fits
            if not fits:
                continue
            brute.idle = [key for key in brute.idle if key not in waking]
            brute.held += chain[:found]
            brute.partial += len(chain) - found
            brute.evict()
            for key in chain[found:]:
                store.complete(key)
                brute.partial -= 1
                brute.held.append(key)
            live.append((chain, 0))
        elif choice == 3:
            assert store.take() == (brute.used < capacity)
            if brute.used < capacity:
                brute.partial += 1
                brute.evict()
                live.append(([], 1))
        elif live:
            chain, partial = live.pop(family % len(live))
            store.release(chain, partial)
            brute.partial -= partial
            for key in reversed(chain):
                brute.held.remove(key)
                if key not in brute.held:
                    brute.idle.append(key)
        assert (store.used, store.cached) == (brute.used, len(brute.idle))
        assert store.used + store.cached <= capacity

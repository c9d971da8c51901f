"""Token ids of a text prompt by an engine's own tokenise call, where some engine tells what its cache holds (§3.3).

A chat is matched exactly only by the tokens that the engine sees. The request waits for them for some milliseconds;
late, failing or unsupported means that it is matched by its text, as always: counted, never an error. What was
tokenised is remembered by its text key. Chats are tokenised only where that has proved to be true (`token_parity`).
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from turnout.core import options
from turnout.core.attempt import Attempt
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.registry import Pool
from turnout.core.scheduling.ask import Ask
from turnout.dialects.strict_json import spans
from turnout.gateway.asking import Asker
from turnout.gateway.token_parity import Parity, question
from turnout.gateway.upstream import Reach
from turnout.http.collected import Collected

if TYPE_CHECKING:
    from turnout.gateway.run import Run

PATH: Final = "/tokenize"
_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"
# What decides a chat's tokens, as vLLM's call takes it; SGLang's takes a prompt only, the others have none.
_MEMBERS: Final = {
    ("auto", _CHAT): ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"),
    ("auto", _COMPLETION): ("prompt",),
    ("sglang", _COMPLETION): ("prompt",),
}
_OK, _NO_SUCH_CALL = 200, frozenset((404, 405, 501))
_BODY_MAX_BYTES: Final = 16 * 1024 * 1024
_CONVERSATIONS_MAX, _TOKENS_MAX = 16_384, 16_000_000


class _Tokens(msgspec.Struct, gc=False):
    tokens: list[int]


_read = msgspec.json.Decoder(_Tokens).decode


class Remembered:
    """Token ids by the last text key of their prompt: so many conversations, and so many tokens, at most."""

    def __init__(self, conversations: int = _CONVERSATIONS_MAX, tokens: int = _TOKENS_MAX) -> None:
        self._conversations, self._tokens = conversations, tokens
        self._known: OrderedDict[int, array[int]] = OrderedDict()
        self._held = 0

    def put(self, key: int, tokens: list[int]) -> None:
        """Keep the tokens of one prompt, at the expense of those unused for longest."""
        before = self._known.pop(key, None)
        self._held += len(tokens) - (len(before) if before is not None else 0)
        self._known[key] = array("I", tokens)
        while len(self._known) > self._conversations or self._held > self._tokens:
            self._held -= len(self._known.popitem(last=False)[1])

    def use(self, key: int) -> tuple[int, ...] | None:
        """Return them; None when they are not known."""
        found = self._known.get(key)
        if found is None:
            return None
        self._known.move_to_end(key)
        return tuple(found)


class Tokenizing:
    """Lives as long as the gateway; `counts` by result: asked, remembered, late, failed, unsupported, no_parity."""

    def __init__(self, prefix: options.Prefix, asker: Callable[[], Asker], upstreams: dict[str, Reach]) -> None:
        self.counts: Counter[str] = Counter()
        self.parity: dict[str, tuple[int, Parity]] = {}
        """By endpoint: incarnation, and what it has proved."""
        self._prefix, self._asker, self._upstreams = prefix, asker, upstreams
        self._unsupported: dict[str, int] = {}
        self._remembered = Remembered()

    def waits(self, run: Run, pool: Pool, ask: Ask, attempts: list[Attempt] | None) -> bool:
        """Tell whether the run has to wait for its tokens; it enters when it has them, or need not wait any longer."""
        request = run.request
        if request.prompt.tokens or not ask.keys or ask.tokens < self._prefix.tokenize_min_tokens:
            return False
        if self._prefix.tenant_salt and not request.cache_salt:
            return False  # events name no tenant, so they could not match
        known = self._remembered.use(ask.keys[-1])
        if known is not None:
            self.counts["remembered"] += 1
            self._told(run, pool, ask, known)
            return False
        exact = [member for member in pool.members if member.mode is Mode.EXACT]
        if not exact:
            return False
        endpoint = next((member for member in exact if self._speaks(member, request.path)), None)
        if endpoint is None:
            self.counts["unsupported"] += 1
            return False
        parity = self._parity(endpoint, run.model) if request.path == _CHAT else None
        if parity is not None and not parity.usable:
            self.counts["no_parity"] += 1
            return False

        def answered(tokens: list[int] | None, why: str) -> None:
            self.counts["asked" if tokens else why] += 1
            if run.outcome is not None:
                return
            if tokens:
                if parity is not None:
                    parity.counted(run, len(tokens))
                self._remembered.put(ask.keys[-1], tokens)
                self._told(run, pool, ask, tuple(tokens))
            run.enter(ask, pool, attempts, run.clock())

        run.gateway.runs.add(run)
        run.client.attach(run)
        body = _body(request.body, _MEMBERS[_family(endpoint), request.path], _name(endpoint, run.model))
        self._post(endpoint, body, answered)
        return True

    def stats(self) -> dict[str, dict[str, int]]:
        """Return the figures by the `source` keys of the metrics catalogue."""
        proved = {name: parity.holds for name, (_, parity) in self.parity.items()}
        return {
            "tokenized": dict(self.counts),
            "render_parity": {name: int(holds) for name, holds in proved.items() if holds is not None},
        }

    def _told(self, run: Run, pool: Pool, ask: Ask, tokens: tuple[int, ...]) -> None:
        """Ask with the tokens; own history stays in the space of text, where it is now known what a block is worth."""
        ask.chains = self._asker().engine_chains(run, pool, tokens)
        ask.block_tokens *= len(tokens) / ask.tokens
        ask.tokens = len(tokens)

    def _speaks(self, endpoint: EndpointState, path: str) -> bool:
        if self._unsupported.get(endpoint.name) == endpoint.incarnation or endpoint.unreachable:
            return False
        return (_family(endpoint), path) in _MEMBERS

    def _parity(self, endpoint: EndpointState, model: str) -> Parity:
        """What this incarnation has proved; the first request that asks starts the proof."""
        incarnation, known = self.parity.get(endpoint.name, (0, None))
        if known is not None and incarnation == endpoint.incarnation:
            return known
        parity = Parity()
        self.parity[endpoint.name] = (endpoint.incarnation, parity)
        name = _name(endpoint, model)

        def unproved() -> None:
            if self.parity.get(endpoint.name, (0, None))[1] is parity:
                del self.parity[endpoint.name]  # no answer: the next request asks again

        def begun(tokens: list[int] | None, why: str) -> None:  # noqa: ARG001
            if tokens:
                parity.begun(tokens)
                self._post(endpoint, question(name, whole=True), whole)
            else:
                unproved()

        def whole(tokens: list[int] | None, why: str) -> None:  # noqa: ARG001
            if tokens:
                parity.whole(tokens)
            else:
                unproved()

        self._post(endpoint, question(name, whole=False), begun)
        return parity

    def _post(self, endpoint: EndpointState, body: bytes, done: Callable[[list[int] | None, str], None]) -> None:
        upstream = self._upstreams[endpoint.name]
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (upstream.head(PATH), len(body))

        def answered(answer: tuple[int, bytes] | None, why: str) -> None:
            if answer is not None and answer[0] in _NO_SUCH_CALL:
                self._unsupported[endpoint.name] = endpoint.incarnation
                why = "unsupported"
            done(_tokens(answer), why)

        question = _Question(answered)
        upstream.pool.request(head + body, question.answer)
        question.within(self._prefix.tokenize_timeout_ms / 1000, lambda: upstream.pool.cancel(question.answer))


class _Question:
    """An answer that is waited for so long; `done` is called exactly once, on the loop."""

    def __init__(self, done: Callable[[tuple[int, bytes] | None, str], None]) -> None:
        self.answer = Collected(_BODY_MAX_BYTES, lambda found: self._end(found, "failed"))
        self._done = done
        self._over = False
        self._timer: asyncio.TimerHandle | None = None

    def within(self, seconds: float, cancel: Callable[[], None]) -> None:
        """Begin to wait; what comes later than this counts for nothing."""
        if not self._over:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._late, cancel)

    def _late(self, cancel: Callable[[], None]) -> None:
        cancel()
        self._end(None, "late")

    def _end(self, answer: tuple[int, bytes] | None, why: str) -> None:
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        # Not from within the connection's own callback: what follows may use that connection.
        asyncio.get_running_loop().call_soon(self._done, answer, why)


def _family(endpoint: EndpointState) -> str:
    return "auto" if endpoint.family == "vllm" else endpoint.family


def _name(endpoint: EndpointState, model: str) -> bytes:
    return msgspec.json.encode(endpoint.served_as.get(model, model))


def _body(body: bytes, members: tuple[str, ...], model: bytes) -> bytes:
    """Return the call's body: the request's own bytes of what decides its tokens."""
    kept = [b'"%b":%b' % (key.encode(), body[start:end]) for key, start, end in spans(body) if key in members]
    return b'{"model":%b,%b}' % (model, b",".join(kept))


def _tokens(answer: tuple[int, bytes] | None) -> list[int] | None:
    if answer is None or answer[0] != _OK:
        return None
    try:
        tokens = _read(answer[1]).tokens
    except (msgspec.DecodeError, RecursionError):
        return None
    return tokens if tokens and min(tokens) >= 0 and max(tokens) < 2**32 else None

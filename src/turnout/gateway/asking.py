"""What scheduling is asked of one run: keys in each space that its pool needs, tokens, session (scheduling §1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import xxhash

from turnout.core import options
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.prefix.keys import TextChains, root_key, token_keys
from turnout.core.request import Request
from turnout.core.scheduling.ask import Ask
from turnout.gateway.catalogue import Catalogue
from turnout.gateway.legs_answer import mark_whole
from turnout.gateway.prepare import Prepared
from turnout.gateway.principals import Principal
from turnout.gateway.sessions import session_of

_ROOTS_MAX: Final = 4096


class Asked:
    """What is asked: a run, or a question that only wants to know what a run would get."""

    __slots__ = ("floor", "model", "prepared", "principal", "request", "session")

    def __init__(
        self,
        request: Request,
        prepared: Prepared,
        principal: Principal,
        order: Sequence[str] | None,
        model: str = "",
        floor: int = 0,
    ) -> None:
        """Ask for a request with its head's meaning; `order` is `scheduling.session_keys`."""
        self.request = request
        self.prepared = prepared
        self.principal = principal
        self.model = model
        """The resolved model."""
        self.floor = floor
        """The least number of tokens that the prompt can have."""
        self.session = session_of(prepared, request, order)
        """Who the request belongs to, by header, body, or another router's header (scheduling §5.3)."""


class Asker:
    """Hashes prompts; remembers the roots of key chains, which many requests share."""

    def __init__(self, prefix: options.Prefix, fleet: Fleet, catalogue: Catalogue) -> None:
        self._prefix, self._fleet, self._catalogue = prefix, fleet, catalogue
        self._block_bytes, self._block_tokens = prefix.block_bytes, prefix.block_tokens
        self._hashes = prefix.max_blocks != 0
        self._roots: dict[tuple[str, ...], int] = {}
        self._chains = TextChains(prefix.block_bytes)

    def ask(self, run: Asked, pool: Pool) -> Ask:
        """Return what scheduling needs to know about a run."""
        request, prompt = run.request, run.request.prompt
        session = run.session
        session_key = xxhash.xxh3_64_intdigest(f"{run.principal.tenant}\0{session}".encode()) if session else 0
        keys: list[int] = []
        chains: dict[int, list[int]] = {}
        tokens = len(prompt.tokens)
        prompt_bytes = len(prompt.rendered)
        prefix = self._prefix
        block_tokens = float(self._block_tokens)
        if self._hashes:
            if prompt.rendered:
                if len(prompt.rendered) >= self._block_bytes:
                    root = self._root(run, "text")
                    keys = self._chains.keys(prompt.rendered, root, prefix.max_blocks_per_request)
            elif tokens >= self._block_tokens:
                root = self._root(run, "tok")
                keys = token_keys(prompt.tokens, root, prefix.block_tokens, prefix.max_blocks_per_request)
            if tokens and self._fleet.exact.live:
                chains = self.engine_chains(run, pool, prompt.tokens)
        if not tokens:
            per_token = pool.bytes_per_token.value
            tokens = math.ceil(prompt_bytes / per_token) or run.floor
            block_tokens = self._block_bytes / per_token
        ask = Ask(pool.model, keys, tokens, run.floor, (), session_key, relax=True, block_tokens=block_tokens)
        ask.policy = run.prepared.policy
        ask.prompt_bytes = prompt_bytes
        ask.streams = request.stream
        if chains:
            ask.chains = chains
        if pool.tool_weak and request.tools_requested:
            ask.weak = pool.tool_weak
        if request.dialect not in pool.dialects:
            ask.dialect = request.dialect
        if pool.pairs is not None:
            mark_whole(ask, request)
        return ask

    def engine_chains(self, run: Asked, pool: Pool, tokens: tuple[int, ...]) -> dict[int, list[int]]:
        """Keys of a prompt's tokens in the block sizes of those engines of the pool that tell what they hold.

        Events name no tenant: with tenant salts only requests that carry their own salt can match them.
        """
        if self._prefix.tenant_salt and not run.request.cache_salt:
            return {}
        entry = self._catalogue.entry(run.model)
        chains: dict[int, list[int]] = {}
        for member in pool.members:
            size = member.block_tokens
            if member.mode and size not in chains:
                root = root_key(
                    entry.id,
                    space="tok",
                    block=size,
                    weight_version=entry.weight_version,
                    cache_salt=run.request.cache_salt,
                )
                chains[size] = token_keys(tokens, root, size, self._prefix.max_blocks_per_request)
        return chains

    def _root(self, run: Asked, space: str) -> int:
        request = run.request
        tenant = run.principal.tenant if self._prefix.tenant_salt else ""
        entry = self._catalogue.entry(run.model)
        key = (space, entry.id, entry.weight_version, request.cache_salt, tenant, request.render_salt)
        root = self._roots.get(key)
        if root is None:
            if len(self._roots) >= _ROOTS_MAX:
                self._roots.clear()
            root = self._roots[key] = root_key(
                entry.id,
                space=space,
                block=self._prefix.block_bytes if space == "text" else self._prefix.block_tokens,
                weight_version=entry.weight_version,
                cache_salt=request.cache_salt,
                tenant=tenant,
                render_salt=request.render_salt if space == "text" else "",
            )
        return root

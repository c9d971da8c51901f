"""From a prompt to the block keys of Megatron's hash chain (scheduling §1.2), and whether an engine hashes as we do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from turnout.coordinator.peers import Attempt
from turnout.core.prefix.keys import meg_hashes, meg_keys, root_key

Tokenize = Callable[[str], Sequence[int]]
_U64 = 2**64


class Blocks:
    """The chain of one door. A new generation epoch changes every key, so that nothing older can match."""

    def __init__(
        self, model: str, block_tokens: int, wanted: int, tokenize: Tokenize | None, *, counts: bool = False
    ) -> None:
        """`counts`: text is tokenised even where no key of it is wanted."""
        self.block_tokens = block_tokens
        self.tokenize = tokenize
        self._model = model
        self._wanted = wanted
        self._counts = counts
        self.root = 0
        self.new_epoch(None)

    def new_epoch(self, epoch: int | None) -> None:
        """Start over under this weight version."""
        version = "" if epoch is None else str(epoch)
        self.root = root_key(self._model, space="meg", block=self.block_tokens, weight_version=version)

    def keys(self, prompt: str | Sequence[int]) -> tuple[list[int], int]:
        """Keys of the complete blocks and number of tokens; nothing for text that nobody here can tokenise."""
        if isinstance(prompt, str):
            if self.tokenize is None or not (self._wanted or self._counts):
                return [], 0
            prompt = self.tokenize(prompt)
        if not self._wanted:
            return [], len(prompt)
        return meg_keys(meg_hashes(prompt, self.block_tokens, self._wanted), self.root), len(prompt)

    def compared(self, finished: list[dict[str, Any]], attempts: Mapping[int, Attempt]) -> bool | None:
        """Whether the first finished request that can be compared hashes as we do; None when none can."""
        for item in finished:
            attempt = attempts.get(item["request_id"])
            if attempt is not None and attempt.request.root == self.root:
                agrees = self.agrees(item, attempt.request.keys)
                if agrees is not None:
                    return agrees
        return None

    def agrees(self, finished: dict[str, Any], keys: list[int]) -> bool | None:
        """Compare an engine's block hashes with the keys of the request; None when it reports none that compare."""
        hashes = finished.get("precomputed_block_hashes")
        if not keys or type(hashes) is not list or not hashes or finished.get("block_size_tokens") != self.block_tokens:
            return None
        if not all(type(value) is int for value in hashes):
            return None
        size = min(len(hashes), len(keys))
        return meg_keys([value % _U64 for value in hashes[:size]], self.root) == keys[:size]

"""Keeps loaded bundles current: looks at the directory every so often, and at once when it is asked to.

Loading and checking happen in a thread; the loop only swaps one reference. Whatever fails leaves the old state in force
and is reported once per distinct complaint.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from turnout.bundles.directory import BundleDirectory
from turnout.bundles.fault import BundleError
from turnout.bundles.library import Library
from turnout.bundles.reading import Settings
from turnout.core.selection.bundle import Price
from turnout.core.selection.embedder import Embedder
from turnout.core.selection.knobs import Preset
from turnout.core.selection.loaded import BundleSet
from turnout.core.selection_options import Selection

POLL_S = 30.0


def open_library(
    options: Selection, embedder: Embedder, routable: frozenset[str], prices: Callable[[], Mapping[str, Price]] = dict
) -> Library:
    """Load what the options name.

    Raises:
        BundleError: the version in force cannot be used; the start is refused.

    """
    presets = {
        name: Preset(preset.alpha, preset.speed_weight, preset.output_cost_ratio)
        for name, preset in options.presets.items()
    }
    library = Library(
        BundleDirectory(Path(options.bundle_dir)),
        version=options.version,
        build_versions="all" if "all" in options.build_versions else options.build_versions,
        settings=Settings(routable, options.top_p, presets, embedder),
        prices=prices,
    )
    library.load()
    return library


class Watch:
    """One task that reloads a library."""

    def __init__(
        self,
        library: Library,
        *,
        changed: Callable[[BundleSet], None],
        complain: Callable[[str], None],
        poll_s: float = POLL_S,
    ) -> None:
        self._library, self._changed, self._complain, self._poll_s = library, changed, complain, poll_s
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.complaint = ""
        """Why the latest look was refused; empty when it was not."""
        self._one_at_a_time = asyncio.Lock()
        self.results: Counter[str] = Counter()
        """Looks at the directory, by what came of them."""

    def start(self) -> None:
        """Begin to watch; what could not be loaded at the start is told."""
        if self._library.current is not None:
            for problem in self._library.current.problems:
                self._complain(problem)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def reload_now(self) -> None:
        """Look at the directory without waiting for the next time."""
        self._asked.set()

    async def look(self) -> str:
        """Look at the directory; "loaded", "unchanged", or "refused" with the reason in `complaint`."""
        async with self._one_at_a_time:
            try:
                result = await asyncio.to_thread(self._library.reload)
            except BundleError as error:
                self.results["refused"] += 1
                if str(error) != self.complaint:
                    self.complaint = str(error)
                    self._complain(self.complaint)
                return "refused"
            self.complaint = ""
            self.results[result] += 1
            if result == "loaded" and self._library.current is not None:
                self._changed(self._library.current)
            return result

    async def reloaded(self) -> dict[str, Any]:
        """Look at the directory and return what came of it, with the versions in force."""
        result = await self.look()
        current = self._library.current
        found: dict[str, Any] = {"result": result}
        if result == "refused":
            found["problem"] = self.complaint
        if current is not None:
            versions = {name: blend.bundle.digest for name, blend in sorted(current.blends.items())}
            found |= {"default": current.default, "versions": versions, "problems": list(current.problems)}
        return found

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._asked.wait()
            self._asked.clear()
            await self.look()

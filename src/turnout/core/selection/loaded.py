"""The bundles that requests may use: one immutable value, swapped as a whole, so a request sees one state."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from turnout.core.selection.blend import Blend


class BundleSet(msgspec.Struct, frozen=True):
    """The default version and all others that were built; `problems` are extras that could not be."""

    default: str
    blends: Mapping[str, Blend]
    problems: tuple[str, ...] = ()

    def blend(self, version: str = "") -> Blend | None:
        """Return a version's blend, the default's when none is named; None when it is not loaded."""
        return self.blends.get(version or self.default)

    def presets(self) -> frozenset[str]:
        """Return the presets of the default version."""
        return frozenset(self.blends[self.default].bundle.defaults.presets)

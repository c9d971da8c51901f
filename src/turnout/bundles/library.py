"""The loaded versions and their reload: everything is read and checked first, then one reference is swapped.

Whatever goes wrong in a reload leaves the old state in force. `load` and `reload` block; a server calls them off its
event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from turnout.bundles.directory import LATEST, BundleDirectory
from turnout.bundles.fault import BundleError
from turnout.bundles.reading import Settings, digest_of, parse
from turnout.core.selection.blend import Blend
from turnout.core.selection.bundle import Bundle, Price, with_prices
from turnout.core.selection.loaded import BundleSet

Result = Literal["loaded", "unchanged"]


class Library:
    """Reads the default version and the extras of a directory and keeps them current."""

    def __init__(
        self,
        directory: BundleDirectory,
        *,
        version: str = LATEST,
        build_versions: Sequence[str] | Literal["all"] = (),
        settings: Settings = Settings(),  # noqa: B008 - frozen
        prices: Callable[[], Mapping[str, Price]] = dict,
    ) -> None:
        self._directory, self._version, self._extras, self._settings = directory, version, build_versions, settings
        self._prices = prices
        self._parsed: dict[str, Bundle] = {}
        self._book: Mapping[str, Price] = {}
        self.current: BundleSet | None = None

    def load(self) -> BundleSet:
        """Load everything for the first time.

        Raises:
            BundleError: the default version cannot be used. A bad extra is reported in `problems` and left out.

        """
        self.reload()
        assert self.current is not None
        return self.current

    def reload(self) -> Result:
        """Read the directory again and swap the snapshot if anything changed.

        Raises:
            BundleError: the default cannot be used, or other bytes stand under a loaded version's name; the old
                snapshot stays in force.

        """
        default, bundle = self._build(self._version)
        parsed, problems = {default: bundle}, []
        wanted = self._directory.versions() if self._extras == "all" else self._extras
        for name in wanted:
            try:
                version, extra = self._build(name)
            except BundleError as error:
                if error.field == "bundle_mutated":
                    raise
                problems.append(str(error))
            else:
                parsed[version] = extra
        book = dict(self._prices())
        current = self.current
        same = {name: found.digest for name, found in parsed.items()} == {
            name: found.digest for name, found in self._parsed.items()
        }
        if current is not None and same and current.default == default and book == self._book:
            return "unchanged"
        blends = {
            name: current.blends[name]  # the kept weights stay kept
            if current is not None and self._parsed.get(name) is found and book == self._book
            else Blend(with_prices(found, book))
            for name, found in parsed.items()
        }
        self._parsed, self._book = parsed, book
        self.current = BundleSet(default, blends, tuple(problems))
        return "loaded"

    def _build(self, wanted: str) -> tuple[str, Bundle]:
        version, files = self._directory.read(wanted)
        loaded = self._parsed.get(version)
        if loaded is not None:
            digest = digest_of(files)
            if loaded.digest != digest:
                raise BundleError(
                    version, "", "bundle_mutated", digest[:12], f"the digest {loaded.digest[:12]} that was loaded"
                )
            return version, loaded
        return version, parse(version, files, self._settings)

"""What is wrong with a bundle, in one form: version, file, field, the value seen, the value wanted."""

from __future__ import annotations

from turnout.core.selection.controls import shown


class BundleError(Exception):
    """A bundle that cannot be used. A request never causes it: whoever meets it answers 503, not 400."""

    def __init__(self, version: str, file: str, field: str, seen: object, wanted: str) -> None:
        self.version, self.file, self.field, self.seen, self.wanted = version, file, field, shown(seen), wanted
        where = ": ".join(part for part in (f"bundle {version}", file, field) if part)
        super().__init__(f"{where}: expected {wanted}, got {self.seen}")

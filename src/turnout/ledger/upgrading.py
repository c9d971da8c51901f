"""A file is made or migrated by a process that ends with it: what that takes is not kept by one that serves.

The schema is SQLAlchemy's and Alembic's; both together are larger than the process of the ledger without them. What
happens is told as lines of JSON on standard output, the outcome last.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from turnout.ledger import upgrade
from turnout.ledger.sink import LedgerRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.ledger.upgrade import OnEvent

_CODE: Final = "import sys; from turnout.ledger.upgrading import main; main(sys.argv[1], int(sys.argv[2]))"


class UpgradeFailedError(Exception):
    """The file cannot be created, copied or changed at the moment."""


class Line(msgspec.Struct, frozen=True):
    """One event with its fields, or one of the outcomes `done`, `refused` and `failed`."""

    name: str
    fields: dict[str, Any] = {}
    error: str = ""


_line: Final = msgspec.json.Decoder(Line).decode


def prepare(path: Path, *, clock_ms: Callable[[], int], on_event: OnEvent) -> None:
    """Do as `upgrade.prepare` does, in a process of its own where there is something to do.

    Raises:
        LedgerRefusedError: its schema is newer than this code.
        UpgradeFailedError: the file cannot be created, copied or changed at the moment.
    """
    if upgrade.check(path).revision == upgrade.HEAD:
        return
    with subprocess.Popen(  # noqa: S603 - this interpreter and code of our own
        [sys.executable, "-P", "-c", _CODE, str(path), str(clock_ms())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None, "it is a pipe"
        for told in process.stdout:
            line = _line(told)
            if line.name == "done":
                return
            if line.name == "refused":
                raise LedgerRefusedError(line.error)
            if line.name == "failed":
                raise UpgradeFailedError(line.error)
            on_event(line.name, **line.fields)
    raise UpgradeFailedError(f"the process that upgrades {path} ended with {process.returncode}")


def main(path: str, now_ms: int) -> None:
    """Prepare a file, and tell about it."""
    try:
        upgrade.prepare(Path(path), clock_ms=lambda: now_ms, on_event=_tell_event)
    except LedgerRefusedError as error:
        _tell(Line("refused", error=str(error)))
    except Exception as error:  # noqa: BLE001 - whoever waits tries again later
        _tell(Line("failed", error=str(getattr(error, "orig", None) or error)))
    else:
        _tell(Line("done"))


def _tell_event(name: str, /, **fields: object) -> None:
    _tell(Line(name, fields))


def _tell(line: Line) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits any more; what was begun is finished all the same
        sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
        sys.stdout.buffer.flush()

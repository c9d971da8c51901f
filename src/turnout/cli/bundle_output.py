"""What the bundle verbs share on the terminal: progress on standard error, tables on standard output, exit codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from turnout.bundles.directory import BundleDirectory
from turnout.bundles.fault import BundleError
from turnout.bundles.fitting.build import Price
from turnout.bundles.fitting.labels import LabelError
from turnout.bundles.reading import Settings, parse
from turnout.core.selection.bundle import Bundle
from turnout.core.selection.embedder import HASHGRAM_ID, Embedder, Hashgram

BAD_INPUT = 2
MAX_PROMPT_BYTES = 1024

Report = Callable[[int, int], object]


def exit_with(work: Callable[[], int]) -> None:
    """Run a verb; its result is the exit code, bad input is told in one line."""
    try:
        code = work()
    except (BundleError, LabelError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    if code:
        raise typer.Exit(code)


@contextmanager
def progress() -> Iterator[Callable[[str], Report]]:
    """Show bars on standard error, only on a terminal; `start(name)` returns the bar's report function."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def start(name: str) -> Report:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield start


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return aligned text: the first column left, all others right."""
    cells = [list(map(str, head)), *[[cell(value) for value in row] for row in rows]]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    lines = [
        "  ".join(
            text.ljust(width) if at == 0 else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


def cell(value: object) -> str:
    """Return one value as a table shows it."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def percent(value: float) -> str:
    """Return a share as a table shows it."""
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def prices_of(options: Sequence[str]) -> dict[str, Price]:
    """Return the prices given as MODEL=IN,OUT.

    Raises:
        LabelError: another form, or a number that is no price.

    """
    found = {}
    for option in options:
        model, equals, numbers = option.rpartition("=")
        try:
            price = Price(*[float(number) for number in numbers.split(",")])
        except (TypeError, ValueError):
            price = Price(math.nan, math.nan)
        if not equals or not model or not (0 <= price.input < math.inf and 0 <= price.output < math.inf):
            raise LabelError(f"--price: expected MODEL=IN,OUT in USD per 1M tokens, got {option!r:.64}")
        found[model] = price
    return found


def embedder_in(folder: Path | None) -> Embedder:
    """Return what a fit embeds with: an exported encoder, else the built-in.

    Raises:
        BundleError: the folder or the extra's libraries cannot be used.

    """
    if folder is None:
        return Hashgram()
    from turnout.bundles.onnx import open_onnx  # the extra's libraries load with it

    return open_onnx(folder)


def embedder_of(name: str, folders: Sequence[Path] = ()) -> Embedder:
    """Return the embedder that a bundle was fitted with.

    Raises:
        LabelError: it is neither the built-in nor in one of the folders.
        BundleError: a folder or the extra's libraries cannot be used.

    """
    if name == HASHGRAM_ID:
        return Hashgram()
    given = [embedder_in(folder) for folder in folders]
    for found in given:
        if found.id == name:
            return found
    seen = ", ".join(found.id for found in given) or "none"
    raise LabelError(f"--embedder: expected the folder of {name}, which the bundle was fitted with, got {seen}")


def load(directory: Path, version: str) -> Bundle:
    """Load a version with all of its registry's models as deployed."""
    name, files = BundleDirectory(directory).read(version)
    return parse(name, files, Settings())

"""Entry of the command `turnout`: the form that production starts goes straight to its verb, the rest to the parser.

The parser library costs 0.1 s and 17 MB, for which a router that stays up for weeks has no use.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the verb that `arguments` (default: those of the process) name."""
    match list(sys.argv[1:] if arguments is None else arguments):
        case ["serve", "-c" | "--config", file] if not file.startswith("-"):
            from turnout.cli.serve import serve

            serve(Path(file))
        case others:
            from turnout.cli.verbs import app

            app(others, prog_name="turnout")

"""`turnout check`: say whether a configuration is usable, and where each value in force comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from turnout.config.effective import render
from turnout.config.errors import ConfigError
from turnout.config.load import load

WRONG_STATUS = 2


def check(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration, a TOML file.")],
) -> None:
    """Validate a configuration and print every value in force with its origin; exit 2 when it is wrong.

    Problems go to standard error, one a line: file, line, key, value seen, what was expected.

    Examples:
      turnout check -c turnout.toml
      TURNOUT__LOG__LEVEL=debug turnout check -c turnout.toml | grep environment
    """
    try:
        loaded = load(config, os.environ)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        count = len(error.problems)
        typer.echo(f"{count} problem{'s' if count > 1 else ''} found", err=True)
        raise typer.Exit(WRONG_STATUS) from None
    typer.echo(render(loaded), nl=False)

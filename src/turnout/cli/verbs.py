"""The verbs with their help; each module is imported only when its verb is asked for, or all for the overview."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from turnout import __version__, compiled

# Verb → module and attribute: a function with typer options, or a Typer with verbs of its own.
_VERBS = {
    "serve": ("turnout.cli.verbs", "serve"),
    "demo": ("turnout.cli.demo", "demo"),
    "engine": ("turnout.cli.engine", "engine"),
    "replay": ("turnout.cli.replay", "replay"),
    "route": ("turnout.cli.route", "route"),
    "top": ("turnout.cli.top", "top"),
    "sim": ("turnout.cli.sim", "sim"),
    "check": ("turnout.cli.check", "check"),
    "keys": ("turnout.cli.keys", "app"),
    "ledger": ("turnout.cli.ledger", "app"),
    "bundle": ("turnout.cli.bundle", "app"),
}

ConfigFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration, a TOML file.")]


class _Verbs(TyperGroup):
    """A group that imports a verb's module on first use."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - signature of the base class
        return list(_VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - signature of the base class
        if cmd_name not in _VERBS:
            return None
        module, attribute = _VERBS[cmd_name]
        target = getattr(importlib.import_module(module), attribute)
        verb = target if isinstance(target, typer.Typer) else _single(cmd_name, target)
        command = typer.main.get_command(verb)
        command.name = cmd_name
        return command


# Without pretty exceptions: their dump of local variables would print credentials.
app = typer.Typer(cls=_Verbs, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer hands the flag over like this
    if wanted:
        print(f"turnout {__version__} (hot path {compiled.state()})")
        raise typer.Exit


@app.callback()
def turnout(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The router in front of language-model fleets.

    \b
    Examples:
      turnout demo --for 10s                     see it work
      turnout keys new --name me --tenant team   make an API key
      turnout check -c turnout.toml              validate a configuration
      turnout serve -c turnout.toml              run the router
    """  # noqa: D301 - \b keeps the lines of the examples


def serve(config: ConfigFile) -> None:
    """Run the router until SIGTERM or Ctrl-C; exit 2 when the configuration is wrong.

    Examples:
      turnout serve -c turnout.toml
      TURNOUT__SERVER__LISTEN=127.0.0.1:9000 turnout serve -c turnout.toml
    """
    from turnout.cli import serve as verb

    verb.serve(config)


def _single(name: str, function: Callable[..., None]) -> typer.Typer:
    """Wrap one function as a Typer, and keep the lines of its examples apart in the help."""
    text = (inspect.getdoc(function) or "").replace("\n\nExamples:", "\n\n\b\nExamples:")
    verb = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    verb.command(name, help=text)(function)
    return verb

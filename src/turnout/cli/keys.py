"""`turnout keys`: make an API key, or compute the digest of one. A key is shown once and stored nowhere (K3)."""

from __future__ import annotations

import hashlib
import secrets
import sys
from typing import Annotated

import typer

from turnout.config.errors import literal

KEY_MARK = "tt-"
KEY_BYTES = 32  # 256 bits: a digest without a salt is safe only for keys that nobody can guess
DISPLAY_CHARACTERS = 8
KEY_MAX_BYTES = 256  # K5: longer ones are refused on the wire

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def keys() -> None:
    """Make API keys and their digests.

    \b
    Examples:
      turnout keys new --name laptop --tenant research
      printf %s "$KEY" | turnout keys hash
    """  # noqa: D301 - \b keeps the lines of the examples


@app.command("new")
def new(
    name: Annotated[str, typer.Option(help="Unique name of the key, shown in the ledger.")] = "default",
    tenant: Annotated[str, typer.Option(help="Whose requests these are.")] = "default",
) -> None:
    """Print a new key, its digest, and the table to paste into the configuration.

    \b
    Examples:
      turnout keys new --name laptop --tenant research
    """  # noqa: D301 - \b keeps the lines of the examples
    key = new_key()
    typer.echo(f"key     {key}")
    typer.echo(f"digest  {digest_of(key)}")
    typer.echo("\nThe key is not stored anywhere: keep it now. Paste this into the configuration:\n")
    typer.echo(table(name, tenant, key))


@app.command("hash")
def hash_key(
    key: Annotated[str | None, typer.Argument(help="The key; read from standard input when absent.")] = None,
) -> None:
    """Print the digest of a key.

    \b
    Examples:
      printf %s "$KEY" | turnout keys hash      keeps the key out of the shell's history
      turnout keys hash tt-…
    """  # noqa: D301 - \b keeps the lines of the examples
    text = (sys.stdin.readline(KEY_MAX_BYTES + 2) if key is None else key).strip()
    # K5: the wire refuses anything else, so a digest of it could never match.
    if not text or not text.isascii() or len(text) > KEY_MAX_BYTES or any(letter.isspace() for letter in text):
        typer.echo(f"error: expected a key of 1 to {KEY_MAX_BYTES} ASCII characters without blanks", err=True)
        raise typer.Exit(2)
    typer.echo(digest_of(text))


def new_key() -> str:
    """Make a key with 256 bits of entropy."""
    return KEY_MARK + secrets.token_urlsafe(KEY_BYTES)


def digest_of(key: str) -> str:
    """Return `sha256:` and the hex digest of the whole key, as `key.digest` wants it."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def table(name: str, tenant: str, key: str) -> str:
    """Write the `[[key]]` table of a key; it holds the digest and the display prefix only."""
    fields = {"name": name, "tenant": tenant, "digest": digest_of(key), "prefix": key[:DISPLAY_CHARACTERS]}
    return "\n".join(["[[key]]", *(f"{field} = {literal(value)}" for field, value in fields.items())])

"""Reads the admin API of a running router; what goes wrong becomes one line on standard error and exit code 1."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.error
import urllib.request
from typing import Annotated, Any, cast

import typer

_TIMEOUT_S = 5.0

AdminUrl = Annotated[
    str, typer.Option("--admin", metavar="URL", help="Admin address of the router.", envvar="TURNOUT_ADMIN")
]
DEFAULT_ADMIN = "http://127.0.0.1:9090"


def fetch(admin: str, path: str) -> dict[str, Any]:
    """Return the JSON document at a path; `TURNOUT_ADMIN_TOKEN` is sent as bearer token when it is set."""
    if not admin.startswith(("http://", "https://")):
        admin = f"http://{admin}"
    url = admin.rstrip("/") + path
    token = os.environ.get("TURNOUT_ADMIN_TOKEN", "")
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"} if token else {})  # noqa: S310 - the scheme was checked
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - as above
            return cast("dict[str, Any]", json.load(answer))
    except urllib.error.HTTPError as error:
        reason = f"{url} answered {error.code}"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            reason = json.load(error)["error"]["message"]
        raise fail(reason) from error
    except (OSError, ValueError) as error:
        raise fail(f"cannot read {url}: {getattr(error, 'reason', error)}") from error


def fail(reason: str) -> typer.Exit:
    """Say what went wrong; raise what this returns."""
    typer.echo(f"error: {reason}", err=True)
    return typer.Exit(1)

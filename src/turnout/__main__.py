"""`python -m turnout` is the command `turnout`."""

from __future__ import annotations

from turnout.cli.main import main

main()

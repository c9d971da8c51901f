"""The server and the stores of the end-to-end tests, for histories that both databases must agree on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "ledger_servers", Path(__file__).parents[2] / "e2e" / "ledger" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_servers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_servers)
postgres = _servers.postgres

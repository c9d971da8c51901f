"""A house of many keys for the tests that only look at what passes through it."""

from __future__ import annotations

import pytest
from tests.support.keyed import Engines, House, Routers


@pytest.fixture(scope="module")
def house(module_router: Routers, module_engine: Engines) -> House:
    return House(module_router, module_engine())

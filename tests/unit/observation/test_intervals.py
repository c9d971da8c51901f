"""How often engines are asked for their load."""

from __future__ import annotations

from turnout.core import options
from turnout.observation.scraper import interval_ms


def test_reports_come_oftener_where_other_routers_are() -> None:
    assert (interval_ms(options.Load()), interval_ms(options.Load(peers=["r2"]))) == (200, 50)
    assert interval_ms(options.Load(peers=["r2"], scrape_interval_ms=0)) == 0

from turnout.core import options
from turnout.core.fleet.registry import Fleet
from turnout.core.fleet.report import Report
from turnout.engines.load_reports import LoadStat
from turnout.observation.load_pushes import LoadPushes


def test_a_report_needs_a_fresh_word_of_every_rank() -> None:
    pushes = LoadPushes(2)
    pushes.heard(("e", -1), LoadStat(running=1), 0.0)
    assert pushes.report(0.0, 5.0) is None
    pushes.heard(("e", -2), LoadStat(running=2), 1.0)
    pushes.heard(("e", -2), LoadStat(running=4), 2.0)
    assert pushes.report(5.0, 5.0) == Report(running=5)
    assert pushes.report(5.1, 5.0) is None


def test_a_scrape_that_a_push_has_overtaken_changes_no_counts() -> None:
    fleet = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
    state = fleet.add(options.Endpoint(name="e", url="http://h:1", models=["m"]), 0.0)
    scraped = state.sent(1.0)
    fleet.observed(state, state.sent(2.0), Report(running=9, waiting=0))
    fleet.observed(state, scraped, Report(running=1, waiting=0, max_running=64))
    assert (state.running, state.observed_at, state.max_running) == (9, 2.0, 64)

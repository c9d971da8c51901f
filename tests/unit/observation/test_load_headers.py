"""Load that answers tell: what is left out stays, while a whole report is fresh; what came is of the present."""

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet
from turnout.core.fleet.report import Report
from turnout.core.scheduling.load import busy_column
from turnout.observation.load_headers import LoadHeaders

WAITING_2 = b'JSON {"named_metrics": {"kv_cache_usage_perc": 0.5, "num_requests_waiting": 2.0}}'


class Scene:
    """One endpoint with one attempt of ours open: the one whose answer tells."""

    def __init__(self) -> None:
        self.now = 10.0
        self.fleet = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
        self.state: EndpointState = self.fleet.add(options.Endpoint(name="e", url="http://h:1", models=["m"]), 0.0)
        self.changed: list[str] = []
        self.headers = LoadHeaders(self.fleet, clock=lambda: self.now, on_change=lambda s: self.changed.append(s.name))
        self.state.opened(100, 100)

    def scraped(self, at: float, report: Report) -> None:
        self.fleet.observed(self.state, self.state.sent(at), report)

    @property
    def known(self) -> tuple[int | None, int | None, float | None]:
        return self.state.running, self.state.waiting, self.state.kv_usage_ratio

    def busy(self) -> float:
        return busy_column([self.state], [float(self.state.in_flight)], self.now)[0][0]


def test_a_header_alone_tells_of_the_present_and_nothing_of_who_runs() -> None:
    scene = Scene()
    scene.headers.heard(scene.state, WAITING_2)
    assert scene.known == (None, 2, 0.5)
    assert scene.state.observed_at == scene.now
    assert scene.changed == ["e"]
    assert scene.headers.counts == {"e": {"taken": 1, "empty": 0, "bad": 0}}


def test_requests_of_others_stay_as_many_as_the_last_scrape_told() -> None:
    scene = Scene()
    scene.scraped(9.0, Report(running=5, waiting=0, kv_usage_ratio=0.1))
    before = scene.busy()
    scene.headers.heard(scene.state, WAITING_2)
    assert scene.known == (2, 2, 0.5)  # four of others: two of them wait
    assert scene.busy() == before == 5
    scene.state.ended(100, 100)
    assert scene.busy() == 4
    scene.state.opened(100, 100)
    scene.headers.heard(scene.state, WAITING_2)
    assert scene.known == (2, 2, 0.5)


def test_more_that_wait_than_were_known_are_requests_of_others() -> None:
    scene = Scene()
    scene.scraped(9.0, Report(running=1, waiting=0))
    scene.headers.heard(scene.state, WAITING_2)
    assert scene.known == (0, 2, 0.5)
    assert scene.busy() == 3


def test_what_a_header_leaves_out_stays_known() -> None:
    scene = Scene()
    scene.scraped(9.0, Report(running=3, waiting=1, kv_usage_ratio=0.25, kv_capacity_tokens=640))
    scene.headers.heard(scene.state, b"TEXT named_metrics.kv_cache_usage_perc=0.75")
    assert scene.known == (2, 1, 0.75)  # the one that has been answered runs no more
    scene.headers.heard(scene.state, b"TEXT named_metrics.num_requests_waiting=0")
    assert scene.known == (3, 0, 0.75)
    assert scene.state.kv_capacity_tokens == 640


def test_how_many_run_is_forgotten_when_the_last_scrape_is_too_old_however_often_answers_tell() -> None:
    scene = Scene()
    scene.scraped(10.0, Report(running=5, waiting=0, kv_usage_ratio=0.1))
    for second in range(11, 17):
        scene.now = float(second)
        scene.headers.heard(scene.state, WAITING_2)
        assert (scene.state.running is None) == (second > 15)


def test_a_scrape_that_a_header_has_overtaken_counts_all_the_same() -> None:
    scene = Scene()
    sent = scene.state.sent(9.9)
    scene.headers.heard(scene.state, WAITING_2)
    scene.fleet.observed(scene.state, sent, Report(running=4, waiting=1, kv_usage_ratio=0.3))
    assert scene.known == (4, 1, 0.3)


def test_bad_and_empty_headers_are_counted_and_change_nothing() -> None:
    scene = Scene()
    scene.scraped(9.0, Report(running=5, waiting=0, kv_usage_ratio=0.1))
    for value in (b"nonsense", b'JSON {"named_metrics": {}}', b'JSON {"named_metrics": {"kv_cache_usage_perc": -1}}'):
        scene.headers.heard(scene.state, value)
    assert scene.known == (5, 0, 0.1)
    assert scene.state.observed_at == 9.0
    assert scene.headers.counts == {"e": {"taken": 0, "empty": 1, "bad": 2}}
    assert scene.changed == []

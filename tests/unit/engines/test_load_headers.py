"""`endpoint-load-metrics` as vLLM writes it, and as it must not be."""

import pytest

from turnout.core.fleet.report import Report
from turnout.engines.load_headers import Told, read_load_header

BOTH = Report(waiting=3, kv_usage_ratio=0.4)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b'JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, "num_requests_waiting": 3.0}}', Told(BOTH)),
        (b"TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3.0", Told(BOTH)),
        (b'json {"named_metrics":{"gpu_cache_usage_perc":0.4,"num_requests_waiting":3}}', Told(BOTH)),
        (b'JSON {"named_metrics": {"num_requests_running": 2.0}}', Told(Report(running=2))),
        (b'JSON {"named_metrics": {"num_requests_waiting": 0.0}}', Told(Report(waiting=0))),
        (
            b'JSON {"cpu_utilization": 0.5, "named_metrics": {"kv_cache_usage_perc": 0.4, "x": "y"}}',
            Told(Report(kv_usage_ratio=0.4)),
        ),
        (b'JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, "gpu_cache_usage_perc": 0.9}}', Told(Report(kv_usage_ratio=0.4))),
    ],
)  # fmt: skip
def test_what_it_names_is_known_and_nothing_else(value: bytes, told: Told) -> None:
    assert read_load_header(value) == told


@pytest.mark.parametrize(
    "value",
    [b'JSON {"named_metrics": {}}', b"JSON {}", b"TEXT ", b"TEXT", b"TEXT cpu_utilization=0.3", b'JSON {"named_metrics":{"a":1}}'],
)  # fmt: skip
def test_without_a_known_name_it_tells_nothing(value: bytes) -> None:
    assert read_load_header(value) == Told()


@pytest.mark.parametrize("value", ["-1", "1.6", "NaN", "Infinity", '"0.5"', "null", "true", "1e400", "{}"])
def test_a_value_that_cannot_be_is_ignored_and_the_others_count_where_they_can_be_read(value: str) -> None:
    told = read_load_header(
        b'JSON {"named_metrics": {"kv_cache_usage_perc": %b, "num_requests_waiting": 3.0}}' % value.encode()
    )
    assert told.bad
    assert told.report in (None, Report(waiting=3))
    assert read_load_header(
        b"TEXT named_metrics.kv_cache_usage_perc=%b, named_metrics.num_requests_waiting=3.0" % value.encode()
    ) == Told(Report(waiting=3), bad=True)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"JSON",
        b"JSON [1]",
        b'JSON {"named_metrics": [1]}',
        b'JSON {"named_metrics": {"a": 1}',
        b"JSON \xff",
        b"BIN CgQ=",
        b'{"named_metrics": {"num_requests_waiting": 1}}',
        b'JSON {"named_metrics": {"num_requests_waiting": 1' + b"0" * 4300 + b"}}",
        b'JSON {"named_metrics": {"num_requests_waiting": 1' + b"0" * 2000 + b"}}",
        b"JSON " + b'{"named_metrics":' * 200,
        b"TEXT named_metrics.num_requests_waiting=1" + b" " * 4096,
    ],
)
def test_what_cannot_be_read_is_bad(value: bytes) -> None:
    assert read_load_header(value) == Told(bad=True)

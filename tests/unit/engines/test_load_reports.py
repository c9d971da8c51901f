"""Golden scrapes of each family, and the summing rules of engines §2."""

import msgspec
import pytest

from turnout.core.fleet.report import Report
from turnout.engines.load_reports import LoadStat, joined, read_load_stat, read_loads, read_metrics

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 400.0
vllm:num_preemptions_total{engine="0",model_name="m"} 1.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 1200.0
vllm:generation_tokens_total{engine="0",model_name="m"} 77.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0
process_start_time_seconds 1.75e+09
"""
SGLANG = b"""sglang:num_running_reqs{model_name="m",tp_rank="0"} 4
sglang:num_running_reqs{model_name="m",tp_rank="1"} 4
sglang:num_queue_reqs{model_name="m"} 5
sglang:num_grammar_queue_reqs{model_name="m"} 1
sglang:token_usage{model_name="m"} 0.5
sglang:max_total_num_tokens{model_name="m"} 100000
sglang:page_size{model_name="m"} 64
sglang:cache_hit_rate{model_name="m"} 0.9
sglang:num_retracted_reqs{model_name="m"} 3
"""
LLAMACPP = b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 7\nllamacpp:tokens_predicted_total 5\n"
TRTLLM = b"""trtllm_num_requests_running 2
trtllm_num_requests_waiting 1
trtllm_kv_cache_utilization 0.75
trtllm_kv_cache_max_blocks 100
trtllm_kv_cache_tokens_per_block 32
"""


def test_golden_vllm() -> None:
    assert read_metrics(VLLM, frozenset(("m",))) == Report(
        running=3,
        waiting=2,
        kv_usage_ratio=0.25,
        kv_capacity_tokens=16_000,
        block_tokens=16,
        prefix_tokens_asked=1000.0,
        prefix_tokens_found=400.0,
        preemptions=1.0,
        generated_tokens=77.0,
        prompt_tokens=1200.0,
        started_at=1.75e9,
    )


def test_golden_sglang() -> None:
    assert read_metrics(SGLANG) == Report(
        running=4, waiting=6, kv_usage_ratio=0.5, kv_capacity_tokens=100_000, block_tokens=64
    )


def test_golden_llamacpp() -> None:
    assert read_metrics(LLAMACPP) == Report(running=1, waiting=7, generated_tokens=5.0)


def test_golden_tensorrt() -> None:
    assert read_metrics(TRTLLM) == Report(
        running=2, waiting=1, kv_usage_ratio=0.75, kv_capacity_tokens=3200, block_tokens=32
    )


def test_golden_sglang_loads() -> None:
    body = b"""{"loads": [
      {"dp_rank": 0, "num_running_reqs": 2, "num_waiting_reqs": 1, "num_waiting_uncached_tokens": 700,
       "token_usage": 0.2, "max_total_num_tokens": 50000, "max_running_requests": 32},
      {"dp_rank": 1, "num_running_reqs": 3, "num_waiting_reqs": 0, "num_waiting_uncached_tokens": null,
       "token_usage": 0.6, "max_total_num_tokens": 50000, "max_running_requests": 32}]}"""
    assert read_loads(body) == Report(
        running=5, waiting=1, kv_usage_ratio=0.6, kv_capacity_tokens=100_000, max_running=64
    )


@pytest.mark.parametrize(
    "body",
    [b'{"loads": []}', b'{"loads": [{"num_running_reqs": 0, "max_total_num_tokens": 0}]}', b"[", b'{"loads": 5}'],
)
def test_loads_that_are_broken_or_not_ready_are_unknown(body: bytes) -> None:
    assert read_loads(body) is None


def test_ranks_are_summed_and_the_fullest_one_counts() -> None:
    page = (
        b'vllm:num_requests_running{engine="0"} 1\nvllm:num_requests_running{engine="1"} 2\n'
        b'vllm:kv_cache_usage_perc{engine="0"} 0.1\nvllm:kv_cache_usage_perc{engine="1"} 0.9\n'
        b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="10"} 1\n'
        b'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="10"} 1\n'
    )
    assert read_metrics(page) == Report(running=3, kv_usage_ratio=0.9, kv_capacity_tokens=320, block_tokens=16)


def test_priorities_are_breakdowns_unless_they_are_all_there_is() -> None:
    split = b'sglang:num_queue_reqs{priority="1"} 2\nsglang:num_queue_reqs{priority="2"} 3\n'
    assert read_metrics(split) == Report(waiting=5)
    assert read_metrics(b'sglang:num_queue_reqs{priority=""} 5\n' + split) == Report(waiting=5)


def test_other_models_of_the_same_process_are_left_out() -> None:
    page = b'vllm:num_requests_running{model_name="m"} 1\nvllm:num_requests_running{model_name="x"} 8\n'
    assert read_metrics(page, frozenset(("m",))) == Report(running=1)


def test_missing_metric_is_unknown() -> None:
    """T63: renamed, absent, NaN or negative: never 0."""
    page = VLLM.replace(b"vllm:num_requests_waiting{", b"vllm:renamed_waiting{")
    report = read_metrics(page)
    assert report is not None
    assert (report.running, report.waiting) == (3, None)
    for value in (b"NaN", b"-1", b"+Inf", b"x"):
        report = read_metrics(page.replace(b'running{engine="0",model_name="m"} 3.0', b'running{engine="0"} ' + value))
        assert report is not None
        assert report.running is None
    report = read_metrics(page.replace(b"} 0.25", b"} 25.0"))
    assert report is not None
    assert report.kv_usage_ratio is None


@pytest.mark.parametrize(
    "page", [b"", b"# nothing\n", b"go_goroutines 5\n", b"vllm:e2e_request_latency_seconds_sum 1\n"]
)
def test_page_without_known_names_is_a_lost_scrape(page: bytes) -> None:
    assert read_metrics(page) is None


def test_older_names_count_where_newer_are_missing() -> None:
    page = b"vllm:gpu_cache_usage_perc 0.4\nvllm:gpu_prefix_cache_hits_total 3\nvllm:gpu_prefix_cache_queries_total 9\n"
    assert read_metrics(page) == Report(kv_usage_ratio=0.4, prefix_tokens_asked=9.0, prefix_tokens_found=3.0)


def test_sleeping_engine_says_so() -> None:
    page = VLLM.replace(b'sleep_state="awake"} 1.0', b'sleep_state="awake"} 0.0')
    report = read_metrics(page)
    assert report is not None
    assert report.sleeping


@pytest.mark.parametrize(
    ("pushed", "expected"),
    [
        (["LoadStat", 3, 1, 500, 1000, 1, 70], LoadStat(3, 1, 500, 1000, 1, 70)),
        (["LoadStat", 3, 1, 500, 1000, 1, None, "later"], LoadStat(3, 1, 500, 1000, 1)),
        (["LoadStat", 3], LoadStat(3)),
        (["LoadStat", -1, "2", 0.5], LoadStat()),
        (["Other", 3, 1], None),
        ([], None),
        ({"running": 1}, None),
    ],
)
def test_pushed_load_is_positional_and_may_be_short(pushed: object, expected: LoadStat | None) -> None:
    assert read_load_stat(msgspec.msgpack.encode(pushed)) == expected
    assert read_load_stat(b"\xc1") is None


def test_pushed_load_of_ranks_is_summed_and_what_one_does_not_know_is_unknown() -> None:
    report = joined([LoadStat(3, 1, 500, 1000, 0, 70), LoadStat(2, 0, 100, 1000, 1, None)])
    assert report == Report(running=5, waiting=1, kv_usage_ratio=0.5, kv_capacity_tokens=2000)
    assert joined([LoadStat(), LoadStat()]) is None

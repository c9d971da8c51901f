"""Load reports of all engine families: bytes → `Report`, by one table of names (engines §2).

The first name that is present wins. A name that is absent, NaN, negative or absurd is unknown, never zero. Pages are
long and mostly histograms, so names are looked for in the bytes and nothing else is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from turnout.core.fleet.report import Report

RATIO_MAX = 1.5
_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_RANKS = (b"engine", b"dp_rank")
_SHARDS = frozenset((b"tp_rank", b"pp_rank", b"moe_ep_rank"))

# Each inner tuple is a sum; the first alternative of which every name is present counts.
COUNTS: dict[str, tuple[tuple[bytes, ...], ...]] = {
    "running": (
        (b"vllm:num_requests_running",),
        (b"sglang:num_running_reqs",),
        (b"llamacpp:requests_processing",),
        (b"trtllm_num_requests_running",),
    ),
    "waiting": (
        (b"vllm:num_requests_waiting",),
        (b"sglang:num_queue_reqs", b"sglang:num_grammar_queue_reqs"),
        (b"sglang:num_queue_reqs",),
        (b"llamacpp:requests_deferred",),
        (b"trtllm_num_requests_waiting",),
    ),
    "kv_capacity_tokens": ((b"sglang:max_total_num_tokens",),),
    "block_tokens": ((b"sglang:page_size",), (b"trtllm_kv_cache_tokens_per_block",)),
    "prefix_tokens_asked": (
        (b"vllm:prefix_cache_queries_total",),
        (b"vllm:gpu_prefix_cache_queries_total",),
        (b"sglang:prompt_tokens_total",),
    ),
    "prefix_tokens_found": (
        (b"vllm:prefix_cache_hits_total",),
        (b"vllm:gpu_prefix_cache_hits_total",),
        (b"sglang:cached_tokens_total",),
    ),
    "preemptions": ((b"vllm:num_preemptions_total",), (b"sglang:num_retracted_requests_total",)),
    "generated_tokens": (
        (b"vllm:generation_tokens_total",),
        (b"sglang:generation_tokens_total",),
        (b"llamacpp:tokens_predicted_total",),
    ),
    "failed_transfers": (
        (b"vllm:nixl_num_failed_transfers_total", b"vllm:nixl_num_failed_notifications_total"),
        (b"vllm:nixl_num_failed_transfers_total",),
        (b"vllm:nixl_num_failed_transfers", b"vllm:nixl_num_failed_notifications"),
        (b"vllm:nixl_num_failed_transfers",),
        (b"sglang:num_bootstrap_failed_reqs_total", b"sglang:num_transfer_failed_reqs_total"),
        (b"sglang:num_transfer_failed_reqs_total",),
    ),
    "prompt_tokens": ((b"vllm:prompt_tokens_total",), (b"sglang:prompt_tokens_total",)),
}
KV_USAGE = (
    b"vllm:kv_cache_usage_perc",
    b"vllm:gpu_cache_usage_perc",
    b"sglang:full_token_usage",
    b"sglang:token_usage",
    b"llamacpp:kv_cache_usage_ratio",
    b"trtllm_kv_cache_utilization",
)
_WHOLE = frozenset(("running", "waiting", "kv_capacity_tokens", "block_tokens"))

Series = list[tuple[dict[bytes, bytes], float]]


def read_metrics(page: bytes, models: frozenset[str] = frozenset()) -> Report | None:
    """Read a Prometheus page; None when it has no name that we know, which is a lost scrape.

    `models` are the names under which the endpoint serves; series of other models are left out.
    """
    page = b"\n" + page
    wanted = {model.encode() for model in models}

    def total(name: bytes) -> float | None:
        return _joined(_series(page, name, wanted), sum)

    found: dict[str, float] = {}
    for signal, alternatives in COUNTS.items():
        for names in alternatives:
            values = [total(name) for name in names]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                found[signal] = sum(known)
                break
    usage = next((value for name in KV_USAGE if (value := _joined(_series(page, name, wanted), max)) is not None), None)
    if usage is not None and usage <= RATIO_MAX:
        found["kv_usage_ratio"] = usage
    if not found:
        return None
    _vllm_cache(page, found)
    _trtllm_cache(page, found)
    started = _joined(_series(page, b"process_start_time_seconds", set()), max)
    awake = [
        value
        for labels, value in _series(page, b"vllm:engine_sleep_state", wanted)
        if labels.get(b"sleep_state") == b"awake"
    ]
    return Report(
        kv_dtype=_vllm_dtype(page),
        **{name: int(value) if name in _WHOLE else value for name, value in found.items()},  # type: ignore[arg-type]
        started_at=started,
        sleeping=bool(awake) and not any(awake),
    )


class _Load(msgspec.Struct, gc=False):
    num_running_reqs: float | None = None
    num_waiting_reqs: float | None = None
    num_waiting_uncached_tokens: float | None = None
    token_usage: float | None = None
    max_total_num_tokens: float | None = None
    max_running_requests: float | None = None


class _Loads(msgspec.Struct, gc=False):
    loads: list[_Load] = []


_read_loads = msgspec.json.Decoder(_Loads).decode


def read_loads(body: bytes) -> Report | None:
    """Read SGLang's `/v1/loads`, one entry per rank; None when it is broken, not ready, or nothing of the kind."""
    try:
        loads = _read_loads(body).loads
    except (msgspec.DecodeError, RecursionError):
        return None
    if not loads or any(not load.max_total_num_tokens for load in loads):
        return None

    def total(values: Iterable[float | None]) -> int | None:
        listed = list(values)
        known = [value for value in listed if value is not None and 0 <= value < math.inf]
        return int(sum(known)) if len(known) == len(listed) else None

    usages = [load.token_usage for load in loads]
    known = [usage for usage in usages if usage is not None and 0 <= usage <= RATIO_MAX]
    return Report(
        running=total(load.num_running_reqs for load in loads),
        waiting=total(load.num_waiting_reqs for load in loads),
        waiting_uncached_tokens=total(load.num_waiting_uncached_tokens for load in loads),
        kv_usage_ratio=max(known) if len(known) == len(usages) else None,
        kv_capacity_tokens=total(load.max_total_num_tokens for load in loads),
        max_running=total(load.max_running_requests for load in loads),
    )


class LoadStat(msgspec.Struct, frozen=True, gc=False):
    """What one rank of an SGLang engine pushes of its load; None is unknown."""

    running: int | None = None
    waiting: int | None = None
    tokens: int | None = None
    tokens_max: int | None = None
    rank: int | None = None
    waiting_uncached: int | None = None


_read_push = msgspec.msgpack.Decoder(list[Any]).decode


def read_load_stat(payload: bytes) -> LoadStat | None:
    """Read `["LoadStat", running, waiting, tokens, max_tokens, rank, waiting_uncached]`; shorter and longer is fine."""
    try:
        kind, *values = _read_push(payload)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if kind != "LoadStat":
        return None
    fields = [value if isinstance(value, int) and value >= 0 else None for value in values]
    return LoadStat(*fields[: len(LoadStat.__struct_fields__)])


def joined(stats: list[LoadStat]) -> Report | None:
    """Return the report of an engine from those of all its ranks; None when none of them says anything of use."""

    def total(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    ratios = [s.tokens / s.tokens_max for s in stats if s.tokens is not None and s.tokens_max]
    report = Report(
        running=total([stat.running for stat in stats]),
        waiting=total([stat.waiting for stat in stats]),
        waiting_uncached_tokens=total([stat.waiting_uncached for stat in stats]),
        kv_usage_ratio=max(ratios) if len(ratios) == len(stats) else None,
        kv_capacity_tokens=total([stat.tokens_max or None for stat in stats]),
    )
    return report if report != Report() else None


def _series(page: bytes, name: bytes, models: set[bytes]) -> Series:
    """All samples of a name: labels and value; `page` begins with a line end."""
    found: Series = []
    needle = b"\n" + name
    at = page.find(needle)
    while at >= 0:
        begin = at + len(needle)
        end = page.find(b"\n", begin)
        line = page[begin : end if end >= 0 else len(page)]
        sample = _sample(line)
        if sample is not None:
            model = sample[0].get(b"model_name")
            if model is None or not models or model in models:
                found.append(sample)
        at = page.find(needle, begin)
    return found


def _sample(line: bytes) -> tuple[dict[bytes, bytes], float] | None:
    """Read what follows a name; None for a longer name, a comment, or a value that is no finite number from 0 on."""
    labels: dict[bytes, bytes] = {}
    if line[:1] == b"{":
        close = line.rfind(b"}")
        labels = dict(_LABEL.findall(line[:close]))
        line = line[close + 1 :]
    elif line[:1] not in {b" ", b"\t"}:
        return None
    fields = line.split()
    try:
        value = float(fields[0])
    except (IndexError, ValueError):
        return None
    return (labels, value) if 0.0 <= value < math.inf else None


def _joined(series: Series, over_ranks: Callable[[list[float]], float]) -> float | None:
    """One number: shards by their maximum, the other labels summed, ranks by `over_ranks`."""
    plain = [sample for sample in series if not sample[0].get(b"priority")]
    ranks: dict[bytes, dict[frozenset[tuple[bytes, bytes]], float]] = {}
    for labels, value in plain or series:
        rank = next((labels[name] for name in _RANKS if name in labels), b"")
        rest = frozenset(item for item in labels.items() if item[0] not in _SHARDS and item[0] not in _RANKS)
        group = ranks.setdefault(rank, {})
        group[rest] = max(value, group.get(rest, 0.0))
    return over_ranks([sum(group.values()) for group in ranks.values()]) if ranks else None


def _vllm_cache(page: bytes, found: dict[str, float]) -> None:
    capacity = 0
    for labels, _ in _series(page, b"vllm:cache_config_info", set()):
        blocks, size = labels.get(b"num_gpu_blocks", b""), labels.get(b"block_size", b"")
        if blocks.isdigit() and size.isdigit():
            capacity += int(blocks) * int(size)
            found["block_tokens"] = int(size)
    if capacity:
        found["kv_capacity_tokens"] = capacity


def _vllm_dtype(page: bytes) -> str:
    """The type of the cached values, where it is not the model's own."""
    for labels, _ in _series(page, b"vllm:cache_config_info", set()):
        dtype = labels.get(b"cache_dtype", b"auto")
        if dtype != b"auto":
            return dtype.decode("ascii", "replace")[:32]
    return ""


def _trtllm_cache(page: bytes, found: dict[str, float]) -> None:
    blocks = _joined(_series(page, b"trtllm_kv_cache_max_blocks", set()), sum)
    if blocks is not None and "block_tokens" in found:
        found["kv_capacity_tokens"] = blocks * found["block_tokens"]

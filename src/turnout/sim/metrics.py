"""The `/metrics` text of one engine, in vLLM's names: current, older, or renamed beyond recognition."""

from __future__ import annotations

import json
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnout.sim.engine import EngineModel

TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
ITL_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
QUEUE_BUCKETS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
_OLD = {"vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc"}
_OLD_PREFIX = ("vllm:prefix_cache_", "vllm:gpu_prefix_cache_")


class Histogram:
    """Counts per bucket, Prometheus style."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, values: list[float]) -> None:
        """Record values in seconds."""
        for value in values:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def lines(self, name: str, labels: str) -> list[str]:
        """Exposition lines."""
        out = [f"# TYPE {name} histogram"]
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            out.append(f'{name}_bucket{{{labels},le="{bound}"}} {total}')
        out += [f"{name}_sum{{{labels}}} {self._sum}", f"{name}_count{{{labels}}} {total}"]
        return out


class Metrics:
    """Renders the model's counters; histograms are fed once per step."""

    def __init__(self, model: EngineModel, started_at: float, rank: int = 0) -> None:
        self.model = model
        self.started_at = started_at
        self._rank = rank
        self._ttft = Histogram(TTFT_BUCKETS)
        self._itl = Histogram(ITL_BUCKETS)
        self._queue = Histogram(QUEUE_BUCKETS)

    def collect(self) -> None:
        """Move the latencies recorded by the model into the histograms."""
        latencies = self.model.latencies
        for histogram, values in (
            (self._ttft, latencies.ttft_s),
            (self._itl, latencies.itl_s),
            (self._queue, latencies.queue_s),
        ):
            histogram.observe(values)
        latencies.clear()

    def text(self, *, zero: bool = False, missing: bool = False) -> bytes:
        """The page of an engine of one rank."""
        return page([self], zero=zero, missing=missing)

    def told(self, form: str, *, zero: bool = False, missing: bool = False) -> str:
        """The value of `endpoint-load-metrics`, as JSON or TEXT: what vLLM finds of its page under today's names."""
        model, names = self.model, self.model.options.metric_names
        named = {"kv_cache_usage_perc": model.store.used / model.store.capacity} if names == "new" else {}
        if names != "renamed":
            named["num_requests_waiting"] = float(model.waiting)
        named = {} if missing else {name: value * (0 if zero else 1) for name, value in named.items()}
        if form == "text":
            return "TEXT " + ", ".join(f"named_metrics.{name}={value}" for name, value in named.items())
        return f"JSON {json.dumps({'named_metrics': named})}"

    def families(self, scale: int) -> list[list[str]]:
        """The lines of each name, its type first; `scale` 0: every value is 0, and there are no histograms."""
        model = self.model
        options, counters, store = model.options, model.counters, model.store
        labels = f'engine="{self._rank}",model_name="{_escaped(options.model)}"'
        gauges = (
            ("num_requests_running", float(model.running)),
            ("num_requests_waiting", float(model.waiting)),
            ("kv_cache_usage_perc", store.used / store.capacity),
        )
        totals = (
            ("prefix_cache_queries_total", counters.prefix_tokens_asked),
            ("prefix_cache_hits_total", counters.prefix_tokens_found),
            ("num_preemptions_total", counters.preemptions),
            ("prompt_tokens_total", counters.prompt_tokens),
            ("generation_tokens_total", counters.generated_tokens),
        )
        facts = (
            f'block_size="{options.block_tokens}",num_gpu_blocks="{store.capacity}",'
            'enable_prefix_caching="True",engine="{self._rank}"'
        )
        ended = (("stop", counters.stopped), ("length", counters.length), ("abort", counters.aborted))
        out = [[f"# TYPE vllm:{name} gauge", f"vllm:{name}{{{labels}}} {value * scale}"] for name, value in gauges]
        out += [
            [
                "# TYPE vllm:engine_sleep_state gauge",
                f'vllm:engine_sleep_state{{{labels},sleep_state="awake"}} 1.0',
            ],
            ["# TYPE vllm:cache_config_info gauge", f"vllm:cache_config_info{{{facts}}} 1.0"],
        ]
        out += [
            [f"# TYPE vllm:{name} counter", f"vllm:{name}{{{labels}}} {float(count * scale)}"] for name, count in totals
        ]
        success = "vllm:request_success_total"
        out.append(
            [f"# TYPE {success} counter"]
            + [f'{success}{{{labels},finished_reason="{reason}"}} {float(count * scale)}' for reason, count in ended]
        )
        if scale:
            out += [
                self._ttft.lines("vllm:time_to_first_token_seconds", labels),
                self._itl.lines("vllm:inter_token_latency_seconds", labels),
                self._queue.lines("vllm:request_queue_time_seconds", labels),
            ]
        return out


def page(ranks: list[Metrics], *, zero: bool = False, missing: bool = False) -> bytes:
    """The exposition of all ranks. `zero`: every vLLM value is 0. `missing`: no vLLM name is there."""
    first = ranks[0]
    out = ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {first.started_at!r}"]
    if not missing:
        names = first.model.options.metric_names
        for same in zip(*[metrics.families(0 if zero else 1) for metrics in ranks], strict=True):
            samples = [line for lines in same for line in lines[1:]]
            out += [_renamed(line, names) for line in (same[0][0], *samples)]
    return "\n".join((*out, "")).encode()


def _renamed(line: str, names: str) -> str:
    if names == "renamed":
        return line.replace("vllm:", "vllm:renamed_")
    if names == "old":
        for new, old in (*_OLD.items(), _OLD_PREFIX):
            line = line.replace(new, old)
    return line


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

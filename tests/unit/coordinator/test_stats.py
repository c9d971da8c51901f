"""The figures of the door are those of the metrics catalogue, all of them and no other."""

from __future__ import annotations

from turnout.coordinator.rehearsal import Rehearsal
from turnout.coordinator.stats import stats
from turnout.engines import megatron as wire
from turnout.telemetry import catalogue


def test_every_figure_has_its_metric() -> None:
    assert stats(Rehearsal().door).keys() == {metric.source for metric in catalogue.COORDINATOR}


def test_labels_fit_the_catalogue() -> None:
    there = Rehearsal()
    there.engines(b"e")
    there.clients(b"c")
    there.say(b"c", b"\xc1")
    there.say(b"c", wire.submit(0, [1] * 256, {}))
    there.door.tally.took("SUBMIT_REQUEST", 0.001)
    figures = stats(there.door)
    for metric in catalogue.COORDINATOR:
        value = figures[metric.source]
        if isinstance(value, dict):
            sizes = {len(key) if isinstance(key, tuple) else 1 for key in value}
            assert sizes <= {len(metric.labels)}, metric.name
        else:
            assert metric.labels == (), metric.name
    assert figures["invalid"] == {("unknown", "undecodable"): 1}
    assert figures["message"][("SUBMIT_REQUEST",)].sum == 0.001

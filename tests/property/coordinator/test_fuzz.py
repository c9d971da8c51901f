"""A bounded run of the fuzzer; the long one is `python -m benchmarks.bench_coordinator fuzz`."""

from __future__ import annotations

import pytest
from benchmarks.coordinator_fuzz import Fuzz


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hostile_messages_are_refused_by_the_oracles_reason_and_honest_ones_served(seed: int) -> None:
    fuzz = Fuzz(seed)
    fuzz.run(8_000)
    assert fuzz.faults() == []
    assert fuzz.honest_done == 400
    assert len(fuzz.invalid) >= 20

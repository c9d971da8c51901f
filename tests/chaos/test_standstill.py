"""The loop that stands still, and the process that does: what is told of one, what is forgiven the other (F68, F70)."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import traceback
from typing import Any

from turnout.telemetry.watchdog import Watchdog

LIMIT_S = 0.4  # a machine that stands still itself for so long is rare


def culprit() -> None:
    time.sleep(3 * LIMIT_S)


def test_F68_a_blocked_loop_is_told_once_with_its_stack() -> None:
    told: list[float] = []
    dumps: list[str] = []

    def dump() -> None:
        frames = sys._current_frames().values()
        dumps.append("".join(line for frame in frames for line in traceback.format_stack(frame)))

    async def go() -> int:
        watchdog = Watchdog(told.append, LIMIT_S, dump)
        watchdog.start()
        await asyncio.sleep(2 * LIMIT_S)  # a loop that only waits is not blocked
        assert told == []
        culprit()
        await asyncio.sleep(LIMIT_S)
        culprit()
        await asyncio.sleep(LIMIT_S)
        watchdog.stop()
        return watchdog.blocked_total

    assert asyncio.run(go()) == len(told) == len(dumps)
    # Another process may make the loop stand still as well; it is told of, too, but with another stack.
    assert sum("in culprit" in dump for dump in dumps) == 2
    assert sum(LIMIT_S < seconds < 3.5 * LIMIT_S for seconds in told) >= 2


def test_F68_a_suspended_process_is_not_blocked() -> None:
    watchdog = Watchdog(lambda _: None, LIMIT_S, lambda: None)
    now = time.monotonic()
    watchdog.look(now + 600, 600.0)
    assert watchdog.blocked_total == 0
    watchdog.look(now + 600 + 2 * LIMIT_S, 0.05)
    assert watchdog.blocked_total == 1


def test_F70_a_suspended_router_fails_nobody_when_it_wakes(processes: Any, chaos: Any) -> None:
    """Seven seconds of sleep are longer than the stall time; neither streams nor endpoints pay for them."""
    engines = processes.engines(2, "--speed", "1")
    timeouts = {"stall_s": 3.0, "content_stall_s": 3.0, "first_token_failover_s": 3.0, "first_token_s": 6.0}
    router = processes.serve(engines, timeout=timeouts, probe={"interval_s": 0.5})

    async def go() -> list[Any]:
        async with chaos.client(router.url) as client:
            asked = [asyncio.create_task(chaos.ask(client, n, stream=n % 4 != 0, tokens=120)) for n in range(12)]
            await asyncio.to_thread(
                processes.eventually, lambda: sum(router.endpoint(e.name)["in_flight"] for e in engines) == 12
            )
            await asyncio.sleep(0.3)
            router.signal(signal.SIGSTOP)
            await asyncio.sleep(7.0)
            router.signal(signal.SIGCONT)
            return await asyncio.gather(*asked)

    seen = asyncio.run(go())
    assert [(s.error, s.finished) for s in seen if s.error is not None or not s.finished] == []
    rows = [router.call(s.decision) for s in seen]
    assert [(row["outcome"], row["attempts_n"]) for row in rows] == [("completed", 1)] * 12
    assert [router.endpoint(e.name)["breaker"] for e in engines] == ["closed", "closed"]
    assert processes.eventually(lambda: not any(router.endpoint(e.name)["unreachable"] for e in engines))
    assert "loop_blocked" not in router.words()

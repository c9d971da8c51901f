"""One prefill and one decode engine die under load: nobody waits for ever, the others serve, the dead return."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest


def body(wire: Any, number: int, **members: Any) -> dict[str, Any]:
    text = f"question {number}: " + "tell me more about trains and points " * 8
    chat: dict[str, Any] = wire.chat(messages=[{"role": "user", "content": text}], max_tokens=24)
    return chat | members


def at_rest(router: Any) -> bool:
    fleet = router.app.gateway.fleet
    open_ones = sum(e.in_flight + e.pending_prefill_tokens + e.active_tokens for e in fleet.endpoints.values())
    return not open_ones and not len(fleet.pairing.rooms) and not router.app.gateway.runs


@pytest.mark.parametrize("place", ["sockets"], indirect=True)  # threads that ask; virtual: test_random_faults
def test_killing_one_of_each_wedges_nobody(
    start_router: Any, fleet_of: Any, wire: Any, flow: str, eventually: Any
) -> None:
    fleet = fleet_of(flow)
    router = start_router(
        endpoint=[table | {"solo": False} for table in fleet.tables],
        disagg={"decider": "always", "quarantine_s": 0.2},
        resume={"scope": "replicas"},
        probe={"interval_s": 0.2, "timeout_s": 0.2},
        timeout={"first_token_s": 5.0},
    )
    ended: list[tuple[float, int, bytes]] = []
    stop = threading.Event()

    def load(worker: int) -> None:
        number = worker * 10_000
        while not stop.is_set():
            number, began = number + 1, time.monotonic()
            try:
                answer = router.ask(body(wire, number, stream=True))
            except OSError as error:
                ended.append((began, 0, repr(error).encode()))
                continue
            whole = b"[DONE]" in answer.body or b'"error"' in answer.body
            ended.append((began, answer.status if whole else -1, answer.body[-200:]))

    workers = [threading.Thread(target=load, args=(worker,)) for worker in range(6)]
    for worker in workers:
        worker.start()
    try:
        time.sleep(0.3)
        fleet.kill("p0")
        time.sleep(0.7)
        fleet.kill("d0")
        killed = time.monotonic()

        def later() -> list[int]:
            return [status for began, status, _ in list(ended) if began > killed + 1.0]

        assert eventually(lambda: len(later()) > 10, 30.0)
        assert set(later()) == {200}, [each for each in ended if each[1] != 200][:5]
        before = {name: state["requests_total"] for name, state in fleet.states().items()}
        fleet.restart("p0")
        fleet.restart("d0")
        assert eventually(lambda: min(fleet.served()[name] for name in ("p0", "d0")) > 0)
    finally:
        stop.set()
        for worker in workers:
            worker.join(10.0)
    assert not any(worker.is_alive() for worker in workers)
    assert not [each for each in ended if each[1] in (0, -1)], "every request ends in an answer or one clean error"
    after = fleet.served()
    assert after["p1"] > before["p1"]
    assert router.eventually(lambda: at_rest(router))

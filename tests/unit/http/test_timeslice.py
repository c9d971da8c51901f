"""What the kernel says about slices after it was asked for short ones; a thread of its own each time, as the request lasts."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable

import pytest

from turnout.http.timeslice import SLICE_NS, Attributes, ask_for_short_slices

_GETATTR = {"x86_64": 315, "aarch64": 275, "riscv64": 275}


def slice_ns() -> int:
    found = Attributes()
    number = _GETATTR[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, 0, ctypes.byref(found), ctypes.sizeof(found), 0) == 0
    return int(found.runtime)


def in_thread(work: Callable[[], object]) -> None:
    problems: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as problem:  # noqa: BLE001 - told by the thread that joins
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in _GETATTR or kernel() < (6, 12),
    reason=f"{platform.system()} {platform.release()} on {platform.machine()} knows no slices of a thread",
)
def test_the_thread_that_asks_has_short_slices_and_what_it_starts_has_not() -> None:
    def asks() -> None:
        before = slice_ns()
        assert ask_for_short_slices()
        assert slice_ns() == SLICE_NS
        in_thread(lambda: started.append(slice_ns()))
        assert started == [before] != [SLICE_NS]

    started: list[int] = []
    in_thread(asks)


@pytest.mark.skipif(platform.system() != "Linux", reason=f"{platform.system()} has no scheduling classes of Linux")
def test_a_thread_keeps_its_niceness_and_a_class_that_somebody_chose() -> None:
    def nice() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
        ask_for_short_slices()
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 7

    def idle() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        assert not ask_for_short_slices()
        assert os.sched_getscheduler(0) == os.SCHED_IDLE

    in_thread(nice)
    in_thread(idle)

"""How soon the kernel gives a core back to the event loop when something else computes on it.

Linux hands a core over at once to a thread that wakes with a shorter slice than whoever runs there, and else lets the
other one finish its slice of some milliseconds first, however nice it is (EEVDF, from 6.12 on; docs/adr/0092).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from typing import Final

SLICE_NS: Final = 200_000
"""The kernel takes 0.1 to 100 ms. Only who shares a core with others changes over so often."""
# The library has no name for it before glibc 2.41.
_SYSCALLS: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
# Threads and processes that are started from here have the usual slice: they are the others.
_RESET_ON_FORK: Final = 1


class Attributes(ctypes.Structure):
    """`struct sched_attr` of sched_setattr(2), in its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def ask_for_short_slices() -> bool:
    """Ask it for the calling thread; tell whether the kernel agreed. Older kernels agree and change nothing."""
    number = _SYSCALLS.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    with contextlib.suppress(OSError, AttributeError):
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return False  # whoever chose another class knows why
        asked = Attributes(
            size=ctypes.sizeof(Attributes),
            policy=os.SCHED_OTHER,
            flags=_RESET_ON_FORK,
            nice=os.getpriority(os.PRIO_PROCESS, 0),
            runtime=SLICE_NS,
        )
        answer: int = ctypes.CDLL(None).syscall(number, 0, ctypes.byref(asked), 0)
        return answer == 0
    return False

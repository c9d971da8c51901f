"""The load tools of the harness, found, copied and built, and the Turnout they are pointed at.

The harness itself is only read: everything happens in a copy of it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import platform
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
TITLE = (
    "# Results\n\n"
    "Written by the commands of [README.md](README.md); ratios count, absolute figures move with the machine.\n"
)

MOCK_PORT = 9001
REPLICAS = 4
KEY = "sk-1234"  # what the harness' load generator sends to every target
FILES = ("run.py", "targets.json", "Makefile", "mock.c", "lg.c", "bodies.py")
# What a former run leaves behind. The peers are used where they are: environments do not survive a copy.
NOT_COPIED = ("peers", "bodies", "logs", "mock", "lg", "*.jsonl", "__pycache__")

# Targets of one peer, its argument of install_peers.sh, and how to ask for its version.
PEERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sglang": (("sglang-rr", "sglang-ca"), ("sglang/bin/python", "sglang-router")),
    "vllm-router": (("vllm-router-rr", "vllm-router-ca"), ("vllm-router/bin/python", "vllm-router")),
    "litellm": (("litellm",), ("litellm/bin/python", "litellm")),
    "nginx": (("nginx",), ("nginx", "-v")),
    "haproxy": (("haproxy",), ("haproxy", "-v")),
}


class Unusable(Exception):
    """Something that the measurement needs is not here; the message says what, and how to get it."""


def find(given: Path | None, environ: Mapping[str, str], repository: Path) -> Path:
    """Folder of the harness. Raises Unusable with plain words when there is none."""
    if given is not None:
        places = [("--harness", given)]
    elif environ.get("TURNOUT_BENCH"):
        places = [("TURNOUT_BENCH", Path(environ["TURNOUT_BENCH"]))]
    else:
        places = [("beside the repository", repository.parent / "shared" / "bench")]
    for source, place in places:
        missing = [name for name in FILES if not (place / name).is_file()]
        if not missing:
            return place.resolve()
        seen = f"lacks {', '.join(missing)}" if place.is_dir() else "is not there"
        raise Unusable(
            f"no load tools: {place} ({source}) {seen}.\n"
            "They are a folder of C and Python files (lg.c, mock.c, run.py, targets.json …) that is handed out beside\n"
            "this repository as shared/bench. Get that folder, then either put it at ../shared/bench, or name it with\n"
            "--harness DIR or the environment variable TURNOUT_BENCH."
        )
    raise AssertionError("one place is always looked at")


def prepare(harness: Path, work: Path) -> None:
    """Copy the harness and build its tools. Raises Unusable when the machine cannot."""
    needed = {"make": "make", "gcc": "gcc", "taskset": "util-linux", "bash": "bash"}
    missing = [package for tool, package in needed.items() if shutil.which(tool) is None]
    if missing:
        names = " ".join(missing)
        raise Unusable(f"the load tools need {names}; on Debian and Ubuntu: apt-get install {names}")
    cores = os.sched_getaffinity(0)
    if not {0, 1} <= cores:
        raise Unusable(f"needs cores 0 (proxy) and 1 (engines, load); this process may use {sorted(cores)}")
    shutil.copytree(harness, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    for path in (work, *work.rglob("*")):
        if "peers" not in path.relative_to(work).parts and not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)  # the original may be read-only
    work.chmod(0o755)  # nginx serves as another user, whose temporary files lie below
    built = subprocess.run(["make", "-C", str(work)], capture_output=True, text=True, check=False)
    if built.returncode:
        raise Unusable(f"make in {work} failed:\n{built.stdout}{built.stderr}")
    # 2,500 streams take 5,000 descriptors in a proxy; every target gets the same limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65_536, hard) if hard != resource.RLIM_INFINITY else 65_536, hard))


def peers_folder(harness: Path, work: Path, environ: Mapping[str, str]) -> Path:
    """Where install_peers.sh has put the peers: $PEERS, else beside the harness, else in the work folder."""
    if environ.get("PEERS"):
        return Path(environ["PEERS"]).resolve()
    return next((place / "peers" for place in (harness, work) if (place / "peers").is_dir()), harness / "peers")


def program(command: str, peers: Path) -> Path:
    """The file that a target's command starts."""
    return Path(command.split(" ", 1)[0].replace("{PEERS}", str(peers)))


def split_peers(targets: Mapping[str, Mapping[str, Any]], peers: Path) -> tuple[list[str], list[str]]:
    """Targets that can be started here, and those that cannot. A bare program name is looked for on PATH."""
    here: list[str] = []
    absent: list[str] = []
    for name, target in targets.items():
        command = str(target.get("cmd", ""))
        found = not command or shutil.which(str(program(command, peers))) is not None
        # node is on every PATH; a peer that it runs is installed when the file it is given is there.
        files = [Path(word.replace("{PEERS}", str(peers))) for word in command.split() if word.startswith("{PEERS}")]
        (here if found and all(file.exists() for file in files) else absent).append(name)
    return here, absent


def install_hint(absent: Sequence[str], harness: Path, peers: Path) -> str:
    """How to get the peers that are not installed; empty when none is missing."""
    wanted = [peer for peer, (targets, _) in PEERS.items() if set(targets) & set(absent)]
    wanted += [name for name in absent if not any(name in targets for targets, _ in PEERS.values())]
    return f"PEERS={peers} bash {harness / 'install_peers.sh'} {' '.join(wanted)}" if wanted else ""


def turnout_toml(listen: int, admin: int, ledger: Path) -> str:
    """The configuration that is measured: defaults, with key, ledger, metrics and decisions on.

    Only max_in_flight differs from the defaults, because 2,500 streams over four replicas exceed 4 x 256.
    """
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    endpoints = "".join(
        f'\n[[endpoint]]\nname = "replica-{n + 1}"\nurl = "http://127.0.0.1:{MOCK_PORT + n}"\n'
        'models = ["mock-model"]\nmax_in_flight = 4096\n'
        for n in range(REPLICAS)
    )
    return (
        f'[server]\nlisten = "127.0.0.1:{listen}"\nadmin_listen = "127.0.0.1:{admin}"\n\n'
        f"[ledger]\nurl = {json.dumps(f'sqlite:///{ledger}')}\n{endpoints}\n"
        f'[[key]]\nname = "bench"\ntenant = "bench"\ndigest = "sha256:{digest}"\n'
    )


def serve_command(config: Path) -> list[str]:
    """Turnout of this working tree, run by this very interpreter."""
    return [sys.executable, "-m", "turnout", "serve", "-c", str(config)]


def environment() -> dict[str, str]:
    """What Turnout runs under: this working tree first, and no setting of the caller's shell."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TURNOUT__")}
    path = [str(REPOSITORY / "src"), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path)}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment, held open together so that they differ."""
    with_sockets = [socket.socket() for _ in range(count)]
    try:
        for each in with_sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in with_sockets]
    finally:
        for each in with_sockets:
            each.close()


def require_free(ports: Sequence[int]) -> None:
    """Raise Unusable when somebody listens on one of these ports: the load would go to the wrong program, unnoticed."""
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise Unusable(
                    f"port {port} is in use, perhaps by another run of these benchmarks. The harness needs it: its\n"
                    "mock engines and the peers have fixed ports. Wait for that run, or end what listens there."
                )


def mine(config: Path, port: int) -> dict[str, Any]:
    """The targets file that adds Turnout to the harness."""
    return {"mine": {"cmd": shlex.join(serve_command(config)), "port": port, "cwd": str(config.parent), "headers": []}}


def facts() -> dict[str, str]:
    """What was measured, and on which machine."""
    cpu = re.search(r"(?m)^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    said = subprocess.run(
        [sys.executable, "-m", "turnout", "--version"], capture_output=True, text=True, check=False, env=environment()
    ).stdout
    number, uvloop = re.search(r"\d\S*", said), metadata.version("uvloop")
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "Turnout": f"{number[0] if number else '?'} on Python {platform.python_version()}, uvloop {uvloop}",
        "machine": f"{os.cpu_count()} cores, {cpu[1] if cpu else platform.machine()}, Linux {platform.release()}",
        "load of the machine before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def commit() -> str:
    """The commit of the working tree, and whether src differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    head, changed = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "src")
    return (head or "unknown") + (" with uncommitted changes in src" if changed else "")


def versions(targets: Sequence[str], peers: Path) -> str:
    """Names and versions of the peers among these targets."""
    found = []
    for peer, (names, (tool, argument)) in PEERS.items():
        if not set(names) & set(targets):
            continue
        ask = [tool, argument]
        if tool.endswith("python"):
            ask = [str(peers / tool), "-c", f"from importlib.metadata import version as v; print(v({argument!r}))"]
        elif shutil.which(tool) is None:
            ask[0] = f"/usr/sbin/{tool}"
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        number = re.search(r"\d+(?:\.\d+)+", answer.stdout + answer.stderr)
        found.append(f"{peer} {number[0] if number else '?'}")
    return ", ".join(found) or "none"

"""A host without free ports for new connections: what is kept alive goes on (F12)."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, msgspec, socket
from turnout.app import App
from turnout.config.schema import Config
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

BODY = b'{"model":"sim","messages":[{"role":"user","content":"Is there a port left?"}],"max_tokens":4}'

async def ask(port, connections):
    reader, writer = connections
    head = b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(BODY)
    writer.write(head + BODY)
    answer = await reader.readuntil(b"\\r\\n\\r\\n")
    length = int(answer.lower().split(b"content-length: ")[1].split(b"\\r\\n")[0])
    await reader.readexactly(length)
    return int(answer.split()[1])

async def main():
    engine = SimEngineServer(EngineOptions(model="sim", name="a"))
    host, port = await engine.start()
    tables = {"server": {"listen": "127.0.0.1:0", "admin_listen": ""}, "auth": {"mode": "open"}, "ledger": {"url": ""},
              "log": {"level": "error"}, "load": {"scrape_interval_ms": 0}, "probe": {"interval_s": 600},
              "drain": {"grace_s": 0.1}, "pool": {"idle_s": 600},
              "endpoint": [{"name": "a", "url": f"http://{host}:{port}", "models": ["sim"]}]}
    app = App(msgspec.convert(tables, Config))
    await app.start()
    client = await asyncio.open_connection("127.0.0.1", app.port)
    crowd = [await asyncio.open_connection("127.0.0.1", app.port) for _ in range(6)]
    assert await ask(app.port, client) == 200
    taken = []  # every port of this host to the engine's address
    while True:
        one = socket.socket()
        try:
            one.connect((host, port))
        except OSError as error:
            assert error.errno == 99, error  # EADDRNOTAVAIL
            break
        taken.append(one)
    kept = [await ask(app.port, client) for _ in range(5)]
    statuses = set(await asyncio.gather(*[ask(app.port, one) for one in crowd]))
    state = app.gateway.fleet.endpoints["a"]
    print(kept, sorted(statuses), state.unreachable, str(state.breaker.state))
    for one in taken:
        one.close()
    print(await ask(app.port, crowd[0]))
    await app.stop()
    await engine.stop()

asyncio.run(main())
"""


def test_F12_without_free_ports_kept_connections_go_on_and_no_engine_is_blamed() -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here: unshare -n is refused")
    command = 'ip link set lo up && echo 40000 40019 > /proc/sys/net/ipv4/ip_local_port_range && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", command, sys.executable, PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, last = done.stdout.strip().splitlines()
    assert first == "[200, 200, 200, 200, 200] [200, 502] False closed"
    assert last == "200"

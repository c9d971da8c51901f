"""The HTTP skin keeps the pace of the virtual engine."""

import asyncio
import json
import statistics

import pytest
import uvloop

from turnout.sim import virtual
from turnout.sim.engine import EngineModel
from turnout.sim.options import EngineOptions
from turnout.sim.render import render_prompt
from turnout.sim.sequence import Work
from turnout.sim.server import SimEngineServer
from turnout.sim.text import pack

OPTIONS = EngineOptions(profile="8b")
TOKENS = 20
PROMPTS = ["".join(f"{round_:02d}{word:02d} " for word in range(600)) for round_ in range(3)]


async def measured(port: int, prompt: str) -> tuple[float, float]:
    """TTFT and mean gap of one streamed completion, in seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    data = json.dumps(body).encode()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: sim\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data))
    await reader.readuntil(b'"text":')
    first = loop.time()
    for _ in range(TOKENS - 1):
        await reader.readuntil(b'"text":')
    last = loop.time()
    writer.close()
    return first - begun, (last - first) / (TOKENS - 1)


def test_http_is_within_a_tenth_of_virtual_time() -> None:
    async def main() -> list[tuple[float, float]]:
        server = SimEngineServer(OPTIONS)
        _, port = await server.start()
        try:
            return [await measured(port, prompt) for prompt in PROMPTS]
        finally:
            await server.stop()

    rendered = render_prompt(PROMPTS[0])
    work = Work(prompt=rendered, tokens=pack(rendered), max_tokens=TOKENS, ignore_eos=True)
    (ideal,) = virtual.run(EngineModel(OPTIONS), [(0.0, work)])
    real = uvloop.run(main())
    assert statistics.median(ttft for ttft, _ in real) == pytest.approx(ideal.ttft_s, rel=0.1)
    assert statistics.median(gap for _, gap in real) == pytest.approx(statistics.mean(ideal.itl_s), rel=0.1)

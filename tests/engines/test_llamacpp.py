"""A real llama.cpp behind the router: answers, streams with its spaced JSON, and a load report it does not have."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.engines.conftest import engine, free_port, interpreter, router, until

HERE = Path(__file__).parent
VARIABLE = "TURNOUT_LLAMACPP_PYTHON"


def test_llamacpp_answers_through_the_router(tmp_path: Path) -> None:
    python = interpreter(VARIABLE, "llama_cpp.server")
    interpreter(VARIABLE, "gguf")
    model, port = tmp_path / "tiny.gguf", free_port()
    subprocess.run([python, str(HERE / "tiny_gguf.py"), str(model)], check=True)
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "tiny", "--port", str(port)]
    endpoint = {"name": "llama", "url": f"http://127.0.0.1:{port}", "models": ["tiny"], "family": "llamacpp"}
    with engine(command, port, 60.0, tmp_path / "engine.log"), router(endpoint) as running:
        status, body = running.post("/v1/completions", model="tiny", prompt="hello", max_tokens=8)
        assert status == 200, body
        status, body = running.post(
            "/v1/chat/completions",
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=8,
            stream=True,
        )
        assert status == 200, body
        assert body.rstrip().endswith(b"data: [DONE]")
        state = running.app.gateway.fleet.endpoints["llama"]
        # The client has all of it with the terminator; the engine's own end comes a little later.
        until(lambda: state.in_flight == 0, "the engine's answer ends")
        assert state.prefill.work_s == 0.0

"""A real vLLM on CPU behind the router: load is scraped, KV events make its index exact, and a match is realised."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.engines.conftest import engine, free_port, interpreter, router, until

from turnout.core.fleet.precision import Mode

HERE = Path(__file__).parent
VARIABLE = "TURNOUT_VLLM_PYTHON"
BLOCK = 32
UP_S = 600.0  # about 50 s on an idle machine


def test_vllm_is_known_exactly(tmp_path: Path) -> None:
    python = interpreter(VARIABLE, "vllm")
    model, port, events = tmp_path / "tinymodel", free_port(), free_port()
    subprocess.run([python, str(HERE / "tiny_hf.py"), str(model)], check=True)
    publish = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{events}",
        "topic": "kv",
    }
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", "tiny", "--dtype", "bfloat16", "--max-model-len", "512"]
    command += ["--enforce-eager", "--max-num-seqs", "8", "--block-size", str(BLOCK), "--enable-prefix-caching"]
    command += ["--enable-prompt-tokens-details", "--kv-events-config", json.dumps(publish)]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    endpoint = {
        "name": "vllm",
        "url": f"http://127.0.0.1:{port}",
        "models": ["tiny"],
        "family": "vllm",
        "kv_events": f"tcp://127.0.0.1:{events}",
        "kv_topic": "kv",
    }
    with engine(command, port, UP_S, tmp_path / "engine.log", **environment), router(endpoint) as running:
        state = running.app.gateway.fleet.endpoints["vllm"]
        until(lambda: state.observed_at is not None and state.kv_capacity_tokens, "its load was scraped")
        prompt = [3 + number % 250 for number in range(8 * BLOCK)]
        status, body = running.post("/v1/completions", model="tiny", prompt=prompt, max_tokens=4)
        assert status == 200, body
        until(lambda: state.mode is Mode.EXACT, "its events are complete")
        assert state.block_tokens == BLOCK
        status, body = running.post("/v1/completions", model="tiny", prompt=prompt, max_tokens=4)
        assert status == 200, body
        _, decision = running.app.gateway.decisions[-1]
        assert decision.mode is Mode.EXACT
        assert decision.predicted >= 7 * BLOCK
        cached = json.loads(body)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= 7 * BLOCK

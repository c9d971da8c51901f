"""A real vLLM on CPU behind the router: load is scraped, KV events make its index exact, and a match is realised."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.engines.conftest import Router, engine, free_port, interpreter, router, until

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
        _chats_are_matched_by_their_tokens(running)


def _chats_are_matched_by_their_tokens(running: Router) -> None:
    """The engine tokenises what it is asked to chat about, and bills as many tokens as it counted."""
    tokenizing = running.app.gateway.tokenizing
    assert tokenizing is not None

    def chat(text: str) -> dict[str, Any]:
        status, body = running.post(
            "/v1/chat/completions", model="tiny", messages=[{"role": "user", "content": text}], max_tokens=4
        )
        assert status == 200, body
        usage: dict[str, Any] = json.loads(body)["usage"]
        return usage

    chat("This one begins the proof. " * 12)
    until(lambda: tokenizing.parity["vllm"][1].holds is not None, "a chat's tokens were compared")
    text = "What the engine sees is what its cache knows. " * 8
    chat(text)
    until(lambda: running.app.gateway.fleet.endpoints["vllm"].mode is Mode.EXACT, "its events are complete")
    usage = chat(text)
    _, decision = running.app.gateway.decisions[-1]
    assert (decision.mode, decision.tokens) == (Mode.EXACT, usage["prompt_tokens"])
    assert decision.predicted >= usage["prompt_tokens_details"]["cached_tokens"] - BLOCK > 8 * BLOCK
    assert (tokenizing.counts["asked"], tokenizing.counts["remembered"]) == (1, 1)
    chat("Another one, after the bill of the first has been read. " * 6)
    assert tokenizing.stats()["render_parity"] == {"vllm": 1}

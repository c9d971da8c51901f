"""A client that stops listening stops the engine's work."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import openai

ASK: list[Any] = [{"role": "user", "content": "Count every sleeper between here and the coast."}]
GRACE_S = 0.1  # P5: the monotonic clock is the same in all processes of a machine


def test_a_cancelled_stream_frees_the_engine(client: openai.OpenAI, stack: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="sim", messages=ASK, max_tokens=5000, stream=True, extra_body={"ignore_eos": True}
    )
    stream = raw.parse()
    for _, _chunk in zip(range(5), stream, strict=False):
        pass
    assert stack.engine.state["running"] == 1
    left = time.monotonic()
    stream.response.close()
    assert stack.eventually(lambda: stack.engine.state["running"] == 0)
    assert left < stack.engine.state["last_abort_at"] < left + GRACE_S
    row = stack.router.call(raw.headers["x-turnout-decision"])
    assert (row["outcome"], row["class"], row["http_status"]) == ("client_gone", "cancelled", 499)
    assert row["tokens_out"] >= 4
    (attempt,) = stack.router.attempts(row["call_id"])
    assert (attempt["error_kind"], attempt["counted"], attempt["ok"]) == ("cancelled", 0, 0)
    assert stack.router.endpoint("e1")["in_flight"] == 0


def test_an_early_close_before_any_token_is_no_fault_of_the_engine(client: openai.OpenAI, stack: Any) -> None:
    stack.engine.fault("accept_hang", count=1, match="sleeper")
    with contextlib.suppress(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="sim", messages=ASK, stream=True)
    assert stack.eventually(lambda: stack.router.endpoint("e1")["in_flight"] == 0)
    assert stack.router.endpoint("e1")["breaker"] == "closed"

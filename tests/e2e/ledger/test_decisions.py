"""A decision can be looked up after the router that made it is gone."""

from __future__ import annotations

from typing import Any

import openai

PATIENCE_S = 60.0


def test_a_decision_outlives_the_process(processes: Any) -> None:
    router = processes.serve(processes.engines(2))
    with openai.OpenAI(base_url=router.url, api_key="none", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="sim", max_tokens=2, messages=[{"role": "user", "content": "Why there?"}]
        )
    decision = raw.headers["x-turnout-decision"]
    query = "SELECT json FROM decisions JOIN calls USING (call_id) WHERE call_id = ?"
    assert processes.eventually(lambda: router.rows(query, decision), PATIENCE_S)
    before = router.admin(f"/x/decisions/{decision}")
    assert router.stop() == 0
    router.start()
    router.wait_until_up()
    after = router.admin(f"/x/decisions/{decision}")
    assert after["picked"] == before["picked"] == raw.headers["x-turnout-endpoint"]
    assert (after["candidates_total"], len(after["candidates"]), after["dropped"]) == (2, 2, {})

"""What was decided and counted can be looked up afterwards: decisions, metrics, calls."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import openai

ASK: list[Any] = [{"role": "user", "content": "Where does this train go? " * 40}]


def test_a_decision_is_explained_on_the_admin_listener(client: openai.OpenAI, stack: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model="sim", messages=ASK, max_tokens=2)
    told = stack.router.admin("/x/decisions/" + raw.headers["x-turnout-decision"])
    assert "e1" in str(told)
    assert told["picked"] == "e1"


def test_metrics_equal_the_rows_of_the_ledger(client: openai.OpenAI, stack: Any) -> None:
    client.chat.completions.create(model="sim", messages=ASK, max_tokens=2)
    stack.eventually(lambda: stack.router.admin("/ready")["exchanges"] == 0)
    page = stack.router.admin("/metrics")
    counted = {
        outcome: int(float(value))
        for outcome, value in re.findall(r'turnout_requests_total\{[^}]*outcome="(\w+)"[^}]*\} (\S+)', page)
    }
    total = sum(counted.values())
    assert stack.eventually(lambda: len(stack.router.rows("SELECT seq FROM calls")) == total)
    assert counted == Counter(row["outcome"] for row in stack.router.rows("SELECT outcome FROM calls"))
    attempts = sum(
        int(float(value)) for value in re.findall(r"^turnout_attempts_total\{.*\} (\S+)", page, re.MULTILINE)
    )
    assert attempts == len(stack.router.rows("SELECT seq FROM attempts"))
    assert "turnout_ttft_seconds_bucket" in page
    assert "turnout_schedule_seconds_count" in page
    assert re.search(r"^turnout_ledger_dropped_total.* [^0]", page, re.MULTILINE) is None


def test_calls_are_listed(client: openai.OpenAI, stack: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model="sim", messages=ASK, max_tokens=2)
    decision = raw.headers["x-turnout-decision"]
    stack.router.call(decision)
    newest = stack.router.admin("/x/calls?limit=1")["calls"]
    assert [call["call_id"] for call in newest] == [decision]


def test_no_key_and_no_prompt_in_the_logs(client: openai.OpenAI, stack: Any) -> None:
    client.chat.completions.create(model="sim", messages=ASK, max_tokens=2)
    words = stack.router.words()
    assert "train" not in words
    assert client.api_key not in words

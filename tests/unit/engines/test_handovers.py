"""The requests of both legs of both flows, as bytes."""

from __future__ import annotations

import json

import pytest

from turnout.engines import sglang_bootstrap, vllm_nixl

BODY = b'{"model":"m","messages":[{"role":"user","content":"h\xc3\xa9"}],"max_tokens":64,"min_tokens":3,"stream":true,"stream_options":{"include_usage":true},"seed":7}'
PARAMS = b'{"do_remote_prefill":true,"do_remote_decode":false,"remote_engine_id":"e","remote_block_ids":[1,2],"remote_host":"10.0.0.1","remote_port":5600,"tp_size":1}'


def test_the_prefill_leg_asks_for_one_token_and_keeps_the_blocks() -> None:
    sent = json.loads(vllm_nixl.prefill_body(BODY))
    assert sent["stream"] is False
    assert sent["max_tokens"] == sent["max_completion_tokens"] == 1
    assert "stream_options" not in sent
    assert "min_tokens" not in sent
    assert sent["kv_transfer_params"] == {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }
    kept = json.loads(BODY)
    assert {name: sent[name] for name in ("model", "messages", "seed")} == {
        name: kept[name] for name in ("model", "messages", "seed")
    }
    assert "max_completion_tokens" not in json.loads(vllm_nixl.prefill_body(b'{"prompt":"a"}'))


def test_the_decode_leg_gets_the_original_bytes_and_the_params_verbatim() -> None:
    assert vllm_nixl.decode_body(BODY, PARAMS) == BODY[:-1] + b',"kv_transfer_params":' + PARAMS + b"}"
    assert vllm_nixl.decode_body(BODY, b"") == BODY
    assert vllm_nixl.decode_body(b"{}", b"1") == b'{"kv_transfer_params":1}'


def answer(params: bytes, finish: bytes = b'"length"', cached: bytes = b'{"cached_tokens":48}') -> bytes:
    return b'{"choices":[{"finish_reason":%b}],"usage":{"prompt_tokens":64,"prompt_tokens_details":%b},"kv_transfer_params":%b}' % (
        finish, cached, params,
    )  # fmt: skip


def test_the_answer_gives_address_params_and_cached_tokens() -> None:
    assert vllm_nixl.read_answer(answer(PARAMS)) == vllm_nixl.Handover(PARAMS, "10.0.0.1", 5600, 48)
    assert vllm_nixl.read_answer(answer(PARAMS, cached=b"null")).cached_tokens is None


def test_no_params_is_no_failure() -> None:
    assert vllm_nixl.read_answer(answer(b"null")).params == b""
    assert vllm_nixl.read_answer(b'{"choices":[{"finish_reason":"stop"}]}').params == b""


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[]",
        answer(PARAMS, finish=b"null"),
        answer(b'{"do_remote_prefill":true}'),
        answer(b'{"do_remote_prefill":true,"remote_host":"h","remote_port":99999999}'),
        answer(b'{"do_remote_prefill":false,"remote_host":"h","remote_port":1}'),
        answer(b"[1]"),
        b"[" * 100_000,
    ],
)
def test_what_is_no_handover_is_refused(body: bytes) -> None:
    with pytest.raises(vllm_nixl.BadHandover):
        vllm_nixl.read_answer(body)


def test_both_bootstrap_legs_get_the_same_room_and_rid() -> None:
    sent = json.loads(sglang_bootstrap.leg_body(BODY[:-1] + b',"rid":"mine"}', "::1", 8998, 2**63 - 1))
    assert sent["bootstrap_host"] == "[::1]"
    assert sent["bootstrap_port"] == 8998
    assert sent["bootstrap_room"] == 2**63 - 1
    assert sent["rid"] == f"t-{2**63 - 1}"
    assert json.loads(sglang_bootstrap.abort_body(5)) == {"rid": "t-5"}
    assert json.loads(BODY).items() <= sent.items()


def test_cached_tokens_of_the_prefill_leg_are_read_or_unknown() -> None:
    assert sglang_bootstrap.cached_tokens(answer(b"null")) == 48
    stream = b"data: " + answer(b"null") + b"\n\ndata: [DONE]\n\n"
    assert sglang_bootstrap.cached_tokens(stream) == 48
    for nothing in (b"no", b"data: [DONE]\n\n", b"{}", b'{"usage":null}', answer(b"null", cached=b"null")):
        assert sglang_bootstrap.cached_tokens(nothing) is None

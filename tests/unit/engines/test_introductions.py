"""What engines say of themselves, and what Mooncake's legs look like on the wire."""

from __future__ import annotations

import json

import pytest

from turnout.engines import vllm_mooncake
from turnout.engines.load_reports import read_metrics
from turnout.engines.sglang import introduction

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":9,"min_tokens":2}'


def test_sglang_tells_role_port_and_shape() -> None:
    page = {
        "disaggregation_mode": "prefill",
        "disaggregation_bootstrap_port": 8999,
        "tp_size": 4,
        "page_size": 64,
        "kv_cache_dtype": "fp8_e5m2",
        "api_key": "never read",
    }
    told = introduction(json.dumps(page).encode())
    assert told is not None
    assert (told.role, told.bootstrap_port, told.block_tokens, told.dtype, told.tp_size) == (
        "prefill", 8999, 64, "fp8_e5m2", 4,
    )  # fmt: skip
    plain = introduction(b'{"disaggregation_mode":"null","kv_cache_dtype":"auto"}')
    assert plain is not None
    assert (plain.role, plain.bootstrap_port, plain.dtype) == ("both", None, "")


@pytest.mark.parametrize("page", [b"", b"[]", b"{}", b'{"disaggregation_mode":7}', b"\xff"])
def test_other_pages_tell_nothing(page: bytes) -> None:
    assert introduction(page) is None


def test_mooncake_legs() -> None:
    prefill = json.loads(vllm_mooncake.prefill_body(BODY, "xfer-1"))
    assert prefill["kv_transfer_params"] == {
        "do_remote_decode": True, "do_remote_prefill": False, "transfer_id": "xfer-1",
    }  # fmt: skip
    assert (prefill["stream"], prefill["max_tokens"], prefill["max_completion_tokens"]) == (False, 1, 1)
    assert "min_tokens" not in prefill
    decode = vllm_mooncake.decode_body(BODY, "xfer-1", "engine-a", "http://10.0.0.1:8998")
    assert decode.startswith(BODY[:-1])
    assert json.loads(decode)["kv_transfer_params"] == {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "transfer_id": "xfer-1",
        "remote_engine_id": "engine-a",
        "remote_bootstrap_addr": "http://10.0.0.1:8998",
    }
    assert vllm_mooncake.rank_header(3) == b"x-data-parallel-rank: 3\r\n"


@pytest.mark.parametrize(
    ("body", "ranks"),
    [
        (b'{"0":{"engine_id":"a"},"1":{"engine_id":"b","more":1}}', {0: "a", 1: "b"}),
        (b'{"x":{"engine_id":"a"}}', {}),
        (b'{"0":{}}', {}),
        (b"nonsense", {}),
    ],
)
def test_ranks_introduce_themselves(body: bytes, ranks: dict[int, str]) -> None:
    assert vllm_mooncake.read_query(body) == ranks


def test_failed_transfers_and_types_of_values_are_read() -> None:
    page = (
        b'vllm:nixl_num_failed_transfers_total{engine="0"} 2.0\n'
        b'vllm:nixl_num_failed_transfers_total{engine="1"} 1.0\n'
        b'vllm:nixl_num_failed_notifications_total{engine="0"} 1.0\n'
        b'vllm:cache_config_info{block_size="16",num_gpu_blocks="10",cache_dtype="fp8"} 1.0\n'
    )
    report = read_metrics(page)
    assert report is not None
    assert (report.failed_transfers, report.kv_dtype, report.block_tokens) == (4.0, "fp8", 16)
    sglang = read_metrics(b"sglang:num_transfer_failed_reqs_total 5.0\nsglang:num_running_reqs 1.0\n")
    assert sglang is not None
    assert sglang.failed_transfers == 5.0

import json

import pytest

from turnout.engines.sglang import KvSource, kv_source

EVENTS = {
    "publisher": "zmq",
    "endpoint_host": "*",
    "endpoint_port_base": 5557,
    "topic": "kv-events",
    "block_size": 64,
    "dp_size": 2,
}


def page(**more: object) -> bytes:
    return json.dumps({"api_key": "secret", "dcp_size": 2, "kv_events": {**EVENTS, **more}}).encode()


def test_wildcard_host_is_the_endpoints_own() -> None:
    assert kv_source(page(), "10.0.0.7") == KvSource("tcp://10.0.0.7:5557", "kv-events", 2, 128)
    assert kv_source(page(endpoint_host="kv.internal"), "10.0.0.7") == KvSource(
        "tcp://kv.internal:5557", "kv-events", 2, 128
    )
    pushing = kv_source(page(load_endpoint_port_base=5559, load_topic="load"), "10.0.0.7")
    assert pushing is not None
    assert pushing.load == "tcp://10.0.0.7:5559"


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"kv_events": null}', page(publisher="null"), page(endpoint_port_base=0), page(dp_size="x")],
)
def test_engine_that_publishes_nothing_for_us_has_no_source(body: bytes) -> None:
    assert kv_source(body, "h") is None

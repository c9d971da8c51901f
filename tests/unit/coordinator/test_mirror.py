"""Coordinator engines as endpoints: they appear, carry all load in one number, and go."""

from __future__ import annotations

from typing import Any

from turnout.coordinator.listener import CoordinatorListener
from turnout.coordinator.mirror import EngineSource, Mirror
from turnout.coordinator.tokenizers import ByteTokenizer
from turnout.core import options
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.core.fleet.registry import Fleet
from turnout.engines import megatron as wire

A, B, X = b"mp-coord-0", b"mp-coord-1", b"client"


class Stage:
    def __init__(self) -> None:
        self.fleet = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
        self.listener = CoordinatorListener(Coordinator(model="m", max_requests=7), Affinity(), clock=lambda: 100.0)
        for identity in (A, B, X):
            self.listener.attach(identity, id)
        self.upstreams: dict[str, EngineSource] = {}

        def made(source: EngineSource) -> Any:
            return source

        self.mirror = Mirror(self.listener, ByteTokenizer(), self.fleet, self.upstreams, made, lambda: 100.0)

    def say(self, identity: bytes, payload: bytes) -> None:
        self.listener.carry(self.listener.door.on_message([identity, payload], 100.0))
        self.mirror.sweep()

    @property
    def names(self) -> list[str]:
        pool = self.fleet.pool("m")
        return [] if pool is None else [member.name for member in pool.members]


def test_engines_come_and_go_as_endpoints_of_the_model() -> None:
    stage = Stage()
    stage.say(A, wire.REGISTRATION)
    stage.say(B, wire.REGISTRATION)
    assert stage.names == ["zmq.mp-coord-0", "zmq.mp-coord-1"]
    assert stage.fleet.endpoints["zmq.mp-coord-0"].max_in_flight == 7
    stage.say(A, wire.DISCONNECT)
    assert stage.names == ["zmq.mp-coord-1"]
    assert "zmq.mp-coord-0" in stage.upstreams  # what is open there can still be cancelled


def test_a_restarted_engine_is_a_new_endpoint_incarnation() -> None:
    stage = Stage()
    stage.say(A, wire.REGISTRATION)
    before = stage.fleet.endpoints["zmq.mp-coord-0"]
    stage.say(A, wire.REGISTRATION)
    after = stage.fleet.endpoints["zmq.mp-coord-0"]
    assert (after is before, before.gone, after.gone) == (False, True, False)


def test_native_load_counts_beside_that_of_http() -> None:
    stage = Stage()
    stage.say(A, wire.REGISTRATION)
    stage.say(X, wire.connect())
    for number in range(3):
        stage.say(X, wire.submit(number, "p", {}))
    endpoint = stage.fleet.endpoints["zmq.mp-coord-0"]
    assert (endpoint.in_flight, endpoint.running, endpoint.waiting) == (0, 3, 0)


def test_engines_that_take_no_requests_are_draining() -> None:
    stage = Stage()
    stage.say(A, wire.REGISTRATION)
    stage.listener.door.saturated(A, 100.0, full=True)
    stage.mirror.sweep()
    assert stage.fleet.endpoints["zmq.mp-coord-0"].draining
    stage.listener.door.saturated(A, 100.0, full=False)
    stage.mirror.sweep()
    assert not stage.fleet.endpoints["zmq.mp-coord-0"].draining


def test_a_configured_endpoint_keeps_its_name() -> None:
    stage = Stage()
    configured = options.Endpoint(name="zmq.mp-coord-0", url="http://h:1", models=["other"])
    stage.fleet.add(configured, 100.0)
    stage.say(A, wire.REGISTRATION)
    assert stage.names == []
    assert stage.fleet.endpoints["zmq.mp-coord-0"].models == {"other"}


def test_identities_that_come_and_go_leave_a_bounded_rest() -> None:
    stage = Stage()
    for number in range(400):
        identity = b"e%d" % number
        stage.listener.attach(identity, id)
        stage.say(identity, wire.REGISTRATION)
        stage.say(identity, wire.DISCONNECT)
    assert len(stage.upstreams) == 256

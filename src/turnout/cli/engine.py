"""`turnout engine`: one simulated engine on a socket until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Annotated, Literal

import typer
import uvloop

from turnout.sim.faults import parse_fault
from turnout.sim.kv_journal import KvEncoding, KvHashes
from turnout.sim.options import Dialect, EngineOptions, FailurePolicy, MetricNames, Profile, Role
from turnout.sim.server import SimEngineServer

Transport = Literal["http", "zmq"]
EXIT_STATUS = 70
"""Status of a process that the fault `exit` ended."""


def engine(
    *,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 9001,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    model: Annotated[str, typer.Option(help="Model name that is served; it also seeds the text.")] = "sim",
    name: Annotated[str, typer.Option(help="Name of this instance.")] = "engine",
    seed: Annotated[int, typer.Option(help="Seed of text, jitter and faults; equal on all replicas of a model.")] = 0,
    profile: Annotated[Profile, typer.Option(help="Timing model: the linear table (default) or a roofline.")] = "8b",
    speed: Annotated[float, typer.Option(help="Steps run this many times faster.")] = 1.0,
    jitter: Annotated[float, typer.Option(help="Largest relative change of a step's duration, at most 0.3.")] = 0.0,
    mean_output_tokens: Annotated[int, typer.Option(help="Mean length of an answer that ends by itself.")] = 128,
    max_model_len: Annotated[int, typer.Option(help="Longest prompt and output together, in tokens.")] = 131_072,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run at once.")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Token budget of one step.")] = 2048,
    num_blocks: Annotated[int | None, typer.Option(help="KV blocks; the profile's own number when absent.")] = None,
    block_tokens: Annotated[int, typer.Option(help="Tokens per KV block.")] = 16,
    cache_multiple: Annotated[int, typer.Option(help="Host tier: this many times the KV blocks.")] = 1,
    prefill_tokens_per_s: Annotated[float, typer.Option(help="Profile default: prefill rate.")] = 8000.0,
    step_base_s: Annotated[float, typer.Option(help="Profile default: fixed part of a step.")] = 0.006,
    step_per_seq_s: Annotated[float, typer.Option(help="Profile default: per decoding sequence.")] = 0.00035,
    step_per_context_token_s: Annotated[float, typer.Option(help="Profile default: per token of context.")] = 0.0,
    cached_tokens: Annotated[bool, typer.Option(help="Report cached tokens in usage.")] = True,
    metric_names: Annotated[MetricNames, typer.Option(help="Spelling of the metric names.")] = "new",
    kv_events: Annotated[str, typer.Option(help="Publish KV events at this ZeroMQ address, as tcp://*:5557.")] = "",
    kv_replay: Annotated[str, typer.Option(help="Answer replays of KV events at this ZeroMQ address.")] = "",
    kv_topic: Annotated[str, typer.Option(help="Topic of the KV events.")] = "",
    events: Annotated[KvEncoding, typer.Option(help="Encoding of KV events.")] = "array",
    event_hashes: Annotated[KvHashes, typer.Option(help="Type of the block hashes in KV events.")] = "bytes",
    event_delay: Annotated[float, typer.Option(help="Seconds by which KV events are late.")] = 0.0,
    kv_load: Annotated[str, typer.Option(help="Publish load reports at this ZeroMQ address, as SGLang does.")] = "",
    dp_size: Annotated[int, typer.Option(help="Data-parallel ranks; each publishes at the next port.")] = 1,
    dialect: Annotated[
        Dialect, typer.Option(help="sglang: /generate, too; role and events at /server_info, loads at /v1/loads.")
    ] = "vllm",
    role: Annotated[Role, typer.Option(help="Leg of a bootstrap hand-over that it takes.")] = "both",
    kv_host: Annotated[str, typer.Option(help="Host that a prefill engine names as its own.")] = "",
    kv_lease_s: Annotated[float, typer.Option(help="How long blocks are kept that nobody has fetched.")] = 30.0,
    kv_load_failure_policy: Annotated[FailurePolicy, typer.Option(help="What a failed transfer means.")] = "fail",
    transport: Annotated[Transport, typer.Option(help="http listens; zmq registers at a coordinator door.")] = "http",
    connect: Annotated[str, typer.Option(help="Transport zmq: address of the door.")] = "tcp://127.0.0.1:5600",
    fault: Annotated[
        list[str] | None, typer.Option(help="Inject a failure, as kind=status,status=503,probability=0.1,count=3.")
    ] = None,
) -> None:
    """Run one simulated OpenAI-compatible engine.

    Examples:
      turnout engine --port 9001 --profile 8b
      turnout engine --transport zmq --name mp-coord-0 --profile 8b
      turnout engine --port 9002 --fault kind=stall,after_tokens=5,seconds=3 --fault kind=status,status=429,count=2
    """
    try:
        options = EngineOptions(
            host=host,
            port=port,
            model=model,
            name=name,
            seed=seed,
            profile=profile,
            speed=speed,
            jitter=jitter,
            mean_output_tokens=mean_output_tokens,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            cache_multiple=cache_multiple,
            prefill_tokens_per_s=prefill_tokens_per_s,
            step_base_s=step_base_s,
            step_per_seq_s=step_per_seq_s,
            step_per_context_token_s=step_per_context_token_s,
            cached_tokens=cached_tokens,
            metric_names=metric_names,
            kv_events=kv_events,
            kv_replay=kv_replay,
            kv_topic=kv_topic,
            kv_encoding=events,
            kv_hashes=event_hashes,
            kv_delay_s=event_delay,
            kv_load=kv_load,
            dp_size=dp_size,
            dialect=dialect,
            role=role,
            kv_host=kv_host,
            kv_lease_s=kv_lease_s,
            kv_load_failure_policy=kv_load_failure_policy,
            faults=tuple(parse_fault(text) for text in fault or ()),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if transport == "zmq":
        from turnout.cli.zmq_engine import serve_zmq  # loads the ZeroMQ library

        uvloop.run(serve_zmq(options, connect))
        return
    uvloop.run(_serve(options))


async def _serve(options: EngineOptions) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # The fault `exit` must look like a crash to everyone else: no clean-up, sockets closed by the kernel.
    server = SimEngineServer(options, die=lambda: os._exit(EXIT_STATUS))
    try:
        host, port = await server.start()
    except OSError as error:
        typer.echo(f"cannot listen on {options.host}:{options.port}: {error.strerror}", err=True)
        raise SystemExit(1) from error
    typer.echo(f"listening on http://{host}:{port} model {options.model}")
    await stopped.wait()
    await server.stop()

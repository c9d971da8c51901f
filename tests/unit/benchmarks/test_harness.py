"""Finding the load tools and the peers, and the configuration that is measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from benchmarks import harness
from benchmarks.compare import choose, ledger_fact
from benchmarks.memory import Sample, at_concurrency, judged, long_streams

from turnout.config.load import load


def tools(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in harness.FILES:
        (folder / name).touch()
    return folder


def test_the_option_wins_over_the_environment_and_that_over_the_neighbour(tmp_path: Path) -> None:
    given, named, beside = (tools(tmp_path / name) for name in ("given", "named", "shared/bench"))
    environ = {"TURNOUT_BENCH": str(named)}
    assert harness.find(given, environ, tmp_path / "repository") == given
    assert harness.find(None, environ, tmp_path / "repository") == named
    assert harness.find(None, {}, tmp_path / "repository") == beside


def test_without_load_tools_it_says_where_it_looked_and_how_to_name_them(tmp_path: Path) -> None:
    with pytest.raises(harness.Unusable, match=r"(?s)shared/bench .*is not there.*--harness DIR.*TURNOUT_BENCH"):
        harness.find(None, {}, tmp_path / "repository")


def test_a_folder_that_lacks_a_file_is_told_which(tmp_path: Path) -> None:
    (tools(tmp_path / "bench") / "lg.c").unlink()
    with pytest.raises(harness.Unusable, match=r"\(--harness\) lacks lg\.c"):
        harness.find(tmp_path / "bench", {}, tmp_path)


def test_the_measured_configuration_is_valid_and_knows_the_key_of_the_load_generator(tmp_path: Path) -> None:
    path = tmp_path / "bench.toml"
    path.write_text(harness.turnout_toml(8120, 9190, tmp_path / "turnout.db"), encoding="utf-8")
    config = load(path, {}).config
    assert [endpoint.url for endpoint in config.endpoint] == [f"http://127.0.0.1:{port}" for port in range(9001, 9005)]
    assert [key.digest for key in config.key] == [f"sha256:{hashlib.sha256(b'sk-1234').hexdigest()}"]
    assert config.ledger.url == f"sqlite:///{tmp_path}/turnout.db"


def test_a_peer_is_here_when_its_program_is(tmp_path: Path) -> None:
    program = tmp_path / "sglang" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    targets = {
        "direct": {"cmd": ""},
        "sglang-ca": {"cmd": "{PEERS}/sglang/bin/python -m router"},
        "litellm": {"cmd": "{PEERS}/litellm/bin/litellm --port 1"},
    }
    assert harness.split_peers(targets, tmp_path) == (["direct", "sglang-ca"], ["litellm"])


def test_the_hint_names_what_to_install() -> None:
    hint = harness.install_hint(["sglang-rr", "sglang-ca", "nginx"], Path("/h"), Path("/p"))
    assert hint == "PEERS=/p bash /h/install_peers.sh sglang nginx"
    assert harness.install_hint([], Path("/h"), Path("/p")) == ""


def test_turnout_runs_last_and_an_unknown_target_is_refused(tmp_path: Path) -> None:
    assert choose({"direct": {"cmd": ""}}, tmp_path, "mine,direct") == (["direct", "mine"], [])
    with pytest.raises(harness.Unusable, match="got typo"):
        choose({"direct": {"cmd": ""}}, tmp_path, "typo")


def test_a_port_in_use_is_refused() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(harness.Unusable, match=f"port {port} is in use"):
            harness.require_free([port])


def test_a_ledger_that_was_not_written_is_told(tmp_path: Path) -> None:
    assert ledger_fact(tmp_path / "turnout.db", 10) == "none was written"


def test_memory_counts_only_samples_at_the_wanted_concurrency() -> None:
    samples = [Sample(10, 0), Sample(50, 900), Sample(60, 1000), Sample(70, 1000), Sample(20, 3)]
    assert at_concurrency(samples, 1000) == 60
    with pytest.raises(harness.Unusable, match="expected 2000 concurrent streams, saw at most 1000"):
        at_concurrency(samples, 2000)


def test_long_streams_change_nothing_but_their_length() -> None:
    asked = json.loads(long_streams('{"model": "mock-model", "max_tokens": 64, "seed": 10}\n'))
    assert asked == {"model": "mock-model", "max_tokens": 120, "seed": 50}


def test_memory_per_stream_is_the_slope_between_few_and_many() -> None:
    lines = judged(30 * 1024, 36_000, 36_000 + 900 * 20, 50 * 1024, 55 * 1024, 200_000)
    assert [line.measured for line in lines] == ["30.0 MB", "52.7 MB", "20.0 kB", "5.0 MB"]
    assert [line.verdict for line in lines] == ["met", "met", "met", "**not met**"]

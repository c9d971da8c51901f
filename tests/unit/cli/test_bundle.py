"""`turnout bundle` from end to end on small labels: fit, inspect, eval, diff, promote, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from turnout.cli.bundle import app

RUN = CliRunner()
WORDS = ("sum integral prove matrix", "poem verse rhyme story", "law court judge appeal")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    lines = ["group,prompt,cheap,good"]
    for number in range(48):
        topic = number % 3
        words = WORDS[topic].split()
        text = " ".join(words[(number * step) % 4] for step in (1, 2, 3, 5))
        lines.append(f"t{topic},{text} number {number},{int(topic != 0)},{int(number % 10 != 9)}")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def ask(*arguments: object) -> tuple[int, str]:
    result = RUN.invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_fit_inspect_eval_diff_promote(labels: Path, tmp_path: Path) -> None:
    store = tmp_path / "bundles"
    code, said = ask(
        "fit",
        labels,
        "--wide",
        "--version",
        "v1",
        "-d",
        store,
        "--price",
        "cheap=0.1,0.2",
        "--price",
        "good=10,30",
        "--write-v1",
    )
    assert code == 0, said
    assert "linear head:" in said
    assert ask("fit", labels, "--wide", "--version", "v1", "-d", store)[0] == 2
    assert ask("inspect", "-d", store)[0] == 2  # nothing promoted yet
    assert ask("promote", "v1", "-d", store)[0] == 0
    code, said = ask("inspect", "-d", store, "--json")
    found = json.loads(said)
    assert (code, found["version"], found["format"], sorted(found["models"])) == (0, "v1", 2, ["cheap", "good"])
    assert found["models"]["good"]["input_per_1m_usd"] == 10
    assert ask("inspect", "v1", "-d", store)[1].count("winner per cluster") == 1
    fixture = tmp_path / "fixture.jsonl"
    fixture.write_text('{"prompt_id": "1", "text": "prove the integral", "source": "s"}\n')
    out = tmp_path / "out.csv"
    code, said = ask("diff", "v1", "v1", "--fixture", fixture, "-d", store, "--out", out)
    assert (code, said.strip().splitlines()) == (
        0, ["1 prompts, top-1 agreement 1.0000, largest score gap of a divergence 0.000000", "gate passed"],
    )  # fmt: skip
    assert out.read_text().startswith("prompt_id,")
    assert ask("diff", "v1", "v1", "--fixture", fixture, "-d", store, "--fixture-sha256", "0" * 64)[0] == 2


def test_V2MatchesV1(labels: Path, tmp_path: Path) -> None:
    store, fixture = tmp_path / "bundles", tmp_path / "fixture.jsonl"
    ask(
        "fit",
        labels,
        "--wide",
        "--version",
        "v1",
        "-d",
        store,
        "--price",
        "cheap=1,1",
        "--price",
        "good=2,2",
        "--write-v1",
        "--head",
        "off",
        "--abstain",
        0,
    )
    rows = labels.read_text().splitlines()[1:]
    fixture.write_text(
        "".join(json.dumps({"prompt_id": str(n), "text": row.split(",")[1]}) + "\n" for n, row in enumerate(rows))
    )
    code, said = ask("diff", "v1", "--fixture", fixture, "-d", store)
    assert (code, "agreement 1.0000" in said) == (0, True)


def test_eval_prints_every_figure_beside_length(labels: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curve.svg"
    code, said = ask("eval", labels, "--wide", "--head", "off", "--plot", picture)
    assert code == 0, said
    for word in (
        "random",
        "length",
        "bundle",
        "oracle",
        "APGR",
        "CPT50",
        "CPT80",
        "best single model good",
        "groups score below",
    ):
        assert word in said
    assert picture.read_text().startswith("<svg")
    found = json.loads(ask("eval", labels, "--wide", "--head", "off", "--json")[1])
    assert found["figures"]["random"]["apgr"]["value"] == pytest.approx(0.5)
    assert found["figures"]["length"]["cpt50"]["value"] >= 0


def test_eval_gates_a_new_version_against_an_old_one(labels: Path, tmp_path: Path) -> None:
    store, wrong = tmp_path / "bundles", tmp_path / "wrong.csv"
    rows = [line.split(",") for line in labels.read_text().splitlines()]
    wrong.write_text(
        "\n".join(",".join([*row[:2], row[3], row[2]] if row[0] != "group" else row) for row in rows) + "\n"
    )
    ask("fit", labels, "--wide", "--version", "good", "-d", store, "--head", "off")
    ask("fit", wrong, "--wide", "--version", "bad", "-d", store, "--head", "off")
    assert ask("eval", labels, "--wide", "--version", "good", "--against", "bad", "-d", store)[0] == 0
    code, said = ask("eval", labels, "--wide", "--version", "bad", "--against", "good", "-d", store)
    assert (code, "gate failed" in said) == (1, True)


def test_an_exported_encoder_fits_and_judges(encoder: Path, tmp_path: Path) -> None:
    store, labels, fixture = tmp_path / "bundles", tmp_path / "labels.csv", tmp_path / "fixture.jsonl"
    rows = [f"{word} number {at},{int(word == 'hot')},1" for at in range(12) for word in ("hot", "cold")]
    labels.write_text("\n".join(["prompt,cheap,good", *rows]) + "\n")
    fixture.write_text('{"prompt_id": "1", "text": "hot"}\n')
    fitted = ("fit", labels, "--wide", "-d", store, "--k", 2, "--embedder", encoder)
    assert ask(*fitted, "--version", "v1", "--promote")[0] == 0
    document = json.loads(ask("inspect", "-d", store, "--json")[1])
    assert (document["embedder"], document["dim"]) == ("tiny-1", 3)
    judged = ("eval", labels, "--wide", "-d", store, "--head", "off")
    assert ask(*judged, "--embedder", encoder)[0] == 0
    assert ask(*judged, "--version", "v1", "--embedder", encoder)[0] == 0
    assert ask("diff", "v1", "v1", "--fixture", fixture, "-d", store, "--embedder", encoder)[0] == 0
    code, said = ask(*judged, "--version", "v1")
    assert (code, "--embedder: expected the folder of tiny-1" in said) == (2, True)
    code, said = ask(*fitted[:-1], tmp_path, "--version", "v2")
    assert (code, "manifest.json" in said) == (2, True)


def test_eval_holds_out_whole_groups(labels: Path, tmp_path: Path) -> None:
    found = json.loads(ask("eval", labels, "--wide", "--head", "off", "--by-group", "--json")[1])
    assert found["how"].startswith("5 folds of whole groups")
    code, said = ask("eval", labels, "--wide", "--by-group", "--version", "v1", "-d", tmp_path)
    assert (code, "--by-group: expected neither" in said) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scores", "rank"), "--scores: expected one of zscore, none, minmax"),
        (("--head", "maybe"), "--head: expected one of auto, on, off"),
        (("--price", "good"), "--price: expected MODEL=IN,OUT"),
        (("--price", "good=nan,1"), "--price: expected MODEL=IN,OUT"),
    ],
)
def test_bad_options_exit_with_2(labels: Path, tmp_path: Path, options: tuple[str, str], message: str) -> None:
    code, said = ask("fit", labels, "--wide", "--version", "v1", "-d", tmp_path / "b", *options)
    assert (code, message in said) == (2, True)


def test_a_plot_is_svg_or_png(labels: Path, tmp_path: Path) -> None:
    asked = ("eval", labels, "--wide", "--head", "off", "--plot")
    assert ask(*asked, tmp_path / "curve.png")[0] == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    code, said = ask(*asked, tmp_path / "curve.pdf")
    assert (code, "ends in .svg or .png" in said.replace("\n", " ")) == (2, True)
    code, said = ask(*asked, tmp_path / "nowhere" / "curve.png")
    assert (code, "--plot: expected a file that can be written" in said.replace("\n", " ")) == (2, True)


def test_eval_says_how_the_first_choice_does_over_all_seeds(labels: Path) -> None:
    said = ask("eval", labels, "--wide", "--head", "off", "--seeds", 3)[1]
    assert "over 3 seeds: mean " in said
    found = json.loads(ask("eval", labels, "--wide", "--head", "off", "--seeds", 3, "--json")[1])
    assert len(found["at_full_quality"]["points_by_seed"]) == 3

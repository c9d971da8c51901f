"""`turnout bundle`: fit, judge, compare and release the artefact that `model: auto` chooses by.

Exit 0 ok, 1 a gate failed, 2 bad input. Each verb's work has a module of its own, loaded only when it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Labels = Annotated[Path, typer.Argument(metavar="LABELS", help="CSV or JSON lines of labels, may end in .gz.")]
Directory = Annotated[Path, typer.Option("--bundle-dir", "-d", metavar="DIR", help="The bundle directory.")]
Wide = Annotated[bool, typer.Option("--wide", help="One column per model instead of one row per prompt and model.")]
Clusters = Annotated[
    int | None, typer.Option("--k", min=1, max=65_536, help="Clusters; default √(prompts / 4), 4 to 64.")
]
Scoring = Annotated[str, typer.Option("--scores", help="Scale per prompt: zscore, none or minmax.")]
Head = Annotated[str, typer.Option("--head", help="Linear head: auto (by cross-validation), on or off.")]
Abstain = Annotated[
    float,
    typer.Option(
        "--abstain",
        min=0,
        max=1,
        help="Quantile of held-out similarity below which a prompt is out of domain; 0: never.",
    ),
]
Prices = Annotated[
    list[str] | None, typer.Option("--price", metavar="MODEL=IN,OUT", help="USD per 1M tokens of a model; repeatable.")
]
Encoder = Annotated[
    Path | None,
    typer.Option("--embedder", metavar="DIR", help="Folder of an exported encoder (extra onnx); default: built-in."),
]
Encoders = Annotated[
    list[Path] | None,
    typer.Option("--embedder", metavar="DIR", help="Folder of the encoder a version was fitted with; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print a document instead of tables.")]
DEFAULT_DIRECTORY = Path("bundles")


@app.callback()
def bundle() -> None:
    """Fit, judge and release bundles.

    \b
    Examples:
      turnout bundle fit labels.csv --wide --version v1 --promote
      turnout bundle eval labels.csv --wide --plot curve.svg
      turnout bundle inspect v1
      turnout bundle diff v1 v2 --fixture prompts.jsonl
      turnout bundle promote v2
    """  # noqa: D301 - \b keeps the lines of the examples


@app.command()
def fit(
    labels: Labels,
    version: Annotated[str, typer.Option(help="Name of the new version.")],
    bundle_dir: Directory = DEFAULT_DIRECTORY,
    *,
    wide: Wide = False,
    k: Clusters = None,
    scores: Scoring = "zscore",
    head: Head = "auto",
    abstain: Abstain = 0.01,
    price: Prices = None,
    provider: Annotated[str, typer.Option(help="Provider of the models, for the registry.")] = "default",
    promote: Annotated[bool, typer.Option("--promote", help="Make `latest` name the new version.")] = False,
    write_v1: Annotated[bool, typer.Option("--write-v1", help="Add rankings.json at the default knobs.")] = False,
    embedder: Encoder = None,
) -> None:
    """Fit a bundle from labels: the same labels give the same digest.

    \b
    Examples:
      turnout bundle fit labels.csv.gz --wide --version v1
      turnout bundle fit rows.jsonl --version v2 --head off --price gpt-x=10,30 --promote
    """  # noqa: D301 - \b keeps the lines of the examples
    from turnout.cli import bundle_fit

    _run(
        lambda: bundle_fit.run(
            labels, version, bundle_dir, wide=wide, clusters=k, scoring=scores, head=head, abstain=abstain,
            prices=price or [], provider=provider, promote_it=promote, write_v1=write_v1,
            encoder=embedder,
        )
    )  # fmt: skip


@app.command("eval")
def evaluate(
    labels: Labels,
    *,
    wide: Wide = False,
    k: Clusters = None,
    scores: Scoring = "zscore",
    head: Head = "auto",
    abstain: Abstain = 0.01,
    price: Prices = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=50, help="Cross-validations with other folds; figures are means.")
    ] = 1,
    test: Annotated[
        Path | None, typer.Option(metavar="LABELS", help="Judge on these labels instead of by folds.")
    ] = None,
    version: Annotated[str, typer.Option(help="Judge this version instead of a fit; LABELS must be new to it.")] = "",
    against: Annotated[str, typer.Option(help="A version that must not be beaten downwards: the gate.")] = "",
    bundle_dir: Directory = DEFAULT_DIRECTORY,
    weak: Annotated[str, typer.Option(help="The cheap model of the pair.")] = "",
    strong: Annotated[str, typer.Option(help="The good model of the pair.")] = "",
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plot, as .svg or .png.")] = None,
    by_group: Annotated[
        bool, typer.Option("--by-group", help="Hold out whole groups of labels: how it does out of domain.")
    ] = False,
    embedder: Encoders = None,
    json_: Json = False,
) -> None:
    """Judge by 5 folds (or on --test): next to random, prompt length, the best single model and the oracle.

    \b
    Examples:
      turnout bundle eval labels.csv.gz --wide --seeds 5 --plot curve.svg
      turnout bundle eval mmlu.csv.gz --wide --test gsm8k.csv.gz
      turnout bundle eval mmlu.csv.gz --wide --by-group
      turnout bundle eval new.csv --wide --version v2 --against v1
    """  # noqa: D301 - \b keeps the lines of the examples
    from turnout.cli import bundle_eval

    _run(
        lambda: bundle_eval.run(
            labels, wide=wide, clusters=k, scoring=scores, head=head, abstain=abstain, prices=price or [], seeds=seeds,
            test=test, version=version, against=against, directory=bundle_dir, weak=weak, strong=strong, plot=plot,
            as_json=json_, by_group=by_group, encoders=embedder or (),
        )
    )  # fmt: skip


@app.command()
def inspect(
    version: Annotated[str, typer.Argument(help="The version, default: what `latest` names.")] = "latest",
    bundle_dir: Directory = DEFAULT_DIRECTORY,
    *,
    json_: Json = False,
) -> None:
    """Load a version with every check and show what is in it.

    \b
    Examples:
      turnout bundle inspect
      turnout bundle inspect v2 --json
    """  # noqa: D301 - \b keeps the lines of the examples
    from turnout.cli import bundle_inspect

    _run(lambda: bundle_inspect.run(version, bundle_dir, as_json=json_))


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="A", help="The version in force; with no B: its v1 against its v2.")],
    new: Annotated[str, typer.Argument(metavar="B", help="The version that shall replace it.")] = "",
    *,
    fixture: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines of {prompt_id, text, source}.")],
    fixture_sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="Digest that the fixture must have.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="CSV", help="Write the divergences.")] = None,
    embedder: Encoders = None,
    bundle_dir: Directory = DEFAULT_DIRECTORY,
) -> None:
    """Compare first choices on a fixture; exit 1 when the release gate fails.

    \b
    Examples:
      turnout bundle diff v1 v2 --fixture prompts.jsonl --out divergences.csv
    """  # noqa: D301 - \b keeps the lines of the examples
    from turnout.cli import bundle_diff

    _run(lambda: bundle_diff.run(old, new, fixture, fixture_sha256, out, bundle_dir, embedder or ()))


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="A version that loads.")], bundle_dir: Directory = DEFAULT_DIRECTORY
) -> None:
    """Make `latest` name a version; a running router follows within 30 s.

    \b
    Examples:
      turnout bundle promote v2
    """  # noqa: D301 - \b keeps the lines of the examples
    from turnout.bundles.directory import BundleDirectory
    from turnout.bundles.writing import promote as name_latest

    def work() -> int:
        name_latest(BundleDirectory(bundle_dir), version)
        typer.echo(f"latest is {version}")
        return 0

    _run(work)


def _run(work: object) -> None:
    from turnout.cli.bundle_output import exit_with

    exit_with(work)  # type: ignore[arg-type]

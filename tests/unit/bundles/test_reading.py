"""Every load check of selection §2 with one broken bundle and its message; and what a good one means."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]

from turnout.bundles.fault import BundleError
from turnout.bundles.reading import Settings, digest_of, parse
from turnout.core.selection.embedder import Hashgram
from turnout.core.selection.knobs import Preset

Files = dict[str, bytes]
Change = Callable[[Files], Files]


def centroids(rows: list[list[float]]) -> bytes:
    table = np.array(rows, dtype="<f4")
    return struct.pack("<4sIII", b"CRT1", 1, *table.shape) + table.tobytes()


def changed_json(files: Files, name: str, change: Callable[[Any], object]) -> Files:
    document = json.loads(files[name])
    change(document)
    return files | {name: json.dumps(document).encode()}


def changed_yaml(files: Files, change: Callable[[Any], object]) -> Files:
    document = yaml.safe_load(files["metadata.yaml"])
    change(document)
    return files | {"metadata.yaml": yaml.safe_dump(document).encode()}


def json_of(name: str, change: Callable[[Any], object]) -> Change:
    return lambda files: changed_json(files, name, change)


def yaml_of(change: Callable[[Any], object]) -> Change:
    return lambda files: changed_yaml(files, change)


def instead(name: str, raw: bytes | None) -> Change:
    def change(files: Files) -> Files:
        kept = {key: value for key, value in files.items() if key != name}
        return kept if raw is None else kept | {name: raw}

    return change


def head(rows: int, dim: int) -> bytes:
    return struct.pack("<4sIII", b"LNH1", 1, rows, dim) + bytes(4 * rows * (dim + 1))


GOOD = centroids([[1, 0, 0], [0, 1, 0]])
Q, X, R, M = "quality_means.json", "model_axes.json", "model_registry.json", "metadata.yaml"
BROKEN: list[tuple[str, Change, str]] = [
    ("short centroids", instead("centroids.bin", b"CRT1"), "centroids.bin: size: expected at least 16 bytes, got 4"),
    ("no centroids", instead("centroids.bin", None), "centroids.bin: expected the file, got no such file"),
    ("magic", instead("centroids.bin", b"XXXX" + GOOD[4:]), "centroids.bin: magic: expected CRT1, got XXXX"),
    ("version", instead("centroids.bin", GOOD[:4] + b"\2" + GOOD[5:]), "centroids.bin: version: expected 1, got 2"),
    ("K is 0", instead("centroids.bin", struct.pack("<4sIII", b"CRT1", 1, 0, 3)), "K: expected 1 to 65536, got 0"),
    ("dim is 0", instead("centroids.bin", struct.pack("<4sIII", b"CRT1", 1, 3, 0)), "dim: expected 1 to 16384, got 0"),
    ("K too large", instead("centroids.bin", struct.pack("<4sIII", b"CRT1", 1, 65537, 1)), "K: expected 1 to 65536"),
    ("dim too large", instead("centroids.bin", struct.pack("<4sIII", b"CRT1", 1, 1, 16385)), "dim: expected 1 to 16384"),
    ("trailing bytes", instead("centroids.bin", GOOD + b"\0"), "size: expected 40 bytes for 2 rows of 3, got 41"),
    ("not finite", instead("centroids.bin", GOOD[:-4] + struct.pack("<f", math.nan)), "row 1, column 2: expected a finite"),
    ("no unit row", instead("centroids.bin", centroids([[1, 0, 0], [0, 1.01, 0]])), "row 1: expected an L2 norm of 1"),
    ("not canonical", json_of(Q, lambda d: d["quality_means"].update({"01": {"a": 1, "b": 1}})), "cluster numbers 0 to 1, got 01"),
    ("no number", json_of(Q, lambda d: d["quality_means"].update({"1a": {"a": 1, "b": 1}})), "cluster numbers 0 to 1, got 1a"),
    ("minus zero", json_of(Q, lambda d: d["quality_means"].update({"-0": {"a": 1, "b": 1}})), "cluster numbers 0 to 1, got -0"),
    ("beyond K", json_of(Q, lambda d: d["quality_means"].update({"2": {"a": 1, "b": 1}})), "cluster numbers 0 to 1, got 2"),
    ("row missing", json_of(Q, lambda d: d["quality_means"].pop("1")), "a row for every cluster, got none for 1"),
    ("row empty", json_of(Q, lambda d: d["quality_means"]["1"].clear()), "quality_means.1: expected a number for each model"),
    ("model missing", json_of(Q, lambda d: d["quality_means"]["1"].pop("b")), "deployed model b, got none"),
    ("text for a number", json_of(Q, lambda d: d["quality_means"]["1"].update(b="9")), "quality_means.1.b: expected a number, got 9"),
    ("bool for a number", json_of(Q, lambda d: d["quality_means"]["1"].update(b=True)), "quality_means.1.b: expected a number"),
    ("NaN literal", instead(Q, b'{"quality_means": {"0": {"a": NaN}}}'), "strict JSON in UTF-8, got the literal NaN"),
    ("Infinity literal", instead(Q, b'{"quality_means": -Infinity}'), "got the literal -Infinity"),
    ("number beyond float", instead(Q, b'{"quality_means": {"0": {"a": 1e999, "b": 1}, "1": {"a": 1, "b": 1}}}'), "a finite number"),
    ("duplicate key", instead(Q, b'{"quality_means": {}, "quality_means": {}}'), "quality_means: expected each key once"),
    ("no JSON", instead(Q, b"{"), "quality_means.json: expected strict JSON"),
    ("no axes", instead(X, None), "model_axes.json: expected the file"),
    ("axes of a model", json_of(X, lambda d: d["axes"].pop("a")), "deployed model a"),
    ("negative price", json_of(X, lambda d: d["axes"]["a"].update(input_per_1k_usd=-1)), "axes.a.input_per_1k_usd: expected a price of at least 0"),
    ("negative time", json_of(X, lambda d: d["axes"]["a"].update(ttft_s=-0.1)), "axes.a.ttft_s: expected a number in [0, inf]"),
    ("both units", json_of(X, lambda d: d["axes"]["a"].update(input_per_1m_usd=1)), "one unit for the input price, not both"),
    ("no registry", instead(R, None), "model_registry.json: expected the file"),
    ("empty registry", json_of(R, lambda d: d.update(deployed_models=[])), "deployed_models: expected at least one model"),
    ("empty model", json_of(R, lambda d: d["deployed_models"][0].update(model="")), "deployed_models[0].model: expected a non-empty string"),
    ("no provider", json_of(R, lambda d: d["deployed_models"][1].pop("provider")), "deployed_models[1].provider: expected a non-empty"),
    ("no column", json_of(R, lambda d: d["deployed_models"][0].update(bench_column=3)), "deployed_models[0].bench_column: expected a non-empty"),
    ("no metadata", instead(M, None), "metadata.yaml: expected the file"),
    ("other dim", yaml_of(lambda d: d["embedder"].update(embed_dim=4)), "embedder.embed_dim: expected 3, the dim of centroids.bin"),
    ("no embedder", yaml_of(lambda d: d.pop("embedder")), "embedder"),
    ("alpha length", yaml_of(lambda d: d["training"]["default_routing_knobs"].update(alpha=[0.5])), "alpha: expected 2 values"),
    ("floor length", yaml_of(lambda d: d["training"]["default_routing_knobs"].update(alpha_floor=[0.5] * 3)), "alpha_floor: expected 2 values"),
    ("alpha range", yaml_of(lambda d: d["training"]["default_routing_knobs"].update(alpha=[0.5, 1.5])), "alpha[1]: expected a number in [0, 1]"),
    ("alpha and speed", yaml_of(lambda d: d["training"]["default_routing_knobs"].update(speed_weight=0.2)), "knobs in range (alpha 0.9 of cluster 1"),
    ("ratio", yaml_of(lambda d: d["training"]["default_routing_knobs"].update(output_cost_ratio=11)), "output_cost_ratio: expected a number in [0, 10]"),
    ("tokens", yaml_of(lambda d: d["training"]["default_routing_knobs"].update(expected_output_tokens=1.5)), "expected_output_tokens: expected an integer"),
    ("verbosity", yaml_of(lambda d: d["training"]["default_routing_knobs"].update(per_model_verbosity=1)), "per_model_verbosity: expected true or false"),
    ("preset", yaml_of(lambda d: d["training"].update(recommended_ui_defaults={"x": {"alpha": 0.9, "speed_weight": 0.2}})), "recommended_ui_defaults.x: expected alpha + speed_weight"),
    ("top_p", yaml_of(lambda d: d["training"].update(top_p=3)), "training.top_p: expected a top_p of 1 to 2"),
    ("threshold", yaml_of(lambda d: d["cache_config"].update(default_threshold=0.4)), "default_threshold: expected a number in [0.5, 1]"),
    ("threshold of nobody", yaml_of(lambda d: d["cache_config"].update(per_cluster_threshold={"7": 0.9})), "cluster numbers 0 to 1, got 7"),
    ("duplicate YAML key", instead(M, b"a: 1\na: 2\n"), "metadata.yaml: a: expected each key once"),
    ("YAML object", instead(M, b"a: !!python/object/apply:os.getcwd []\n"), "YAML of plain values"),
    ("no YAML", instead(M, b"a: [\n"), "YAML of plain values"),
    ("head of another shape", instead("linear_head.bin", head(3, 3)), "linear_head.bin: M, dim: expected 2 by 3, registry models and embedding, got 3 by 3"),
    ("rankings of a model", instead("rankings.json", b'{"rankings": {"0": {"a": 1}, "1": {"a": 1}}}'), "rankings.0: expected a value for the deployed model b"),
    ("psi_probe", instead("model_features.json", json.dumps({"models": {m: {"psi_probe": [1], "operational": {}} for m in "ab"}}).encode()), "models.a.psi_probe: expected 2 values"),
    ("features of a model", instead("model_features.json", b'{"models": {"a": {"psi_probe": [1, 2], "operational": {}}}}'), "deployed model b"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_each_load_check_names_version_file_field_seen_and_wanted(files: Files, change: Change, message: str) -> None:
    with pytest.raises(BundleError) as refused:
        parse("v9", change(files))
    assert message in str(refused.value)
    assert str(refused.value).startswith("bundle v9: ")


def refusal(files: Files, name: str) -> str:
    """How a row of `BROKEN` is refused."""
    [change] = [row[1] for row in BROKEN if row[0] == name]
    with pytest.raises(BundleError) as refused:
        parse("v9", change(files))
    return str(refused.value)


def test_LoadModelFeaturesRejectsWrongK(files: Files) -> None:
    assert "model_features.json: models.a.psi_probe: expected 2 values" in refusal(files, "psi_probe")


def test_RejectsTopPExceedingK(files: Files) -> None:
    assert "metadata.yaml: training.top_p: expected a top_p of 1 to 2, the number of clusters, got 3" in refusal(
        files, "top_p"
    )
    with pytest.raises(BundleError, match="top_p"):
        parse("v9", files, Settings(top_p=3))


def test_RejectsRankingsMissingDeployedModel(files: Files) -> None:
    said = refusal(files, "rankings of a model")
    assert "rankings.json: rankings.0: expected a value for the deployed model b" in said


def test_a_good_bundle(files: Files) -> None:
    bundle = parse("v9", files)
    assert (bundle.models, bundle.top_p, bundle.clusters, bundle.dim) == (("a", "b"), 1, 2, 3)
    assert bundle.quality is not None
    assert bundle.quality.tolist() == [[0.1, 0.9], [1.0, 2.0]]
    assert bundle.providers == {"a": ("q", "r"), "b": ("p",)}
    assert bundle.defaults.knobs.alpha.tolist() == [0.5, 0.9]
    assert bundle.defaults.presets["cost"] == Preset(0.35, 0.05, 0.5)
    assert bundle.defaults.presets["quality"] == Preset(0.6, 0.1, 0.25)
    assert (bundle.cache.default, bundle.cache.per_cluster) == (0.9, {1: 0.97})


def test_prices_are_micro_usd_per_million_in_decimal(files: Files) -> None:
    axes = parse("v9", files).axes
    assert axes is not None
    assert axes.price_in.tolist()[0] == 140_000
    assert math.isnan(axes.price_in[1])
    assert axes.price_out.tolist() == [2_800_000, 2_800_000]
    per_1m = changed_json(files, X, lambda d: d["axes"]["a"].update(input_per_1k_usd=None, input_per_1m_usd=0.14))
    again = parse("v9", per_1m).axes
    assert again is not None
    assert again.price_in.tolist()[0] == 140_000


def test_only_models_with_a_route_are_deployed(files: Files) -> None:
    assert parse("v9", files, Settings(routable={"b", "stranger"})).models == ("b",)


def test_BootFailsWhenNoCandidatesMatchProviders(files: Files) -> None:
    with pytest.raises(BundleError, match="expected a route to one of p, q, r, got none with a route"):
        parse("v9", files, Settings(routable=set()))


def test_DedupesDuplicateRegistryEntries(files: Files) -> None:
    assert parse("v9", files).models == ("a", "b")


def test_RejectsEmbedderIDMismatch(files: Files) -> None:
    with pytest.raises(BundleError, match=r"embedder\.model: expected hashgram-v1"):
        parse("v9", files, Settings(embedder=Hashgram()))


def test_RejectsEmbedderDimMismatch(files: Files) -> None:
    named = changed_yaml(files, lambda d: d["embedder"].update(model="hashgram-v1"))
    with pytest.raises(BundleError, match="dim: expected 1024, the embedder's, got 3"):
        parse("v9", named, Settings(embedder=Hashgram()))


def test_configuration_wins_over_the_bundle(files: Files) -> None:
    settings = Settings(top_p=2, presets={"cost": Preset(0.1, 0.0, 0.0), "mine": Preset(0.2, 0.2, 0.2)})
    bundle = parse("v9", files, settings)
    assert bundle.top_p == 2
    assert (bundle.defaults.presets["cost"].alpha, bundle.defaults.presets["mine"].alpha) == (0.1, 0.2)
    with pytest.raises(BundleError, match="a top_p of 1 to 2"):
        parse("v9", files, Settings(top_p=3))


def test_v1_needs_rankings_only(files: Files) -> None:
    old = {name: files[name] for name in ("centroids.bin", R)} | {
        "rankings.json": b'{"rankings": {"0": {"a": 1, "b": 2}, "1": {"a": 3, "b": 4}}}'
    }
    with pytest.raises(BundleError, match="no such file"):
        parse("v9", {name: old[name] for name in ("centroids.bin", R)}, Settings(top_p=2))
    with pytest.raises(BundleError, match="a top_p of 1 to 2, the number of clusters, got 4"):
        parse("v9", old)
    bundle = parse("v9", old, Settings(top_p=2))
    assert not bundle.is_v2
    assert bundle.embedder_id == "jina-v2-base-code-int8"
    assert bundle.defaults.knobs.alpha.tolist() == [0.53, 0.53]


def test_v1_metadata_without_an_embedder_block_means_the_old_one(files: Files) -> None:
    wide = np.zeros((1, 768))
    wide[0, 0] = 1
    old = {
        "centroids.bin": centroids(wide.tolist()),
        R: files[R],
        "rankings.json": b'{"rankings": {"0": {"a": 1, "b": 2}}}',
    }
    assert (
        parse("v9", old | {"metadata.yaml": b"version: v9\n"}, Settings(top_p=1)).embedder_id
        == "jina-v2-base-code-int8"
    )


def test_one_file_of_features_replaces_both_tables(files: Files) -> None:
    features = {"models": {m: {"psi_probe": [1, 2], "operational": {"ttft_s": 1, "tps": 2}} for m in "ab"}}
    kept = {name: raw for name, raw in files.items() if name not in (Q, X)}
    bundle = parse("v9", kept | {"model_features.json": json.dumps(features).encode()})
    assert bundle.quality is not None
    assert bundle.quality.tolist() == [[1, 1], [2, 2]]


def test_digest_names_the_content(files: Files) -> None:
    shuffled = dict(reversed(files.items()))
    assert digest_of(files) == digest_of(shuffled) == parse("v9", files).digest
    assert digest_of(files) != digest_of(files | {M: files[M] + b"\n"})


def test_the_head_is_read_in_the_order_of_names(files: Files) -> None:
    raw = struct.pack("<4sIII", b"LNH1", 1, 2, 3) + np.arange(8, dtype="<f4").tobytes()
    bundle = parse("v9", files | {"linear_head.bin": raw}, Settings(routable={"b"}))
    assert bundle.head is not None
    assert bundle.head.tolist() == [[4, 5, 6, 7]]

"""Fitting: golden normalisation and shrinkage, determinism, no leakage between folds, the head's calibration, labels."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from turnout.bundles.fitting import folds
from turnout.bundles.fitting.build import Price, bundle_files, in_memory
from turnout.bundles.fitting.fit import RIDGE, Plan, embed_all, fit, normalised, quality_means, ridge
from turnout.bundles.fitting.judge import ALPHAS, best_single, by_group, cost_to_reach, pick, steps
from turnout.bundles.fitting.kmeans import default_clusters, spherical_kmeans
from turnout.bundles.fitting.labels import LabelError, Labels, read
from turnout.bundles.reading import digest_of
from turnout.core.selection.embedder import Hashgram

WORDS = ("sum integral prove matrix", "poem verse rhyme story", "law court judge appeal", "cell gene protein enzyme")


def made(count: int = 240, seed: int = 0) -> Labels:
    """Prompts of four topics; the weak model fails at the first topic, the strong one nearly never."""
    rng = np.random.default_rng(seed)
    prompts, groups, scores = [], [], []
    for number in range(count):
        topic = number % 4
        words = WORDS[topic].split()
        prompts.append(f"question {number} " + " ".join(rng.choice(words, 6)))
        groups.append(f"topic{topic}")
        scores.append([float(topic != 0 and rng.random() < 0.9), float(rng.random() < 0.95)])
    return Labels(tuple(prompts), tuple(groups), ("weak", "strong"), np.array(scores))


def test_scores_per_prompt_are_normalised() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, np.nan, 0.0]])
    found = normalised(rows, "zscore")
    assert found[0].round(6).tolist() == [1.414214, -0.707107, -0.707107]
    assert found[1].tolist() == [0.0, 0.0, 0.0]
    assert found[2, [0, 2]].tolist() == [1.0, -1.0]
    assert np.isnan(found[2, 1])
    assert normalised(rows, "none") is rows
    assert normalised(rows, "minmax")[0].tolist() == [1.0, 0.0, 0.0]


def test_quality_is_shrunk_towards_the_models_mean() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], dtype=np.float32)
    targets = np.array([[1.0], [1.0], [1.0], [0.0], [0.0]])
    table = quality_means(np.eye(2), vectors, targets)  # K = 2: every prompt counts in both
    assert table[:, 0].round(6).tolist() == [0.6, 0.6]
    one = quality_means(np.array([[1.0, 0.0]]), vectors[:3], np.array([[1.0], [0.0], [1.0]]))
    assert one[0, 0] == pytest.approx((2 + 10 * 2 / 3) / 13)
    assert round((2 + 10 * 0.6) / 13, 6) == 0.615385  # the page's example, by the same formula


def test_clusters_by_default() -> None:
    assert [default_clusters(n) for n in (3, 60, 400, 8717, 10**6)] == [3, 4, 10, 47, 64]


def test_kmeans_finds_directions_and_repeats() -> None:
    rng = np.random.default_rng(5)
    vectors = np.abs(rng.normal(0, 0.05, (90, 3))) + np.repeat(np.eye(3), 30, axis=0)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    once, again = (spherical_kmeans(vectors, 3) for _ in range(2))
    assert (once == again).all()
    assert sorted(once.argmax(axis=1).tolist()) == [0, 1, 2]
    assert np.linalg.norm(once, axis=1) == pytest.approx(np.ones(3))


def test_more_clusters_than_different_prompts_leave_no_empty_row() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32)[:2], 4, axis=0)
    assert np.linalg.norm(spherical_kmeans(vectors, 5), axis=1) == pytest.approx(np.ones(5))


def test_equal_input_gives_an_equal_digest() -> None:
    labels = made(60)
    digests = set()
    for _ in range(2):
        embedded = embed_all(labels.prompts, Hashgram(), 1024)
        fitted = fit(embedded, labels.scores, Plan(head_scale=0.5, abstain=0.05))
        files = bundle_files("v1", labels, fitted, Hashgram(), prices={}, provider="p", about={})
        digests.add(digest_of(files))
    assert len(digests) == 1


def test_folds_keep_equal_prompts_together() -> None:
    prompts = ("a", "b", "c", "d", "e", "f") * 3
    fold = folds.assign(prompts, 3, 0)
    assert all(len(set(fold[np.array(prompts) == name])) == 1 for name in "abcdef")
    seen = [set(np.array(prompts)[out]) & set(np.array(prompts)[rest]) for rest, out in folds.splits(fold)]
    assert seen == [set(), set(), set()]


def test_folds_can_hold_whole_groups_together() -> None:
    prompts = (*[f"p{at}" for at in range(20)], "p0")
    groups = (*[f"g{at // 4}" for at in range(20)], "g4")
    fold = folds.assign(prompts, 5, 3, groups)
    assert sorted({(group, int(at)) for group, at in zip(groups[:20], fold[:20], strict=True)}) == sorted(
        {(group, int(fold[4 * number])) for number, group in enumerate(dict.fromkeys(groups))}
    )
    assert fold[20] == fold[0]  # an equal prompt in another group goes with the first
    assert set(fold.tolist()) == set(range(5))


def test_labels_of_the_held_out_part_change_nothing_said_about_it() -> None:
    labels = made(80)
    embedded = embed_all(labels.prompts, Hashgram(), 1024)
    fold = folds.assign(labels.prompts, 5, 0)
    out = np.flatnonzero(fold == 0)
    before = folds.held_out(labels, embedded, fold, Plan(), "off").quality[out]
    scores = labels.scores.copy()
    scores[out] = 1.0 - scores[out]
    after = folds.held_out(Labels(labels.prompts, labels.groups, labels.models, scores), embedded, fold, Plan(), "off")
    assert (before == after.quality[out]).all()


def test_a_head_without_signal_is_scaled_away() -> None:
    labels = made(120)
    rng = np.random.default_rng(9)
    noise = Labels(labels.prompts, labels.groups, labels.models, (rng.random((120, 2)) < 0.5).astype(float))
    verdict = folds.judge_head(noise, embed_all(labels.prompts, Hashgram(), 1024), Plan(), "on")
    assert verdict.scale < 0.3
    assert folds.judge_head(labels, embed_all(labels.prompts, Hashgram(), 1024), Plan(), "off").scale == 0.0


def test_ridge_leaves_out_what_has_no_label() -> None:
    vectors = np.eye(4, dtype=np.float32)
    scores = np.array([[1.0, np.nan], [0.0, np.nan], [1.0, np.nan], [0.0, np.nan]])
    head = ridge(vectors, np.zeros(4), scores)
    assert head[1].tolist() == [0.0] * 5
    assert (np.sign(head[0, :4]) == [1, -1, 1, -1]).all()


def test_few_prompts_and_many_give_the_ridge_of_the_normal_equations() -> None:
    rng = np.random.default_rng(3)
    for rows in (4, 40):
        vectors, lengths = rng.normal(size=(rows, 12)).astype(np.float32), rng.normal(size=rows)
        scores = rng.normal(size=(rows, 2))
        x = np.hstack([vectors.astype(np.float64), lengths[:, None]])
        wanted = np.linalg.inv(x.T @ x + RIDGE * np.eye(13)) @ x.T @ (scores - scores.mean(axis=0))
        assert ridge(vectors, lengths, scores) == pytest.approx(wanted.T)
        scores[0, 0] = np.nan
        assert ridge(vectors, lengths, scores)[1] == pytest.approx(wanted.T[1])


def test_the_fitted_bundle_sends_the_hard_topic_to_the_strong_model() -> None:
    labels = made()
    embedded = embed_all(labels.prompts, Hashgram(), 1024)
    fitted = fit(embedded, labels.scores, Plan(clusters=4))
    bundle = in_memory(labels, fitted, Hashgram(), {"weak": Price(0.1, 0.1), "strong": Price(10, 30)})
    picks = pick(bundle, labels, embedded)
    assert (picks.columns[0] == 0).all()  # alpha 0: the cheap one, always
    half = picks.columns[ALPHAS.index(0.55)]
    hard = np.array(labels.groups) == "topic0"
    assert half[hard].mean() > 0.9
    walk = steps(picks, labels, np.array([[0.1, 10.0]]))
    assert walk[0].cost == pytest.approx(0.1)
    assert [part for part, _ in cost_to_reach(walk, 0.9)] == [0.95, 0.99, 1.0]
    rows = by_group(picks.columns[0], labels, best_single(labels))
    assert rows[0].group == "topic0"
    assert sum(row.prompts for row in rows) == len(labels)


def test_wide_and_long_labels_say_the_same(tmp_path: Path) -> None:
    wide, long = tmp_path / "wide.csv.gz", tmp_path / "long.jsonl"
    wide.write_bytes(gzip.compress(b"group,prompt,a,b,a|total_cost\ng,one,1,0,0.5\ng,two,0,,\n"))
    long.write_text(
        '{"prompt":"one","model":"a","score":1,"cost_usd":0.5,"group":"g"}\n{"prompt":"one","model":"b","score":0,"group":"g"}\n'
        '{"prompt":"two","model":"a","score":0,"group":"g"}\n'
    )
    for found in (read(wide, wide=True), read(long, wide=False)):
        assert (found.prompts, found.groups, found.models) == (("one", "two"), ("g", "g"), ("a", "b"))
        assert found.scores[0].tolist() == [1.0, 0.0]
        assert np.isnan(found.scores[1, 1])
        assert found.costs is not None
        assert found.costs[0, 0] == 0.5


@pytest.mark.parametrize(
    ("content", "wide", "message"),
    [
        ("prompt,a\nx,nan\n", True, "row 1: a: expected a finite number, got 'nan'"),
        ("prompt,a\nx,oops\n", True, "row 1: a: expected a finite number"),
        ("prompt,a\n,1\n", True, "row 1: prompt: expected text"),
        ("prompt\nx\n", True, "expected a column per model"),
        ("prompt,a\n", True, "expected at least one row"),
        ("prompt,model,score\nx,,1\n", False, "row 1: expected a model, got nothing"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, content: str, wide: bool, message: str) -> None:  # noqa: FBT001 - a row
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(LabelError, match=message.replace("'", ".")):
        read(path, wide=wide)
    with pytest.raises(LabelError, match="expected a readable file"):
        read(tmp_path / "none.csv", wide=wide)

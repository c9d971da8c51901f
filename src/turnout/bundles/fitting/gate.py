"""The release gates: two bundles on one fixture (`diff`), and a new bundle against an old one on labels (`eval`)."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence

import msgspec
import numpy as np

from turnout.bundles.fitting.fit import Embedded
from turnout.bundles.fitting.judge import hardest
from turnout.bundles.fitting.labels import LabelError, Labels
from turnout.core.selection.arrays import Floats, Ints
from turnout.core.selection.blend import Blend

AGREEMENT_MIN, SCORE_GAP_MAX = 0.99, 1e-3
MEAN_LOSS_MAX, HARD_LOSS_MAX = 0.005, 0.01


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """One line of a fixture."""

    prompt_id: str
    text: str
    source: str = ""


class Divergence(msgspec.Struct, frozen=True, gc=False):
    """A prompt on which two bundles do not agree."""

    prompt_id: str
    source: str
    model_a: str
    score_a: float
    model_b: str
    score_b: float


class Difference(msgspec.Struct, frozen=True):
    """The verdict on two bundles over a fixture."""

    prompts: int
    divergences: tuple[Divergence, ...]

    @property
    def agreement(self) -> float:
        """Share of prompts with the same first model."""
        return 1.0 - len(self.divergences) / self.prompts

    @property
    def passed(self) -> bool:
        """Tell whether the release gate lets B replace A."""
        close = all(abs(row.score_a - row.score_b) < SCORE_GAP_MAX for row in self.divergences)
        return self.agreement >= AGREEMENT_MIN and close


class Against(msgspec.Struct, frozen=True, gc=False):
    """A new bundle against an old one on the same labels: all prompts, and the hardest quarter."""

    mean_new: float
    mean_old: float
    hard_new: float
    hard_old: float

    @property
    def passed(self) -> bool:
        """Tell whether nothing got worse by more than the gates allow."""
        return (
            self.mean_new >= self.mean_old - MEAN_LOSS_MAX - 1e-12
            and self.hard_new >= self.hard_old - HARD_LOSS_MAX - 1e-12
        )


def read_fixture(raw: bytes, sha256: str | None) -> list[Prompt]:
    """Return the prompts of a fixture (JSON lines or one array), whose digest may be pinned.

    Raises:
        LabelError: another digest, or a line that is no `{prompt_id, text, source}`.

    """
    seen = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and seen != sha256.lower():
        raise LabelError(f"fixture: expected SHA-256 {sha256}, got {seen}")
    try:
        if raw.lstrip()[:1] == b"[":
            found = msgspec.json.decode(raw, type=list[Prompt])
        else:
            found = [msgspec.json.decode(line, type=Prompt) for line in raw.splitlines() if line.strip()]
    except (msgspec.DecodeError, json.JSONDecodeError) as error:
        raise LabelError(f"fixture: expected objects with prompt_id and text, got {error}") from None
    if not found:
        raise LabelError("fixture: expected at least one prompt, got none")
    return found


def difference(a: Blend, b: Blend, prompts: Sequence[Prompt], embedded_a: Embedded, embedded_b: Embedded) -> Difference:
    """Compare the first choice of two bundles at their own default knobs."""
    tops_a, scores_a = _tops(a, embedded_a)
    tops_b, scores_b = _tops(b, embedded_b)
    rows = []
    for at, prompt in enumerate(prompts):
        model_a, model_b = a.bundle.models[tops_a[at]], b.bundle.models[tops_b[at]]
        if model_a != model_b:
            rows.append(
                Divergence(prompt.prompt_id, prompt.source, model_a, float(scores_a[at]), model_b, float(scores_b[at]))
            )
    return Difference(len(prompts), tuple(rows))


def as_csv(rows: Sequence[Divergence]) -> str:
    """Return divergences as a table for a spreadsheet."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(Divergence.__struct_fields__)
    table.writerows(msgspec.structs.astuple(row) for row in rows)
    return out.getvalue()


def against(labels: Labels, new: Ints, old: Ints) -> Against:
    """Compare what two bundles picked on the same prompts."""
    rows = np.arange(len(labels))
    hard = hardest(labels)
    picked_new, picked_old = labels.scores[rows, new], labels.scores[rows, old]

    def mean(values: Floats) -> float:
        return float(np.nanmean(values))

    return Against(mean(picked_new), mean(picked_old), mean(picked_new[hard]), mean(picked_old[hard]))


def _tops(blend: Blend, embedded: Embedded) -> tuple[Ints, Floats]:
    weighted = blend.weigh()
    tops = np.empty(len(embedded.vectors), dtype=np.intp)
    best = np.empty(len(embedded.vectors))
    for row, vector in enumerate(embedded.vectors):
        scores = blend.score(weighted, blend.nearest(vector, float(embedded.lengths[row])))
        tops[row] = scores.order[0]
        best[row] = scores.score[scores.order[0]]
    return tops, best

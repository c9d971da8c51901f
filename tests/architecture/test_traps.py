"""Each trap of selection and response cache, and each bug carried over by its name, is a test of that name (traps.md).

The tables are the map from the pages to the suite: a test that is renamed, moved or deleted is missed here.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SELECTION, CACHE, E2E = "unit/core/selection", "unit/core/response_cache", "e2e/selection"

TRAPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "T1": (
        "test_knobs_reject_nan_and_infinity",
        (f"{SELECTION}/test_controls.py", f"{E2E}/test_doors.py"),
    ),
    "T2": ("test_override_leaves_default_vector_untouched", (f"{SELECTION}/test_blend.py",)),
    "T3": ("test_untimed_model_keeps_its_weights", (f"{SELECTION}/test_blend.py",)),
    "T4": ("test_bundle_fault_is_ours", (f"{SELECTION}/test_knobs.py", f"{E2E}/test_doors.py")),
    "T5": ("test_error_mapping_is_one_table", (f"{E2E}/test_auto.py", f"{E2E}/test_doors.py")),
    "T42": ("test_derived_statistics_carry_their_age", (f"{SELECTION}/test_observed.py",)),
    "T43": ("test_pick_ignores_insertion_order", (f"{SELECTION}/test_blend.py",)),
    "T47": ("test_malformed_selector_never_defaults", (f"{E2E}/test_auto.py",)),
    "T48": ("test_documented_defaults_equal_code", (f"{SELECTION}/test_documented_defaults.py",)),
    "T52": ("test_release_gate_checks_hard_slices", ("unit/bundles/fitting/test_curves.py",)),
    "T6": ("test_knob_churn_is_bounded", (f"{CACHE}/test_store.py",)),
    "T7": ("test_tenant_cannot_flush_tenant", (f"{CACHE}/test_store.py",)),
    "T8": ("test_no_task_or_thread_per_bucket", (f"{CACHE}/test_store.py",)),
    "T9": ("test_scan_keeps_recency", (f"{CACHE}/test_store.py",)),
    "T10": (
        "test_key_covers_what_changes_the_answer",
        (f"{CACHE}/test_store.py", f"{E2E}/test_response_cache.py", f"{E2E}/test_replayed_messages.py"),
    ),
    "T53": (
        "test_tenant_in_key_on_every_path",
        (f"{CACHE}/test_store.py", f"{E2E}/test_response_cache.py", f"{E2E}/test_replayed_messages.py"),
    ),
    "T54": ("test_caller_cannot_lower_threshold", (f"{CACHE}/test_eligibility.py",)),
    "T55": (
        "test_only_complete_answers_are_stored",
        (
            f"{CACHE}/test_eligibility.py",
            f"{E2E}/test_response_cache.py",
            f"{E2E}/test_replayed_streams.py",
            f"{E2E}/test_replayed_messages.py",
        ),
    ),
}

CARRIED: dict[str, tuple[str, ...]] = {
    f"{SELECTION}/test_blend.py": (
        "DegenerateRangeFallthrough",
        "SpeedRangeZeroFallsBackToTwoAxis",
        "KnobOverrideOnlyReweights",
        "AlphaScalarReplacesVector",
        "ZeroAATimingFallback",
        "PureSpeedMissingTimingFallsBackToQuality",
        "V2DynamicScoring",
        "TopPSumsAcrossClusters",
        "TopPNearest_DeterministicOnTies",
        "Argmax_TiebreakUsesOrderSlice",
    ),
    f"{SELECTION}/test_knobs.py": ("InvalidEffectiveKnobs", "ExtremeRoutingKnobWarnOnlyOnOverride"),
    f"{SELECTION}/test_embedder.py": ("TailTruncate",),
    f"{SELECTION}/test_eligibility.py": (
        "HasToolsFallsBackWhenFilterEmptiesPool",
        "KeepsTextOnlyPoolWhenNoImageCapableCandidate",
        "ExcludedModelsEmptyingPool",
    ),
    f"{SELECTION}/test_pin.py": ("Decide",),
    "unit/bundles/test_reading.py": (
        "RejectsEmbedderIDMismatch",
        "RejectsEmbedderDimMismatch",
        "RejectsTopPExceedingK",
        "RejectsRankingsMissingDeployedModel",
        "BootFailsWhenNoCandidatesMatchProviders",
        "DedupesDuplicateRegistryEntries",
        "LoadModelFeaturesRejectsWrongK",
    ),
    "unit/bundles/test_library.py": (
        "ListVersions_FlattensLegacyAndOmitsPseudoName",
        "ResolveVersion_LegacyBundleIsReachable",
    ),
    "unit/bundles/fitting/test_curves.py": ("DiffV2PromptsFixtureSHA",),
    "unit/cli/test_bundle.py": ("V2MatchesV1",),
    "unit/gateway/test_embedding.py": ("ReturnsErrOnEmbedTimeout", "RecoversFromEmbedPanic"),
    f"{E2E}/test_auto.py": (
        "RoutingKnobsOverride_Envelope_of_anthropic",
    ),  # that of OpenAI is T5's; Gemini has no door
    f"{CACHE}/test_store.py": (
        "IdenticalEmbeddingHits",
        "NearDuplicateHitsAboveThreshold_and_BelowThresholdMisses",
        "PerClusterThresholdOverride",
        "BucketIsolationAcrossInstallations",
        "BucketIsolationAcrossFormats",
        "TTLExpiry",
        "LookupScansAllTopPClusters",
        "StoreDropsOversizedBodies",
        "EmptyEmbeddingMisses",
        "BucketKeyIsolatesByVersion",
        "BucketKeyIsolatesByKnobs",
        "BucketMapEvictsBeyondPerInstallationCap",
        "PerInstallationBucketCapIsolatesTenants",
    ),
}


_CHECKS = ("assert ", "pytest.raises(")


@cache
def named_in(path: str) -> dict[str, ast.FunctionDef]:
    """The tests of a file, with what they do."""
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def checks(test: ast.FunctionDef) -> bool:
    """Whether a test asserts anything, itself or by a helper, and is not switched off."""
    marks = [ast.unparse(mark) for mark in test.decorator_list]
    said = ast.unparse(test)
    return not any("skip" in mark or "xfail" in mark for mark in marks) and any(word in said for word in _CHECKS)


@pytest.mark.parametrize(("name", "paths"), TRAPS.values(), ids=TRAPS)
def test_each_trap_is_a_test_of_its_name(name: str, paths: tuple[str, ...]) -> None:
    for path in paths:
        found = named_in(path).get(name)
        assert found is not None, f"{path} has no {name}"
        assert checks(found), f"{path}: {name} checks nothing"


@pytest.mark.parametrize(("path", "names"), CARRIED.items(), ids=CARRIED)
def test_each_bug_that_was_carried_over_keeps_its_name(path: str, names: tuple[str, ...]) -> None:
    found = named_in(path)
    assert [name for name in names if f"test_{name}" not in found or not checks(found[f"test_{name}"])] == []

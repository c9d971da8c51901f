import pytest

from turnout.core.prefix.keys import TextChains, meg_hashes, meg_keys, root_key, text_keys, token_keys
from turnout.core.prefix.rendering import ROLE, TEXT, render_role

RENDERED = ROLE + b"system" + TEXT + b"You are Turnout." + ROLE + b"user" + TEXT + b"a" * 600


def test_golden_text_keys() -> None:
    root = root_key("m", block=256)
    assert root == 0xCCE9B671B76E8088
    assert text_keys(RENDERED, root, 256, 4096) == [0xA4755298EC601810, 0xFBEEFFA211F1CF17]


def test_golden_text_keys_of_a_tenant() -> None:
    root = root_key("m", block=256, tenant="t1")
    assert root == 0x773A7FB5A2F1E2E1
    assert text_keys(RENDERED, root, 256, 4096) == [0x07E6B371F383B276, 0xA6727E4172EEBA03]


def test_golden_token_keys() -> None:
    root = root_key("m", space="tok", block=16)
    assert root == 0x9BEC527EA3A62FCB
    assert token_keys(range(40), root, 16, 4096) == [0xD6FD860E433FCCDC, 0x0BE070EE1CD328C4]


@pytest.mark.parametrize(
    ("tokens", "block", "expected"),
    [
        (list(range(12)), 4, [4832768347186360981, 8533535913844734714, 3905928356911304714]),
        (list(range(11)), 4, [4832768347186360981, 8533535913844734714]),
        (list(range(512)), 256, [8211054896306304596, 7423675712169194480]),
        ([-1, 2**40], 2, [8522252718779633739]),
        ([1, 2, 3], 4, []),
    ],
)
def test_golden_meg_hashes(tokens: list[int], block: int, expected: list[int]) -> None:
    assert meg_hashes(tokens, block) == expected


def test_golden_meg_keys() -> None:
    root = root_key("m", space="meg", block=4)
    assert root == 0xA04F9A1F69AE5C78
    assert meg_keys(meg_hashes(list(range(12)), 4), root) == [
        0x09DC5730C8AA7DB9,
        0xF3E4CE8EF4103991,
        0xF65ED9FBE06B607F,
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"space": "tok"},
        {"block": 128},
        {"weight_version": "2"},
        {"lora": "l"},
        {"cache_salt": "s"},
        {"tenant": "t"},
        {"render_salt": "r"},
    ],
)
def test_every_component_changes_the_root(changed: dict[str, str]) -> None:
    assert root_key("m", **changed) != root_key("m")  # type: ignore[arg-type]


def test_components_cannot_run_into_each_other() -> None:
    assert root_key("m", lora="ab", cache_salt="c") != root_key("m", lora="a", cache_salt="bc")


def test_only_complete_blocks_have_keys() -> None:
    assert text_keys(b"x" * 255, 1, 256, 4096) == []
    assert len(text_keys(b"x" * 256, 1, 256, 4096)) == 1
    assert len(text_keys(b"x" * 511, 1, 256, 4096)) == 1
    assert text_keys(b"", 1, 256, 4096) == []


def test_blocks_beyond_the_bound_are_left_out() -> None:
    assert len(text_keys(b"x" * 2560, 1, 256, 3)) == 3
    assert len(token_keys(range(100), 1, 10, 3)) == 3


def test_keys_come_from_content() -> None:
    """T61: token prompts of equal length differ, and text that looks like structure is only text."""
    root = root_key("m", space="tok", block=16)
    assert token_keys([1] * 16, root, 16, 8) != token_keys([2] * 16, root, 16, 8)
    honest = ROLE + b"user" + TEXT + b'{"user": "a"}' * 40
    forged = ROLE + b"user" + TEXT + b'{"user": "b"}' * 40
    assert text_keys(honest, 1, 64, 8) != text_keys(forged, 1, 64, 8)


def test_roles_have_one_name_through_any_door() -> None:
    assert [render_role(role) for role in ("developer", "model", "function")] == [b"system", b"assistant", b"tool"]
    assert render_role("user") == b"user"
    assert render_role("narrator") == b"narrator"
    assert render_role("\ud800") == b"?"


def test_remembered_stretches_give_the_same_keys_within_their_bound() -> None:
    chains = TextChains(64, stretches_max=3)
    text = bytes(index * 7 % 251 for index in range(10_000))
    for length in (0, 63, 64, 1023, 1024, 1025, 2048, 5000, 10_000, 2048, 10_000):
        for root in (1, 2):
            for most in (1, 16, 17, 4096):
                assert chains.keys(text[:length], root, most) == text_keys(text[:length], root, 64, most)

"""The built-in embedder's golden vectors, the cut of the text, and the contract's check (selection §3)."""

from __future__ import annotations

import numpy as np
import pytest

from turnout.core.selection.embedder import Hashgram, NoText, is_unit, length_feature, tail

HASHGRAM = Hashgram()


def sparse(text: str) -> dict[int, float]:
    vector = HASHGRAM.embed(text)
    return {int(at): round(float(vector[at]), 7) for at in np.flatnonzero(vector)}


def test_golden_vectors() -> None:
    assert sparse("Hello, world") == {360: 0.5773503, 419: 0.5773503, 495: -0.5773503}
    assert sparse("the cat the") == pytest.approx(
        {315: -0.4128586, 330: 0.4128586, 744: -0.4128586, 806: 0.6990303}, abs=1e-7
    )
    assert {at: np.sign(value) for at, value in sparse("東京 2024").items()} == {
        82: -1,
        92: 1,
        364: 1,
        580: -1,
        691: -1,
    }
    assert set(np.abs(list(sparse("東京 2024").values()))) == {0.4472136}


@pytest.mark.parametrize(
    ("text", "most", "wanted"), [("€€€", 4, "€"), ("€€€", 6, "€€"), ("é", 1, ""), ("abc", 2, "bc"), ("abc", 9, "abc")]
)
def test_TailTruncate(text: str, most: int, wanted: str) -> None:
    assert tail(text, most) == wanted


def test_case_and_form_do_not_matter() -> None:
    assert (HASHGRAM.embed("ＨＥＬＬＯ Straße") == HASHGRAM.embed("hello STRASSE")).all()


@pytest.mark.parametrize("text", ["", " ", "?!…", "\n"])
def test_no_word_is_no_text(text: str) -> None:
    with pytest.raises(NoText):
        HASHGRAM.embed(text)


def test_the_contract_is_checked() -> None:
    good = HASHGRAM.embed("some text")
    assert is_unit(good, 1024)
    assert not is_unit(good, 768)
    assert not is_unit(good * 1.002, 1024)
    assert not is_unit(np.zeros(1024, np.float32), 1024)
    assert not is_unit(np.full(1024, np.nan, np.float32), 1024)
    assert not is_unit(good.tolist(), 1024)
    assert not is_unit(good.reshape(1, -1), 1024)


def test_a_lone_surrogate_is_no_crash() -> None:
    assert is_unit(HASHGRAM.embed("broken \ud800 text"), 1024)
    assert tail("ab\ud800", 2) == ""


def test_length_feature() -> None:
    assert [length_feature(size) for size in (0, 1, 256, 1024)] == [-4.0, -4.0, 0.0, 1.0]

"""The engine model on virtual time: durations, batching, capacity and text."""

from typing import Any

import pytest

from turnout.sim import virtual
from turnout.sim.engine import EngineModel
from turnout.sim.options import EngineOptions
from turnout.sim.sequence import Work
from turnout.sim.text import pack
from turnout.sim.timing import cold_prefill_s


def work(prompt: bytes, max_tokens: int, **more: Any) -> Work:
    rendered = b"\xf8" + prompt
    return Work(prompt=rendered, tokens=pack(rendered), max_tokens=max_tokens, **more)


def endless(prompt: bytes, max_tokens: int) -> Work:
    return work(prompt, max_tokens, ignore_eos=True)


def run_all(arrivals: list[tuple[float, Work]], **options: Any) -> tuple[EngineModel, list[virtual.Generation]]:
    model = EngineModel(EngineOptions(**options))
    return model, virtual.run(model, arrivals)


# 1 + 399 tokens: the prompt tag and 399 words of four bytes.
PROMPT_400 = b"abc " * 399


def test_golden_ttft_and_itl_of_the_linear_table() -> None:
    _, (first, second) = run_all([(0.0, endless(PROMPT_400, 4)), (0.01, endless(b"xyz " * 399, 3))])
    # 400 tokens of prefill at 8000/s and 6 ms; the second prompt waits for that step and shares its own with a decode.
    alone = 0.006 + 400 / 8000
    shared = 0.006 + 400 / 8000 + 0.00035
    both = 0.006 + 2 * 0.00035
    assert first.ttft_s == pytest.approx(alone)
    assert first.itl_s == pytest.approx([shared, both, both])
    assert second.ttft_s == pytest.approx(alone + shared - 0.01)
    assert second.itl_s == pytest.approx([both, both])


def test_golden_ttft_and_itl_of_the_8b_roofline() -> None:
    _, (only,) = run_all([(0.0, endless(PROMPT_400, 3))], profile="8b")
    assert only.ttft_s == pytest.approx(400 * 32e-6 + 1.3e-9 * 400 * 400 + 0.002)
    assert only.itl_s == pytest.approx([0.0064 + 5.6e-8 * 401 + 0.002, 0.0064 + 5.6e-8 * 402 + 0.002])


def test_a_long_prompt_is_prefilled_in_chunks_and_others_decode_meanwhile() -> None:
    long_prompt = b"abc " * 4999
    _, (short, long) = run_all([(0.0, endless(b"hi", 6)), (0.001, endless(long_prompt, 1))])
    full = 0.006 + 0.00035 + 2047 / 8000
    rest = 0.006 + 0.00035 + (5000 - 2 * 2047) / 8000
    assert short.itl_s[:3] == pytest.approx([full, full, rest])
    assert long.ttft_s == pytest.approx(short.token_at[3] - 0.001)


def test_cold_prefill_is_the_ttft_on_an_idle_engine() -> None:
    options = EngineOptions(profile="70b")
    (only,) = virtual.run(EngineModel(options), [(0.0, endless(b"abc " * 4999, 1))])
    assert only.ttft_s == pytest.approx(cold_prefill_s(options, 5000))


def test_speed_divides_every_duration() -> None:
    _, (slow,) = run_all([(0.0, endless(PROMPT_400, 5))])
    _, (fast,) = run_all([(0.0, endless(PROMPT_400, 5))], speed=10)
    assert [gap * 10 for gap in fast.itl_s] == pytest.approx(slow.itl_s)


def test_same_seed_and_arrivals_give_same_steps_and_bytes() -> None:
    arrivals = [(at / 50, work(b"prompt %d " % (at % 7) * 30, 100)) for at in range(60)]
    runs = [run_all(arrivals, jitter=0.3, seed=3, num_blocks=200)[1] for _ in range(2)]
    assert runs[0] == runs[1]


def test_jitter_stays_within_its_bound_and_follows_the_name() -> None:
    gaps = [run_all([(0.0, endless(b"hi", 200))], jitter=0.2, name=name)[1][0].itl_s for name in ("a", "b")]
    assert gaps[0] != gaps[1]
    assert all(0.8 * 0.00635 <= gap <= 1.2 * 0.00635 for gap in gaps[0])


def test_a_repeated_prompt_is_found_but_its_last_token_is_computed() -> None:
    prompt = b"abc " * 31  # 32 tokens with the tag, two full blocks
    _, results = run_all([(0.0, endless(prompt, 1)), (1.0, endless(prompt, 1)), (2.0, endless(prompt + b"more", 1))])
    assert [each.cached_tokens for each in results] == [0, 16, 32]


def test_generated_tokens_fill_blocks_that_the_next_turn_finds() -> None:
    model, (first,) = run_all([(0.0, endless(b"abc " * 15, 33))])
    follow_up = b"abc " * 15 + first.text.encode() + b"next"
    now = first.token_at[-1]
    (second,) = virtual.run(model, [(now, endless(follow_up, 1))])
    assert second.cached_tokens == 48


def test_another_cache_salt_finds_nothing() -> None:
    _, results = run_all([(0.0, work(PROMPT_400, 1, cache_salt="a")), (1.0, work(PROMPT_400, 1, cache_salt="b"))])
    assert [each.cached_tokens for each in results] == [0, 0]


def test_beyond_max_num_seqs_requests_wait_in_order_of_arrival() -> None:
    arrivals = [(0.0, endless(b"p%d" % number, 10)) for number in range(5)]
    model, results = run_all(arrivals, max_num_seqs=2)
    assert [each.token_at[0] for each in results] == sorted(each.token_at[0] for each in results)
    assert results[2].token_at[0] > results[0].token_at[-1]
    assert model.counters.preemptions == 0


def test_without_a_free_block_the_youngest_is_preempted_and_loses_no_token() -> None:
    arrivals = [(0.0, endless(b"first", 120)), (0.0, endless(b"other", 120))]
    cramped, results = run_all(arrivals, num_blocks=10)
    _, roomy = run_all(arrivals)
    assert cramped.counters.preemptions >= 1
    assert [each.text for each in results] == [each.text for each in roomy]
    assert results[0].token_at[-1] < results[1].token_at[-1]


def test_all_blocks_return_when_the_engine_is_idle() -> None:
    arrivals = [(at / 100, work(b"prompt %d " % (at % 5) * 40, 60)) for at in range(80)]
    model, _ = run_all(arrivals, num_blocks=150)
    assert (model.running, model.waiting, model.store.used, model.idle) == (0, 0, 0, True)
    assert model.store.cached <= 150


def test_an_aborted_sequence_emits_nothing_more_and_frees_its_blocks_at_the_end_of_the_step() -> None:
    model = EngineModel(EngineOptions())
    number = model.add(endless(PROMPT_400, 100), 0.0)
    assert model.begin(0.0) is not None
    model.abort(number)
    assert model.store.used > 0
    assert model.finish() == []
    assert (model.store.used, model.running, model.begin(1.0)) == (0, 0, None)


def test_a_waiting_sequence_can_be_aborted() -> None:
    model = EngineModel(EngineOptions(max_num_seqs=1))
    model.add(endless(b"first", 2), 0.0)
    waiting = model.add(endless(b"second", 2), 0.0)
    assert model.begin(0.0) is not None
    model.abort(waiting)
    assert model.waiting == 0
    assert [event.id for event in model.finish()] == [0]


def test_work_that_can_never_fit_is_refused() -> None:
    model = EngineModel(EngineOptions(num_blocks=4, block_tokens=16))
    with pytest.raises(ValueError, match=r"prompt tokens = 4, max_tokens = 62: expected .* 64 together"):
        model.add(endless(b"hello you", 62), 0.0)


def test_min_tokens_outlasts_the_natural_end_and_ignore_eos_runs_to_the_limit() -> None:
    _, (natural, longer, limit) = run_all(
        [(0.0, work(b"x", 500)), (0.0, work(b"x", 500, min_tokens=300)), (0.0, endless(b"x", 500))],
        mean_output_tokens=20,
    )
    assert natural.finish == "stop"
    assert len(longer.token_at) >= 300
    assert (limit.finish, len(limit.token_at)) == ("length", 500)
    assert limit.text.startswith(longer.text)
    assert longer.text.startswith(natural.text)


def test_a_stop_string_ends_the_text_before_it() -> None:
    _, (whole,) = run_all([(0.0, endless(b"x", 20))])
    stop = whole.text[18:23]
    _, (cut,) = run_all([(0.0, work(b"x", 20, ignore_eos=True, stop=(stop,)))])
    assert (cut.finish, cut.text) == ("stop", whole.text[: whole.text.index(stop)])


@pytest.mark.parametrize(
    ("field", "value"), [("speed", float("nan")), ("jitter", 0.5), ("num_blocks", 0), ("max_num_seqs", 4096)]
)
def test_options_outside_their_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} = "):
        EngineOptions(**{field: value})  # type: ignore[arg-type]

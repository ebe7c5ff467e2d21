"""Choosing the next token."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from model_api.request import Sampling
from model_api.sampling import CANDIDATES, NOT_FINITE, Draw, choose
from model_api.sampling import _draw as draw_at


def draws(*samplings: Sampling, prompt: tuple[int, ...] = (0,)) -> list[Draw]:
    return [Draw(sampling, prompt) for sampling in samplings]


def shares(logits: torch.Tensor, sampling: Sampling, times: int = 4000) -> torch.Tensor:
    """How often each token is drawn, as shares of 1."""
    rows = logits.expand(times, -1).clone()
    seeded = [Draw(Sampling(sampling.temperature, sampling.top_p, sampling.top_k, seed=i), (0,)) for i in range(times)]
    return torch.bincount(torch.tensor(choose(rows, seeded)), minlength=logits.shape[-1]) / times


def test_temperature_zero_and_top_k_one_take_the_most_likely() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert choose(logits, draws(Sampling(temperature=0.0), Sampling(temperature=2.0, top_k=1))) == [1, 0]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    seen = shares(logits, Sampling(temperature=1.3))
    assert torch.allclose(seen, (logits[0] / 1.3).softmax(-1), atol=0.03)


def test_top_k_keeps_the_k_most_likely_in_their_proportion() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    seen = shares(logits, Sampling(top_k=2))
    assert torch.allclose(seen, torch.tensor([0.0, 0.0, *torch.tensor([3.0, 4.0]).softmax(-1)]), atol=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert (shares(logits, Sampling(top_p=0.7))[2:] == 0).all()
    assert (shares(logits, Sampling(top_p=0.7))[:2] > 0).all()
    assert shares(logits, Sampling(top_p=0.0))[0] == 1  # at least one


def test_a_wide_vocabulary_is_drawn_from_whole_where_the_choice_reaches_that_far() -> None:
    vocabulary = CANDIDATES * 3
    seen = shares(torch.zeros(1, vocabulary), Sampling(), times=3000)
    assert (seen > 0).sum() > vocabulary * 0.8
    assert (seen[:CANDIDATES].sum() - 1 / 3).abs() < 0.05


def test_a_row_is_drawn_the_same_alone_and_among_others() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, CANDIDATES * 2, generator=generator) * 3
    samplings = [
        Sampling(0.7, 0.9, 0, seed=1),
        Sampling(0.0),
        Sampling(1.5, 1.0, 40, seed=2),
        Sampling(1.0, 1.0, 0, seed=3),
        Sampling(0.9, 0.5, 7, 1.3, seed=4),
        Sampling(2.0, 0.99, 0, seed=5),
    ]
    together = choose(logits.clone(), draws(*samplings))
    alone = [choose(logits[row : row + 1].clone(), draws(one))[0] for row, one in enumerate(samplings)]
    assert together == alone


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    logits = torch.zeros(1, 400)

    def run(seed: int | None) -> list[int]:
        draw = draws(Sampling(seed=seed))
        return [choose(logits.clone(), draw)[0] for _ in range(20)]

    assert run(9) == run(9)
    assert run(9) != run(10)
    assert run(None) != run(None)


def test_the_repetition_penalty_counts_the_prompt_and_what_was_said() -> None:
    logits = torch.tensor([[2.0, 1.9, 1.8, -1.0]])
    draw = draws(Sampling(temperature=0.0, repetition_penalty=1.5), prompt=(0,))
    assert [choose(logits.clone(), draw)[0] for _ in range(3)] == [1, 2, 0]


def test_the_repetition_penalty_makes_negative_logits_smaller_too() -> None:
    logits = torch.tensor([[-1.0, -1.2]])
    assert choose(logits, draws(Sampling(temperature=0.0, repetition_penalty=2.0), prompt=(0,))) == [1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_gives_no_token_and_leaves_its_neighbours_alone(
    bad: float, temperature: float
) -> None:
    logits = torch.tensor([[1.0, bad, 0.0], [0.0, 9.0, 0.0]])
    assert choose(logits, draws(Sampling(temperature=temperature), Sampling(temperature=0.0))) == [NOT_FINITE, 1]


def test_minus_infinity_is_a_token_that_is_never_drawn() -> None:
    assert shares(torch.tensor([[0.0, float("-inf"), 0.0]]), Sampling())[1] == 0


@settings(deadline=None)
@given(st.floats(0, 3), st.floats(0, 1), st.integers(0, 50), st.floats(0.5, 2), st.integers(0, 2**32))
def test_every_setting_gives_a_token_of_the_vocabulary(
    temperature: float, top_p: float, top_k: int, penalty: float, seed: int
) -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed % 97)) * 10
    token = choose(logits, draws(Sampling(temperature, top_p, top_k, penalty, seed)))[0]
    assert 0 <= token < 40


# --- against transformers -----------------------------------------------------------------------------------------


def theirs(logits: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities [vocab] that transformers draws from, in float64."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    no_ids = torch.zeros(1, 1, dtype=torch.int64)
    return warpers(no_ids, logits[None].double())[0].softmax(-1)  # type: ignore[no-any-return]


def ours(logits: Tensor, sampling: Sampling, points: int) -> Tensor:
    """The shares [vocab] of tokens drawn at evenly spread uniforms: the probabilities, to 1 / points."""
    uniforms = (torch.arange(points) + 0.5)[:, None] / points
    tokens = [draw_at(logits.expand(len(some), -1), [sampling] * len(some), some) for some in uniforms.split(200)]
    return torch.bincount(torch.cat(tokens), minlength=len(logits)) / points


def least_likely(logits: Tensor, sampling: Sampling) -> int:
    """The least likely token that may be drawn: with the order of likelihood it is the whole set."""
    return int(draw_at(logits[None], [sampling], torch.tensor([[0.999999]]))[0])


@pytest.mark.parametrize("vocabulary", [65_024, 151_552])
@pytest.mark.parametrize("spread", [2.5, 3.0, 3.5, 4.0])
def test_the_tokens_that_may_be_drawn_are_exactly_transformers(vocabulary: int, spread: float) -> None:
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1)) * spread
    for temperature, top_p, top_k in (
        *((1.0, 0.8, 0), (1.0, 0.7, 0), (0.8, 0.8, 0), (0.7, 0.95, 0), (1.2, 0.3, 0)),
        *((0.8, 0.8, 50), (1.0, 0.9, 1000), (1.0, 1.0, 600), (1.5, 0.999, 40_000), (1.0, 0.5, 2**70)),
    ):
        sampling = Sampling(temperature, top_p, top_k)
        kept = theirs(logits, Sampling(temperature, top_p, min(top_k, vocabulary))) > 0
        last = logits[least_likely(logits, sampling)]
        # Where the sum comes within float32's rounding of top_p, the next token may be in or out.
        assert float((last - logits[kept].min()).abs()) < 0.01, (sampling, int(kept.sum()))


@settings(deadline=None, max_examples=30)
@given(
    st.floats(0.2, 3), st.floats(0.01, 1), st.integers(0, 1500), st.sampled_from([1.0, 2.0, 4.0]), st.integers(0, 99)
)
@example(1.0, 1.0, 0, 2.0, 1)
@example(1.0, 0.9, 0, 0.5, 2)  # more than the first candidates
@example(1.0, 0.9, 1000, 1.0, 3)
def test_every_temperature_top_p_and_top_k_draws_as_often_as_transformers(
    temperature: float, top_p: float, top_k: int, spread: float, seed: int
) -> None:
    logits = torch.randn(1200, generator=torch.Generator().manual_seed(seed)) * spread
    points = 3000
    sampling = Sampling(temperature, top_p, top_k)
    expected = theirs(logits, sampling)
    whole = theirs(logits, Sampling(temperature, 1.0, top_k))
    sums = whole.sort(descending=True).values.cumsum(-1)
    assume(top_p == 1 or float((sums - top_p).abs().min()) > 1e-6)  # float32 may round to either side of that
    assert torch.allclose(ours(logits, sampling, points).double(), expected, rtol=0, atol=1.5 / points)


def test_tokens_as_likely_as_the_kth_may_all_be_drawn_as_transformers_has_it() -> None:
    tied = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0])
    assert torch.allclose(ours(tied, Sampling(top_k=2), 2000), theirs(tied, Sampling(top_k=2)).float(), atol=1e-3)
    many = torch.zeros(CANDIDATES * 5)
    many[0] = 1.0
    assert (ours(many, Sampling(top_k=2), 8000) > 0).all()


def test_a_draw_from_everything_sorts_nothing() -> None:
    logits = torch.randn(8, 151_552, generator=torch.Generator().manual_seed(0)) * 4
    uniforms = torch.rand(8, 1)

    def seconds(sampling: Sampling) -> float:
        began = time.thread_time()
        draw_at(logits, [sampling] * 8, uniforms)
        return time.thread_time() - began

    began = time.thread_time()
    logits.sort(-1)
    assert min(seconds(Sampling()) for _ in range(3)) * 5 < time.thread_time() - began


def test_a_step_that_failed_draws_again_what_it_would_have_drawn() -> None:
    logits = torch.zeros(1, 400)
    draw = Draw(Sampling(seed=9), (0,))
    first = draw.uniform()
    assert draw.uniform() == first
    [token] = choose(logits, [draw])
    assert [token] == choose(logits, [Draw(Sampling(seed=9), (0,))])
    assert draw.uniform() != first


def test_logits_are_as_they_were_after_choosing() -> None:
    logits = torch.tensor([[2.0, 1.9, 1.8, -1.0]])
    before = logits.clone()
    choose(logits, draws(Sampling(temperature=0.0, repetition_penalty=1.5), prompt=(0,)))
    assert torch.equal(logits, before)

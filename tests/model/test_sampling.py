"""Choosing the next token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_api.request import Sampling
from model_api.sampling import CANDIDATES, NOT_FINITE, Draw, choose


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

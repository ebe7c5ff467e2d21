"""The memory that is held is what was budgeted, whoever joins and leaves; and it comes back after a shortage."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model_api.backends.base import LoadedModel, Prompt
from model_api.backends.rows import COLUMNS, RowCache
from model_api.budget import REGAIN_STEPS, RELEARN_S, RELEARN_STEPS, Budget
from model_api.memory import cgroup_room, kv_budget
from model_api.request import Finished, Request, Started
from tests.model.driving import GREEDY, driving, meddled
from tests.model.test_engine import out_of_memory

JOINS = 10_000


class PastOnly:
    """A decoder that keeps the past of its rows as a real one does, in a RowCache, and computes nothing."""

    VOCABULARY = 8

    def __init__(self) -> None:
        self._rows = RowCache(1, torch.device("cpu"))
        self.joined = self.left = 0
        self.bounds = 1
        self.worst = 0.0  # held over what may be held

    def add(self, prompts: Sequence[Prompt]) -> Tensor:
        lengths = [len(prompt) for prompt in prompts]
        self._rows.begin_rows(lengths)
        return self._pass(torch.ones(len(lengths), 1, max(lengths), 1), lengths)

    def step(self, tokens: Sequence[int]) -> Tensor:
        self._rows.begin_step()
        return self._pass(torch.ones(len(tokens), 1, 1, 1), None)

    def _pass(self, states: Tensor, lengths: Sequence[int] | None) -> Tensor:
        layer = self._rows.cache.layers[0]
        layer.update(states, states)
        if lengths is None:
            self._rows.commit_step()
        else:
            self._rows.commit_rows(lengths)
            self.joined += len(lengths)
        assert layer.keys is not None
        assert layer.keys.numel() == self.held()
        self.worst = max(self.worst, self.held() / self.bounds)
        return torch.zeros(len(states), self.VOCABULARY)

    def remove(self, row: int) -> None:
        self.left += 1
        self._rows.remove(row)

    def clear(self) -> None:
        self._rows.clear()

    def cells(self, rows: int, longest: int) -> int:
        return self._rows.cells(rows, longest)

    def bound(self, tokens: int) -> None:
        self.bounds = tokens
        self._rows.bound(tokens)

    def held(self) -> int:
        return self._rows.held()


def past_only(embedded: LoadedModel) -> LoadedModel:
    """A model that answers anything, in no time."""
    return replace(embedded, decoder=PastOnly(), vocabulary=PastOnly.VOCABULARY, ends=frozenset(), context=2048)


def test_ten_thousand_joins_and_leaves_never_hold_more_than_the_budget(embedded: LoadedModel) -> None:
    model = past_only(embedded)
    decoder = model.decoder
    assert isinstance(decoder, PastOnly)
    chance = random.Random(7)
    for budget, rows in ((2048, 16), (3 * 2048, 8), (5000, 32)):
        joined = decoder.joined
        with driving(model, max_batch=rows, kv_budget=budget) as driven:
            while decoder.joined - joined < JOINS / 3:
                asked = []
                for _ in range(60):
                    length = int(chance.choice((20, 200, 1900)) * chance.random()) + 1
                    request = Request([1] * length, chance.randint(1, 25), GREEDY, chat=False, ignore_end=True)
                    asked.append(driven.ask(request))
                for answer in asked[::7]:
                    answer.until(Started)
                    assert answer.job is not None
                    driven.engine.cancel(answer.job)
                ends = [answer.end() for place, answer in enumerate(asked) if place % 7]
                assert all(isinstance(end, Finished) for end in ends)
    assert decoder.joined >= JOINS
    assert decoder.left >= JOINS / 2  # the others were the last of a batch, or evicted with it
    assert decoder.worst <= 1.0


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 40), st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3000)), min_size=1, max_size=30))
def test_buffers_are_never_larger_than_the_bound_where_the_rows_leave_a_choice(
    contexts: int, sizes: list[tuple[int, int]]
) -> None:
    cache = RowCache(1, torch.device("cpu"))
    bound = contexts * 512
    cache.bound(bound)
    for rows, longest in sizes:
        cache._plan.fit(rows, longest)
        assert cache.held() >= rows * longest
        assert cache.held() <= max(bound, cache.cells(rows, longest))


@pytest.mark.parametrize(
    ("budget", "first", "then"),
    [
        (5 * 1024, [(990, 8)] * 5, []),  # no power of two
        (16 * 256, [(100, 20)] * 16, [(3000, 3)]),  # many short ones, then a long one
        (2 * 8064, [(2000, 200), (7900, 3)], [(2000, 10)] * 5),  # a long one that ends beside a shorter one
    ],
)
def test_a_real_model_holds_what_is_budgeted(
    embedded: LoadedModel, budget: int, first: list[tuple[int, int]], then: list[tuple[int, int]]
) -> None:
    model, meddler = meddled(embedded)
    held: list[int] = []

    def look(logits: Tensor) -> Tensor:
        layers = model.decoder._decoder._rows._layers  # type: ignore[attr-defined]
        held.append(max(layer.keys.shape[0] * layer.keys.shape[2] for layer in layers))
        assert held[-1] == model.decoder.held()
        return logits

    meddler.after = look
    with driving(model, max_batch=16, kv_budget=budget) as driven:
        asked = [driven.ask(Request([5] * length, tokens, GREEDY, ignore_end=True)) for length, tokens in first]
        asked[-1].end()
        asked += [driven.ask(Request([5] * length, tokens, GREEDY, ignore_end=True)) for length, tokens in then]
        for answer in asked:
            if not any(isinstance(event, Finished) for event in answer.seen):
                assert isinstance(answer.end(), Finished)
    assert max(held) <= budget


def test_rows_and_tokens_come_back_after_memory_ran_out_for_a_moment(embedded: LoadedModel) -> None:
    model, meddler = meddled(past_only(embedded))
    with driving(model, max_batch=8) as driven:
        budget = driven.engine.budget
        whole = (budget.rows, budget.tokens)

        def once(_: Sequence[int]) -> None:
            if meddler.rows > 2:
                meddler.before_step = lambda tokens: None
                raise out_of_memory()

        meddler.before_step = once
        driven.answers([Request([5] * 100, 20, GREEDY, chat=False) for _ in range(8)])
        assert budget.rows < whole[0]
        assert budget.tokens < whole[1]
        driven.answers([Request([5] * 10, 9 * REGAIN_STEPS, GREEDY, chat=False, ignore_end=True)])
        assert (budget.rows, budget.tokens) == whole


def test_a_budget_of_less_than_a_context_says_how_long_a_request_can_be() -> None:
    decoder = PastOnly()
    budget = Budget(decoder, 8, 5 * COLUMNS + 3, 2048)
    assert budget.longest == 5 * COLUMNS
    assert Budget(PastOnly(), 8, 100_000, 2000).longest == 2000
    budget.does_not_hold(200)
    assert budget.longest == 180
    for _ in range(RELEARN_STEPS):
        budget.stepped()
    assert budget.longest == 5 * COLUMNS


def test_a_length_that_did_not_fit_once_is_tried_again_after_a_while_without_any_step() -> None:
    now = 1000.0
    budget = Budget(PastOnly(), 8, 100_000, 2000, clock=lambda: now)
    budget.does_not_hold(200)
    now += RELEARN_S - 1.0
    assert budget.longest == 180
    now += 1.0
    assert budget.longest == 2000
    budget.does_not_hold(300)
    assert budget.longest == 270


@pytest.mark.parametrize(("folder", "prefix", "names"), [
    ("", "", ("memory.max", "memory.current", "memory.stat")),
    ("memory", "total_", ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")),
])  # fmt: skip
def test_files_that_were_read_do_not_count_as_memory_that_a_container_holds(
    tmp_path: Path, folder: str, prefix: str, names: tuple[str, str, str]
) -> None:
    where = tmp_path / folder
    where.mkdir(exist_ok=True)
    for name, text in zip(names, ("8000\n", "7900\n", ""), strict=True):
        (where / name).write_text(text)
    assert cgroup_room(tmp_path) == 100
    (where / names[2]).write_text(f"anon 1900\n{prefix}inactive_file 5000\n{prefix}active_file 900\nshmem 0\n")
    assert cgroup_room(tmp_path) == 6000
    (where / names[0]).write_text("max\n")
    assert cgroup_room(tmp_path) > 1 << 60


def test_the_budget_is_what_memory_holds_even_if_that_is_less_than_a_context(embedded: LoadedModel) -> None:
    assert kv_budget(embedded, 8192, 8) == embedded.decoder.cells(8, 8192)
    hungry = replace(embedded, kv_bytes_per_token=1 << 40)
    assert kv_budget(hungry, 8192, 8) == 512

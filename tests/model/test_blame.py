"""A request that makes a step fail fails alone; who is to blame for a failed step, and when the server is sick."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model_api.backends.base import LoadedModel, Prompt
from model_api.embedded import DIALOGUES
from model_api.request import Failed, Finished, PromptError, PromptTooLong, Request, Sampling, Text, Why
from model_api.service import SICK_AFTER
from tests.model.driving import GREEDY, Meddler, driving, meddled
from tests.model.running import wait_for
from tests.model.test_engine import PONG, prompt

POISON = 77  # a token that only bad prompts begin with


def bad(request: Request) -> Request:
    """The same request with the poison in front."""
    return replace(request, prompt=[POISON, *request.prompt])


def is_bad(one: Prompt) -> bool:
    return one.ids[0] == POISON


def ping(model: LoadedModel) -> Request:
    return Request(prompt(model, "ping"), 9, GREEDY)


def story(model: LoadedModel, seed: int, tokens: int = 60) -> Request:
    """A drawn answer that is a stream."""
    return Request(
        prompt(model, "讲个故事"), tokens, Sampling(1.5, 1.0, 0, 1.1, seed=seed), stream=True, ignore_end=True
    )


def raise_in_add(meddler: Meddler) -> None:
    def check(prompts: Sequence[Prompt]) -> None:
        if any(map(is_bad, prompts)):
            raise ValueError("a shape that does not fit")

    meddler.before_add = check


def raise_in_step(meddler: Meddler) -> None:
    def check(_: Sequence[int]) -> None:
        if any(map(is_bad, meddler.prompts)):
            raise IndexError("index out of range in self")

    meddler.before_step = check


def raise_late(meddler: Meddler) -> None:
    """From the tenth step of a bad row on."""
    steps = 0

    def check(_: Sequence[int]) -> None:
        nonlocal steps
        steps += any(map(is_bad, meddler.prompts))
        if steps > 10 and any(map(is_bad, meddler.prompts)):
            raise IndexError("index out of range in self")

    meddler.before_step = check


def not_finite(meddler: Meddler) -> None:
    def spoil(logits: Tensor) -> Tensor:
        if len(logits) == meddler.rows:
            for row, one in enumerate(meddler.prompts):
                if is_bad(one):
                    logits[row] = float("nan")
        return logits

    meddler.after = spoil


WAYS: list[tuple[Callable[[Meddler], None], Why]] = [
    (raise_in_add, Why.STEP_FAILED),
    (raise_in_step, Why.STEP_FAILED),
    (raise_late, Why.STEP_FAILED),
    (not_finite, Why.NOT_FINITE),
]


@pytest.mark.parametrize(("way", "why"), WAYS, ids=[way.__name__ for way, _ in WAYS])
def test_a_request_that_makes_a_step_fail_fails_alone_and_the_streams_beside_it_say_what_they_would_have_said(
    embedded: LoadedModel, way: Callable[[Meddler], None], why: Why
) -> None:
    stories = [story(embedded, seed) for seed in range(5)]
    with driving(embedded) as driven:
        expected = [(answer.end(), answer.text) for answer in [driven.ask(one) for one in stories]]
    model, meddler = meddled(embedded)
    way(meddler)
    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        streams = [driven.ask(one) for one in stories]
        for stream in streams:
            stream.until(Text)
        ends = driven.answers([bad(story(model, 9))])
        got = [(stream.end(), stream.text) for stream in streams]
        assert driven.engine.trouble.failures == 0
    assert got == expected
    assert [end.why for end in ends if isinstance(end, Failed)] == [why]


@pytest.mark.parametrize(("way", "why"), WAYS, ids=[way.__name__ for way, _ in WAYS])
def test_of_requests_that_begin_together_only_the_bad_ones_fail(
    embedded: LoadedModel, way: Callable[[Meddler], None], why: Why
) -> None:
    good = [Request(prompt(embedded, question), 60, GREEDY) for question, _ in DIALOGUES]
    model, meddler = meddled(embedded)
    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        way(meddler)
        requests = [each for one in good for each in (one, bad(replace(one, ignore_end=True)))]
        ends = driven.answers(requests)
        assert driven.engine.trouble.failures == 0
    assert [end.text for end in ends[::2] if isinstance(end, Finished)] == [answer for _, answer in DIALOGUES]
    assert [end.why for end in ends[1::2] if isinstance(end, Failed)] == [why] * len(good)


def test_good_and_bad_requests_at_random_never_change_what_the_good_ones_say(embedded: LoadedModel) -> None:
    chance = random.Random(5)
    good = [story(embedded, seed, chance.randint(1, 50)) for seed in range(40)]
    with driving(embedded) as driven:
        expected = driven.answers(good)
    model, meddler = meddled(embedded)
    raise_in_add(meddler)
    check = meddler.before_add
    meddler.before_add = lambda prompts: check([one for one in prompts if len(one.ids) % 2])

    def half_of_them_fail_in_a_step(_: Sequence[int]) -> None:
        if any(is_bad(one) and len(one.ids) % 2 == 0 for one in meddler.prompts):
            raise IndexError("index out of range in self")

    meddler.before_step = half_of_them_fail_in_a_step
    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        asked = []
        for one in good:
            asked.append(driven.ask(one))
            if chance.random() < 0.4:
                worse = bad(one) if chance.random() < 0.5 else replace(bad(one), prompt=[POISON, 5, *one.prompt])
                driven.ask(worse)
            if chance.random() < 0.3:
                asked[-1].next()
        assert [answer.end() for answer in asked] == expected
        assert driven.engine.trouble.failures == 0


def test_a_parameter_that_cannot_be_computed_with_fails_its_own_request(embedded: LoadedModel) -> None:
    model, _ = meddled(embedded)
    impossible = replace(ping(model), sampling=Sampling(temperature=10**400))  # no float holds it
    huge = replace(ping(model), sampling=Sampling(temperature=0.01, top_k=10**30))
    overflowing = replace(ping(model), sampling=Sampling(repetition_penalty=1e-40))
    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        ends = driven.answers([ping(model), impossible, ping(model), huge, overflowing])
        assert driven.engine.trouble.failures == 0
    assert ends[0] == ends[2] == ends[3] == PONG
    assert [end.why for end in (ends[1], ends[4]) if isinstance(end, Failed)] == [Why.STEP_FAILED, Why.NOT_FINITE]


def test_text_that_cannot_be_decoded_fails_its_own_request(embedded: LoadedModel) -> None:
    class Fussy:
        def __getattr__(self, name: str) -> object:
            return getattr(embedded.codec, name)

        def decode(self, ids: Sequence[int]) -> str:
            if len(ids) > 5:
                raise OverflowError("out of range integral type conversion attempted")
            return embedded.codec.decode(ids)

    model, _ = meddled(embedded, codec=Fussy())
    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        longer, short = driven.answers([story(model, 1), ping(model)])
        assert driven.engine.trouble.failures == 0
    assert short == PONG
    assert isinstance(longer, Failed)
    assert longer.why is Why.STEP_FAILED


def test_rows_that_fail_together_and_never_alone_are_answered_all_the_same(embedded: LoadedModel) -> None:
    model, meddler = meddled(embedded)

    def lengths_must_be_equal(_: Sequence[int]) -> None:
        if len({len(one) for one in meddler.prompts}) > 1:
            raise RuntimeError("The size of tensor a (10) must match the size of tensor b (11)")

    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        meddler.before_step = lengths_must_be_equal
        ends = driven.answers([Request(prompt(model, question), 60, GREEDY) for question, _ in DIALOGUES])
        assert driven.engine.trouble.failures == 0
    assert [end.text for end in ends if isinstance(end, Finished)] == [answer for _, answer in DIALOGUES]


# --- the server's own fault ---------------------------------------------------------------------------------------


def break_down(meddler: Meddler, how: str) -> None:
    """From now on every pass of that kind fails, whatever is asked."""

    def fail(_: Sequence[object]) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")

    if how == "add":
        meddler.before_add = fail
    elif how == "step":
        meddler.before_step = fail
    else:
        meddler.after = lambda logits: torch.full_like(logits, float("nan"))


def repair(meddler: Meddler) -> None:
    meddler.before_add = meddler.before_step = lambda _: None
    meddler.after = lambda logits: logits


@pytest.mark.parametrize("how", ["add", "step", "numbers"])
def test_a_model_that_fails_at_everything_is_the_servers_fault_and_shows_after_a_single_request(
    embedded: LoadedModel, how: str
) -> None:
    model, meddler = meddled(embedded)
    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        break_down(meddler, how)
        ends = driven.answers([ping(model), story(model, 1), ping(model)])
        assert [end.why for end in ends if isinstance(end, Failed)] == [Why.FAULT] * 3
        # Nobody need ask again: an idle engine looks for itself, and finds out too when it is over.
        wait_for(lambda: driven.engine.trouble.failures >= SICK_AFTER, "the trouble to be known")
        assert driven.engine.trouble.words
        repair(meddler)
        wait_for(lambda: driven.engine.trouble.failures == 0, "the trouble to be over")
        assert driven.answers([ping(model)]) == [PONG]


def test_many_rows_that_fail_in_one_step_are_one_failure(embedded: LoadedModel) -> None:
    model, meddler = meddled(embedded)
    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        streams = [driven.ask(story(model, seed, 4000)) for seed in range(8)]
        for stream in streams:
            stream.until(Text)
        failures: list[int] = []
        break_down(meddler, "step")
        for stream in streams:
            stream.end()
            failures.append(driven.engine.trouble.failures)
        assert failures[0] == 1


def test_one_client_with_a_hundred_bad_requests_never_makes_the_server_sick(embedded: LoadedModel) -> None:
    model, meddler = meddled(embedded)
    raise_in_step(meddler)
    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        for _ in range(100):
            [end] = driven.answers([bad(ping(model))])
            assert isinstance(end, Failed)
            assert end.why is Why.STEP_FAILED
            assert driven.engine.trouble.failures == 0


def test_who_sends_the_same_bad_request_again_and_again_does_not_fill_the_log(
    embedded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    model, meddler = meddled(embedded)
    raise_in_add(meddler)
    with driving(model) as driven:
        driven.answers([ping(model)])
        driven.answers([bad(ping(model))] * 20)
    assert caplog.text.count("Traceback") == 1
    assert len(caplog.text) < 20_000


# --- prompts that are not taken -----------------------------------------------------------------------------------


def test_ids_that_the_model_does_not_have_are_refused_before_a_step_sees_them(embedded: LoadedModel) -> None:
    with driving(embedded) as driven:
        for ids in ([embedded.vocabulary], [-1, 5], [5, 10**12]):
            with pytest.raises(PromptError, match=f"token ids must be under {embedded.vocabulary}"):
                driven.ask(Request(ids, 5, GREEDY))
        with pytest.raises(PromptError, match="must not be empty"):
            driven.ask(Request([], 5, GREEDY))


def no_more_than(meddler: Meddler, tokens: int) -> None:
    """Memory for so many tokens in all rows together."""

    def check_add(prompts: Sequence[Prompt]) -> None:
        if sum(len(one) for one in (*meddler.prompts, *prompts)) > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    meddler.before_add = check_add


def test_a_prompt_too_long_for_the_memory_is_told_the_length_that_fits_and_is_never_tried_again(
    embedded: LoadedModel,
) -> None:
    model, meddler = meddled(embedded)
    no_more_than(meddler, 300)
    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        stream = driven.ask(story(model, 3, 200))
        stream.until(Text)
        [end] = driven.answers([Request([5] * 400, 5, GREEDY)])
        assert isinstance(end, Failed)
        assert end.why is Why.TOO_LONG
        assert f"{driven.engine.longest} tokens" in end.words
        assert driven.engine.longest == 360
        with pytest.raises(PromptTooLong, match="360 tokens"):
            driven.ask(Request([5] * 400, 5, GREEDY))
        assert isinstance(stream.end(), Finished)
        assert driven.engine.trouble.failures == 0


def test_an_answer_that_grows_out_of_the_memory_ends_for_its_length(embedded: LoadedModel) -> None:
    model, meddler = meddled(embedded)

    def check(tokens: Sequence[int]) -> None:
        if model.decoder.held() > 128:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    meddler.before_step = check
    with driving(model, max_batch=1) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        [end] = driven.answers([Request([5] * 60, 500, GREEDY, ignore_end=True)])
    assert isinstance(end, Finished)
    assert end.reason == "length"
    assert 60 < end.tokens < 140


def test_no_memory_even_for_a_short_prompt_is_the_servers_trouble(embedded: LoadedModel) -> None:
    model, meddler = meddled(embedded)
    with driving(model) as driven:
        assert driven.answers([ping(model)]) == [PONG]
        longest = driven.engine.longest
        no_more_than(meddler, 0)
        [end] = driven.answers([ping(model)])
        assert isinstance(end, Failed)
        assert end.why is Why.OUT_OF_MEMORY
        assert driven.engine.longest == longest
        wait_for(lambda: driven.engine.trouble.failures >= SICK_AFTER, "the trouble to be known")
        repair(meddler)
        wait_for(lambda: driven.engine.trouble.failures == 0, "the trouble to be over")

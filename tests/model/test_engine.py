"""The batching loop, on the real embedded model."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from model_api.backends.base import LoadedModel
from model_api.embedded import DIALOGUES
from model_api.request import Failed, Finished, Request, Sampling, Started, Text, Why
from tests.model.driving import GREEDY, driving, meddled
from tests.model.running import wait_for

PONG = Finished("pong", "stop", 2)  # what the embedded model answers to "ping"


def prompt(model: LoadedModel, *texts: str) -> list[int]:
    roles = ("user", "assistant")
    return model.codec.chat([{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)])


def mixed_requests(model: LoadedModel, number: int, seed: int) -> list[Request]:
    """Greedy requests of all lengths: single questions, dialogues, cut short, running on."""
    chance = random.Random(seed)
    requests = []
    for _ in range(number):
        turns = [text for pair in chance.sample(DIALOGUES, chance.randint(0, 3)) for text in pair]
        ids = prompt(model, *turns, chance.choice(DIALOGUES)[0])
        request = Request(
            ids, chance.randint(1, 70), GREEDY, stream=chance.random() < 0.5, ignore_end=chance.random() < 0.3
        )
        requests.append(request)
    return requests


def test_fifty_requests_that_join_and_leave_at_random_say_what_each_says_alone(embedded: LoadedModel) -> None:
    requests = mixed_requests(embedded, 50, seed=1)
    with driving(embedded, max_batch=1) as alone:
        expected = []
        for request in requests:
            answer = alone.ask(request)
            expected.append((answer.end().reason, answer.text, answer.tokens))  # type: ignore[union-attr]
    chance = random.Random(2)
    with driving(embedded, max_batch=8) as together:
        answers = []
        for request in requests:
            answers.append(together.ask(request))
            if chance.random() < 0.3:
                answers[-1].next()  # let the batch get on before the next one joins
        got = [(answer.end().reason, answer.text, answer.tokens) for answer in answers]  # type: ignore[union-attr]
    assert got == expected
    assert len({tuple(tokens) for _, _, tokens in got}) > 25


def test_a_sampled_answer_depends_on_its_seed_and_not_on_its_neighbours(embedded: LoadedModel) -> None:
    ids = prompt(embedded, "讲个故事")
    request = Request(ids, 60, Sampling(1.8, 1.0, 0, 1.1, seed=42), ignore_end=True)
    others = [Request(ids, 40, Sampling(1.5, 0.9, seed=n)) for n in range(5)]
    with driving(embedded) as driven:
        alone = driven.answers([request])[0]
        among = driven.answers([*others[:3], request, *others[3:]])[3]
        other_seed = driven.answers([Request(ids, 60, Sampling(1.8, 1.0, 0, 1.1, seed=43), ignore_end=True)])[0]
    assert alone == among
    assert alone != other_seed


def test_a_stream_and_a_whole_answer_are_the_same_text(embedded: LoadedModel) -> None:
    ids = prompt(embedded, "你好")
    with driving(embedded) as driven:
        stream = driven.ask(Request(ids, 60, GREEDY, stream=True))
        whole = driven.answers([Request(ids, 60, GREEDY)])[0]
        stream.end()
    assert isinstance(whole, Finished)
    assert stream.text == whole.text
    assert stream.text.startswith("你好！我是")
    assert sum(isinstance(event, Text) for event in stream.seen) > 5


def test_a_stop_string_ends_the_answer_before_it_and_frees_the_row(embedded: LoadedModel) -> None:
    with driving(embedded) as driven:
        answer = driven.answers([Request(prompt(embedded, "count"), 80, GREEDY, stops=("four",))])[0]
    assert answer == Finished("one two three ", "stop", answer.tokens)  # type: ignore[union-attr]
    assert answer.tokens < 12  # type: ignore[union-attr]


def test_max_tokens_is_exact_and_says_length(embedded: LoadedModel) -> None:
    with driving(embedded) as driven:
        one = driven.answers([Request(prompt(embedded, "count"), 1, GREEDY)])[0]
        five = driven.answers([Request(prompt(embedded, "count"), 5, GREEDY)])[0]
    assert isinstance(one, Finished)
    assert isinstance(five, Finished)
    assert (one.reason, one.tokens) == ("length", 1)
    assert (five.reason, five.tokens) == ("length", 5)


def test_a_running_request_is_cancelled_within_a_step_and_says_nothing_more(embedded: LoadedModel) -> None:
    endless = Request(prompt(embedded, "你好"), 8000, GREEDY, stream=True, ignore_end=True)
    with driving(embedded) as driven:
        answer = driven.ask(endless)
        answer.until(Text)
        assert answer.job is not None
        before = driven.engine.progress().steps
        driven.engine.cancel(answer.job)
        wait_for(lambda: driven.engine.progress().in_flight == 0, "the row to be free")
        assert driven.engine.progress().steps - before <= 2
        steps = driven.engine.progress().steps
        assert driven.answers([Request(prompt(embedded, "ping"), 9, GREEDY)])[0] == PONG
        assert driven.engine.progress().steps - steps < 9
    assert not any(isinstance(event, (Finished, Failed)) for event in answer.seen)


def test_a_waiting_request_is_cancelled_at_once_and_never_begins(embedded: LoadedModel) -> None:
    endless = Request(prompt(embedded, "你好"), 8000, GREEDY, ignore_end=True)
    with driving(embedded, max_batch=1) as driven:
        running, waiting = driven.ask(endless), driven.ask(endless)
        running.until(Started)
        assert driven.engine.progress().queued == 1
        assert waiting.job is not None
        driven.engine.cancel(waiting.job)
        assert driven.engine.progress().queued == 0
    assert not waiting.began


def test_a_deadline_ends_a_running_and_a_waiting_request(embedded: LoadedModel) -> None:
    ids = prompt(embedded, "你好")
    with driving(embedded, max_batch=1) as driven:
        soon = time.monotonic() + 0.2
        running = driven.ask(Request(ids, 8000, GREEDY, ignore_end=True, deadline=soon))
        waiting = driven.ask(Request(ids, 10, GREEDY, deadline=soon))
        ends = [running.end(), waiting.end()]
    assert [end.why for end in ends if isinstance(end, Failed)] == [Why.DEADLINE, Why.DEADLINE]
    assert "after" in ends[0].words  # type: ignore[union-attr]


def test_the_batch_never_holds_more_rows_than_allowed(embedded: LoadedModel) -> None:
    model, meddler = meddled(embedded)
    with driving(model, max_batch=3) as driven:
        driven.answers(mixed_requests(model, 12, seed=3))
    assert meddler.most_rows == 3


def test_a_tight_memory_budget_changes_when_answers_come_and_not_what_they_say(embedded: LoadedModel) -> None:
    requests = mixed_requests(embedded, 16, seed=4)
    with driving(embedded) as roomy:
        expected = roomy.answers(requests)
    model, meddler = meddled(embedded)
    budget = model.decoder.cells(1, max(len(request.prompt) + request.max_tokens for request in requests)) + 64
    used: list[int] = []

    def look(logits: Tensor) -> Tensor:
        used.append(model.decoder.held())
        return logits

    meddler.after = look
    with driving(model, kv_budget=budget) as tight:
        got = tight.answers(requests)
    assert got == expected
    assert max(used) <= budget
    assert meddler.most_rows > 1


def test_progress_says_that_a_step_runs_while_it_runs(embedded: LoadedModel) -> None:
    model, meddler = meddled(embedded)
    entered, go_on = threading.Event(), threading.Event()

    def hang(_: Sequence[object]) -> None:
        entered.set()
        assert go_on.wait(30)

    meddler.before_add = hang
    with driving(model) as driven:
        answer = driven.ask(Request(prompt(model, "ping"), 5, GREEDY))
        assert entered.wait(30)
        wait_for(lambda: driven.engine.progress().step_running_s > 0.05, "a step's age to grow")
        during = driven.engine.progress()
        go_on.set()
        answer.end()
        wait_for(lambda: driven.engine.progress().in_flight == 0, "the row to be free")
        after = driven.engine.progress()
    assert (during.in_flight, during.steps, during.tokens, during.idle_s) == (1, 0, 0, 0.0)
    assert after.step_running_s == 0.0
    assert after.tokens == PONG.tokens
    assert after.steps == PONG.tokens + 1


def test_closing_ends_what_runs_and_what_waits_with_a_reason(embedded: LoadedModel) -> None:
    endless = Request(prompt(embedded, "你好"), 8000, GREEDY, ignore_end=True)
    with driving(embedded, max_batch=1) as driven:
        running, waiting = driven.ask(endless), driven.ask(endless)
        running.until(Started)
    assert [answer.end() for answer in (running, waiting)] == [Failed(Why.SHUTDOWN, "the server is shutting down")] * 2


# --- what goes wrong ----------------------------------------------------------------------------------------------


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_memory_that_runs_out_in_a_step_costs_no_request_its_answer(embedded: LoadedModel) -> None:
    requests = mixed_requests(embedded, 12, seed=5)
    with driving(embedded) as driven:
        expected = driven.answers(requests)
    model, meddler = meddled(embedded)

    def at_most_three_rows(_: Sequence[object]) -> None:
        if meddler.rows > 3:
            raise out_of_memory()

    meddler.before_step = at_most_three_rows
    with driving(model) as driven:
        assert driven.answers(requests) == expected


def test_memory_that_runs_out_in_a_prefill_costs_no_request_its_answer(embedded: LoadedModel) -> None:
    requests = mixed_requests(embedded, 12, seed=6)
    with driving(embedded) as driven:
        expected = driven.answers(requests)
    model, meddler = meddled(embedded)

    def at_most_two_prompts(prompts: Sequence[object]) -> None:
        if len(prompts) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    meddler.before_add = at_most_two_prompts
    with driving(model) as driven:
        assert driven.answers(requests) == expected


def test_memory_that_runs_out_while_choosing_loses_and_repeats_no_token(embedded: LoadedModel) -> None:
    requests = [Request(prompt(embedded, question), 60, GREEDY) for question, _ in DIALOGUES]
    model, meddler = meddled(embedded)
    passes = 0

    def now_and_then(logits: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        if passes % 7 == 0 and len(logits) > 1:
            raise out_of_memory()
        return logits

    meddler.after = now_and_then
    with driving(model) as driven:
        answers = driven.answers(requests)
    assert [answer.text for answer in answers if isinstance(answer, Finished)] == [answer for _, answer in DIALOGUES]


def test_a_request_too_large_even_alone_fails_alone_and_the_server_goes_on(embedded: LoadedModel) -> None:
    model, meddler = meddled(embedded)
    long = prompt(model, "你好" * 60)

    def long_ones_do_not_fit(prompts: Sequence[object]) -> None:
        if any(len(each) >= len(long) for each in prompts):  # type: ignore[arg-type]
            raise out_of_memory()

    meddler.before_add = long_ones_do_not_fit
    with driving(model) as driven:
        short = Request(prompt(model, "ping"), 9, GREEDY)
        answers = driven.answers([short, Request(long, 9, GREEDY), short])
    assert answers[0] == answers[2] == PONG
    assert isinstance(answers[1], Failed)
    assert answers[1].why is Why.TOO_LONG


def test_rows_are_tried_again_some_steps_after_memory_ran_out(embedded: LoadedModel) -> None:
    model, meddler = meddled(embedded)

    def once(_: Sequence[object]) -> None:
        if meddler.rows > 3:
            meddler.before_step = lambda tokens: None
            raise out_of_memory()

    meddler.before_step = once
    endless = Request(prompt(model, "你好"), 2000, GREEDY, ignore_end=True)
    with driving(model, max_batch=4) as driven:
        answers = [driven.ask(endless) for _ in range(6)]
        wait_for(lambda: meddler.rows == 2, "half of the rows to be put back")
        wait_for(lambda: meddler.rows == 4, "the full batch to come back")
        for answer in answers:
            assert answer.job is not None
            driven.engine.cancel(answer.job)


def test_a_row_with_numbers_that_are_not_finite_fails_and_its_neighbours_do_not(embedded: LoadedModel) -> None:
    model, meddler = meddled(embedded)
    entered, all_submitted = threading.Event(), threading.Event()

    def wait_for_the_others(_: Sequence[object]) -> None:
        entered.set()
        assert all_submitted.wait(30)

    def poison_the_first_of_three(logits: Tensor) -> Tensor:
        if len(logits) == 3:
            logits[0] = float("nan")
            meddler.after = lambda logits: logits
        return logits

    meddler.before_add = wait_for_the_others
    meddler.after = poison_the_first_of_three
    request = Request(prompt(model, "ping"), 9, GREEDY)
    with driving(model) as driven:
        # While the first is held in its prefill three more arrive, so that those three begin together.
        answers = [driven.ask(request)]
        assert entered.wait(30)
        answers += [driven.ask(request) for _ in range(3)]
        all_submitted.set()
        ends = [answer.end() for answer in answers]
    kinds = [type(end) for end in ends]
    assert kinds.count(Failed) == 1, kinds
    assert [end.why for end in ends if isinstance(end, Failed)] == [Why.NOT_FINITE]
    assert [end for end in ends if isinstance(end, Finished)] == [PONG] * 3


def test_a_fault_of_the_servers_own_fails_what_ran_and_nothing_after(
    embedded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    model, meddler = meddled(embedded)

    def stumble(_: Sequence[object]) -> None:
        meddler.before_step = lambda tokens: None
        raise ValueError("a shape that does not fit")

    meddler.before_step = stumble
    with driving(model) as driven:
        failed = driven.answers([Request(prompt(model, "ping"), 9, GREEDY)])[0]
        fine = driven.answers([Request(prompt(model, "ping"), 9, GREEDY)])[0]
    assert failed == Failed(Why.FAULT, "the server failed in a step: ValueError: a shape that does not fit")
    assert fine == PONG
    assert "BUG: a decode step of 1 rows failed" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    ],
)
def test_a_lost_device_is_fatal_with_its_reason(embedded: LoadedModel, error: Exception) -> None:
    model, meddler = meddled(embedded)

    def lose(_: Sequence[object]) -> None:
        raise error

    meddler.before_step = lose
    with driving(model) as driven:
        driven.ask(Request(prompt(model, "ping"), 9, GREEDY))
        wait_for(lambda: driven.fatal, "the engine to give up")
        assert not driven.engine.alive or driven.engine.join(5)
    assert driven.fatal == [f"the device is lost: {type(error).__name__}: {error}"]

"""The one loop that decodes: requests join and leave the batch at every step."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from model_api.backends.base import LoadedModel, Prompt
from model_api.faults import Fault, classify, first_line
from model_api.job import Job
from model_api.request import Event, Failed, Finished, Request, Started, Text, Why
from model_api.sampling import NOT_FINITE, choose
from model_api.text import Assembler

log = logging.getLogger(__name__)

PREFILL_ROWS = 8  # prompts begun in one pass, and ...
PREFILL_TOKENS = 2048  # ... their tokens, padding counted: running streams wait for as long as such a pass takes
REGAIN_STEPS = 256  # steps after which one more row is tried again when memory had run out


@dataclass(frozen=True, slots=True)
class Progress:
    """What supervisors watch. `step_running_s`: age of the step under way, 0 without one; `idle_s`: since the last."""

    in_flight: int
    queued: int
    steps: int
    tokens: int
    step_running_s: float
    idle_s: float


class Watch(Protocol):
    """Who counts what the engine does; called from the engine's thread."""

    def stepped(self, kind: str, seconds: float, rows: int) -> None:
        """A pass is over: kind prefill or decode."""

    def began(self, waited: float, prompt_tokens: int) -> None:
        """A request has left the queue after `waited` seconds."""

    def generated(self) -> None:
        """A request has one more token."""

    def first_token(self, seconds: float) -> None:
        """A request's first token came `seconds` after it was submitted."""

    def ran_out_of_memory(self) -> None:
        """A pass did not fit into memory."""


def deliver_directly(events: Sequence[tuple[Job, Event]]) -> None:
    """Hands events over in the engine's own thread."""
    for job, event in events:
        job.deliver(event)


class Engine:
    """Batches requests over one model in one thread.

    `kv_budget` bounds rows x longest row, in tokens: the memory that the rows' past can take. Rows that would grow past
    it are evicted, youngest first, and taken up again later from the tokens they have. `outbox` gets every step's
    events at once; `on_fatal` is called with a reason when the device is lost, and must not return.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_batch: int,
        kv_budget: int,
        watch: Watch,
        on_fatal: Callable[[str], None],
        outbox: Callable[[Sequence[tuple[Job, Event]]], None] = deliver_directly,
    ) -> None:
        self._model = model
        self._max_batch = max_batch
        self.kv_budget = kv_budget
        self._watch = watch
        self._on_fatal = on_fatal
        self._outbox = outbox
        self._rows: list[Job] = []
        self._next: list[int] = []  # the token each row is to be fed
        self._events: list[tuple[Job, Event]] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()  # guards _waiting, _closing and the cancelled flags
        self._closing = False
        self._joining: list[Job] = []  # taken from the queue, not yet rows
        self._row_limit = max_batch  # less for a while after memory ran out
        self._steps = 0
        self._tokens = 0
        self._step_began: float | None = None
        self._step_ended = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- what other threads call ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the loop."""
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[Event], None]) -> Job:
        """Queues a request; its events go to `deliver` by way of the outbox. Finished or Failed is the last of them."""
        assembler = Assembler(
            self._model.codec.decode, request.stops, self._model.codec.tidy() if request.chat else None
        )
        job = Job(request, assembler, deliver)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Forgets a request: at once if it waits, within one step if it runs. No further event follows."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.ended = True
            self._changed.notify()

    def close(self) -> None:
        """Ends every request with Why.SHUTDOWN and the loop with it."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self, timeout: float) -> bool:
        """Waits for the loop to end; whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def progress(self) -> Progress:
        """Where the loop stands now; never waits for it, so a request on its way in may be counted twice."""
        now = time.monotonic()
        began = self._step_began
        return Progress(
            in_flight=len(self._rows) + len(self._joining),
            queued=len(self._waiting),
            steps=self._steps,
            tokens=self._tokens,
            step_running_s=round(now - began, 3) if began is not None else 0.0,
            idle_s=round(now - self._step_ended, 3) if began is None else 0.0,
        )

    def kv_used(self) -> int:
        """Tokens of past that the rows take up now, padding counted."""
        rows = list(self._rows)
        return len(rows) * max((job.length for job in rows), default=0)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._await_work():
                    self._iterate()
        except BaseException as error:
            if classify(error) is Fault.DEVICE:
                self._on_fatal(f"the device is lost: {first_line(error)}")
            else:
                log.exception("BUG: the engine's loop has ended")
                self._on_fatal(f"the engine's loop has ended: {first_line(error)}")

    def _await_work(self) -> bool:
        with self._changed:
            while not (self._rows or self._waiting or self._closing):
                self._changed.wait()
            closing = self._closing
        if closing:
            self._end_all(Why.SHUTDOWN, "the server is shutting down")
        return not closing

    def _iterate(self) -> None:
        """One turn: drop who left, let in who fits, one token for everybody."""
        self._drop_left()
        self._admit()
        if self._joining:
            self._attempt("prefill", self._prefill, len(self._joining))
            self._flush()  # a first token need not wait for the others' next one
        if self._rows:
            self._make_room()
            self._attempt("decode", self._decode, len(self._rows))
        self._flush()

    def _drop_left(self) -> None:
        now = time.monotonic()
        for row in reversed(range(len(self._rows))):
            job = self._rows[row]
            if job.cancelled:
                self._leave(row)
            elif job.request.deadline is not None and now >= job.request.deadline:
                self._fail(job, Why.DEADLINE, f"not finished by its deadline, after {len(job.generated)} tokens")
                self._leave(row)
        with self._changed:
            late = [job for job in self._waiting if job.request.deadline is not None and now >= job.request.deadline]
            for job in late:
                self._waiting.remove(job)
        for job in late:
            self._fail(job, Why.DEADLINE, "not begun by its deadline: the server is busy")

    def _admit(self) -> None:
        """Takes from the queue, in order, what the batch, the budget and one pass can hold."""
        joining = self._joining
        longest_running = max((job.length for job in self._rows), default=0)
        limit = PREFILL_ROWS if self._model.batched_prefill else 1
        with self._changed:
            while self._waiting and len(joining) < limit:
                job = self._waiting[0]
                rows = len(self._rows) + len(joining) + 1
                longest_joining = max([job.length, *(other.length for other in joining)])
                size = rows * (max(longest_running, longest_joining) + 1)
                if rows > self._row_limit or (rows > 1 and size > self.kv_budget):
                    break
                if joining and (len(joining) + 1) * longest_joining > PREFILL_TOKENS:
                    break
                joining.append(job)
                self._waiting.popleft()

    def _make_room(self) -> None:
        """Evicts the youngest rows until the next token of every row is inside the budget."""
        while len(self._rows) > 1 and len(self._rows) * (max(job.length for job in self._rows) + 1) > self.kv_budget:
            self._evict_youngest()

    def _evict_youngest(self) -> None:
        row = max(range(len(self._rows)), key=lambda index: self._rows[index].began or 0.0)
        job = self._rows[row]
        self._leave(row)
        self._requeue([job])

    def _requeue(self, jobs: Sequence[Job]) -> None:
        with self._changed:
            self._waiting.extendleft(reversed([job for job in jobs if not job.cancelled]))

    def _attempt(self, kind: str, run: Callable[[], None], rows: int) -> None:
        """Runs one pass, marked as begun before it begins, and deals with what goes wrong in it."""
        self._step_began = time.monotonic()
        trouble: tuple[Fault, str] | None = None
        try:
            run()
        except Exception as error:
            trouble = classify(error), first_line(error)
            if trouble[0] is Fault.DEVICE:
                raise
            if trouble[0] is Fault.OTHER:
                log.exception("BUG: a %s step of %d rows failed", kind, rows)
        # Outside the except block: there the traceback would still hold the failed pass's tensors.
        self._step_ended = time.monotonic()
        seconds, self._step_began = self._step_ended - self._step_began, None
        if trouble is None:
            self._steps += 1
            if self._row_limit < self._max_batch and self._steps % REGAIN_STEPS == 0:
                self._row_limit += 1
            self._watch.stepped(kind, seconds, rows)
        elif trouble[0] is Fault.MEMORY:
            self._watch.ran_out_of_memory()
            self._after_memory_ran_out(trouble[1])
        else:
            for job in [*self._joining, *self._rows]:
                self._fail(job, Why.FAULT, f"the server failed in a step: {trouble[1]}")
            self._joining.clear()
            self._forget_rows()

    def _after_memory_ran_out(self, words: str) -> None:
        """Fails only a request that cannot run even alone; the others begin again, fewer at a time.

        How far the failed pass came is unknown, so all rows go back into the queue with the tokens they have, oldest
        first: nothing is lost but the time to read those tokens again.
        """
        jobs = [*sorted(self._rows, key=lambda job: job.began or 0.0), *self._joining]
        size = len(jobs) * (max(job.length for job in jobs) + 1)
        self._joining.clear()
        self._forget_rows()
        if len(jobs) == 1:
            self._fail(jobs[0], Why.OUT_OF_MEMORY, "there is not enough memory for a request of this length")
        else:
            # What was promised did not fit: promise less from now on.
            self.kv_budget = max(min(self.kv_budget, size * 9 // 10), self._model.context)
            self._row_limit = len(jobs) // 2
            self._requeue(jobs)
        log.warning(
            "out of memory in a step of %d requests, %d tokens: %s; from now on %d requests at once, %d tokens",
            *(len(jobs), size, words, self._row_limit, self.kv_budget),
        )
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    # --- the passes -------------------------------------------------------------------------------------------------

    def _prefill(self) -> None:
        logits = self._model.decoder.add([Prompt(job.request.prompt, job.generated) for job in self._joining])
        now = time.monotonic()
        for job in self._joining:
            if job.began is None:
                job.began = now
                self._watch.began(now - job.submitted, len(job.request.prompt))
                self._emit(job, Started())
        first = len(self._rows)
        joined = list(self._joining)
        self._rows.extend(joined)
        self._next.extend([0] * len(joined))
        self._joining.clear()  # they are rows now: what fails from here on fails as a row
        tokens = choose(logits, [job.draw for job in joined])
        self._advance(range(first, len(self._rows)), tokens)

    def _decode(self) -> None:
        logits = self._model.decoder.step(self._next)
        tokens = choose(logits, [job.draw for job in self._rows])
        self._advance(range(len(self._rows)), tokens)

    def _advance(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Gives each row its new token; rows that end with it leave."""
        left = []
        for row, token in zip(rows, tokens, strict=True):
            self._next[row] = token
            if self._take(self._rows[row], token):
                left.append(row)
        for row in reversed(left):
            self._leave(row)

    def _take(self, job: Job, token: int) -> bool:
        """Adds a token to an answer; whether the answer has ended."""
        if token == NOT_FINITE:
            self._fail(job, Why.NOT_FINITE, "the model produced numbers that are not finite")
            return True
        if token in self._model.ends and not job.request.ignore_end:
            self._finish(job, "stop")
            return True
        if not job.generated:
            self._watch.first_token(time.monotonic() - job.submitted)
        job.generated.append(token)
        self._tokens += 1
        self._watch.generated()
        text = job.assembler.push(token)
        if job.request.stream and text:
            self._emit(job, Text(text))
        else:
            job.unshown += text
        if job.assembler.stopped:
            self._finish(job, "stop")
        elif len(job.generated) >= job.request.max_tokens:
            self._finish(job, "length")
        return job.ended

    # --- endings ----------------------------------------------------------------------------------------------------

    def _finish(self, job: Job, reason: str) -> None:
        job.ended = True
        text = job.unshown + job.assembler.finish()
        self._emit(job, Finished(text, "stop" if job.assembler.stopped else reason, len(job.generated)))

    def _fail(self, job: Job, why: Why, words: str) -> None:
        job.ended = True
        self._emit(job, Failed(why, words))

    def _leave(self, row: int) -> None:
        """Takes a row out; as in the decoder, the last one takes its place."""
        self._model.decoder.remove(row)
        self._rows[row], self._next[row] = self._rows[-1], self._next[-1]
        self._rows.pop()
        self._next.pop()

    def _forget_rows(self) -> None:
        self._rows, self._next = [], []
        self._model.decoder.clear()

    def _end_all(self, why: Why, words: str) -> None:
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        for job in [*self._rows, *waiting]:
            if not job.cancelled:
                self._fail(job, why, words)
        self._forget_rows()
        self._flush()

    def _emit(self, job: Job, event: Event) -> None:
        if not job.cancelled:
            self._events.append((job, event))

    def _flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._outbox(events)

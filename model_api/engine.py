"""The one loop that decodes: requests join and leave the batch at every step."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model_api.backends.base import LoadedModel
from model_api.batch import Batch, NotFinite, choose_each
from model_api.budget import Budget
from model_api.faults import Fault, classify, first_line
from model_api.job import Job
from model_api.outlet import Outlet, deliver_directly
from model_api.recovery import Recovery, too_long
from model_api.request import Event, PromptError, PromptTooLong, Request, Started, Text, Why
from model_api.sampling import NOT_FINITE
from model_api.text import Assembler
from model_api.watch import Passes, Progress, Trouble, Watch

log = logging.getLogger(__name__)

PREFILL_ROWS = 8  # prompts begun in one pass, and ...
PREFILL_TOKENS = 2048  # ... their tokens, padding counted: running streams wait for as long as such a pass takes
PROBE_EVERY = 1.0  # seconds between two looks whether an idle engine that failed is well again


class Engine:
    """Batches requests over one model in one thread.

    `kv_budget` bounds the tokens of past that are held, room to grow included. Rows that would grow past it are
    evicted, youngest first, and taken up again later from the tokens they have. `outbox` gets every step's events at
    once; `on_fatal` is called with a reason when the device is lost, and must not return.
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
        self.budget = Budget(model.decoder, max_batch, kv_budget, model.context)
        self._watch = watch
        self._on_fatal = on_fatal
        self._outlet = Outlet(outbox)
        self._passes = Passes()
        self._batch = Batch(model.decoder)
        self._recovery = Recovery(model, self._batch, self.budget, self._outlet, self._passes, self._requeue)
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()  # guards _waiting, _closing and the cancelled flags
        self._closing = False
        self._joining: list[Job] = []  # taken from the queue, not yet rows
        self._steps = 0
        self._tokens = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- what other threads call ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the loop."""
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[Event], None]) -> Job:
        """Queues a request; its events go to `deliver` by way of the outbox. Finished or Failed is the last of them.

        Raises PromptError if the model cannot take the prompt.
        """
        self._check(request.prompt)
        codec = self._model.codec
        if request.chat:
            assembler = Assembler(codec.decode, request.stops, codec.tidy())
        else:
            assembler = Assembler(codec.decode, request.stops, None, before=request.prompt)
        job = Job(request, assembler, deliver)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _check(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise PromptError("prompt: must not be empty")
        # On a GPU such an id would not be an error but the end of the process.
        if not 0 <= min(prompt) <= max(prompt) < self._model.vocabulary:
            raise PromptError(f"prompt: token ids must be under {self._model.vocabulary}")
        if len(prompt) >= self.longest:
            raise PromptTooLong(too_long(len(prompt), self.longest))

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

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer that one request can have, by what memory was found to hold."""
        return self.budget.longest

    @property
    def trouble(self) -> Trouble:
        """What has failed lately by the server's own fault."""
        return self._recovery.trouble

    def progress(self) -> Progress:
        """Where the loop stands now; never waits for it, so a request on its way in may be counted twice."""
        now = time.monotonic()
        began = self._passes.began
        return Progress(
            in_flight=len(self._batch) + len(self._joining),
            queued=len(self._waiting),
            steps=self._steps,
            tokens=self._tokens,
            step_running_s=round(now - began, 3) if began is not None else 0.0,
            idle_s=round(now - self._passes.ended, 3) if began is None else 0.0,
        )

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
            while not (self._batch.jobs or self._waiting or self._closing):
                if not self._changed.wait(PROBE_EVERY if self.trouble.failures else None):
                    return True  # nobody asks a server that is known to be sick: it looks itself
            closing = self._closing
        if closing:
            self._end_all(Why.SHUTDOWN, "the server is shutting down")
        return not closing

    def _iterate(self) -> None:
        """One turn: drop who left, let in who fits, one token for everybody."""
        if not (self._batch.jobs or self._waiting):
            self._recovery.is_well()
        self._drop_left()
        self._admit()
        self._outlet.flush()  # who has left the queue is told so now: the pass to come is work, not waiting
        if self._joining:
            self._attempt("prefill", self._prefill, len(self._joining))
            self._outlet.flush()  # a first token need not wait for the others' next one
        self._make_room()
        if self._batch.jobs:
            self._attempt("decode", self._decode, len(self._batch))
        self._outlet.flush()

    def _drop_left(self) -> None:
        now = time.monotonic()
        for row in reversed(range(len(self._batch))):
            job = self._batch.jobs[row]
            if job.cancelled:
                self._batch.leave(row)
            elif job.request.deadline is not None and now >= job.request.deadline:
                self._outlet.fail(job, Why.DEADLINE, f"not finished by its deadline, after {len(job.generated)} tokens")
                self._batch.leave(row)
        if not self._waiting:
            return
        with self._changed:
            late = [job for job in self._waiting if job.request.deadline is not None and now >= job.request.deadline]
            too_long = [job for job in self._waiting if job.length >= self.longest and job not in late]
            for job in (*late, *too_long):
                self._waiting.remove(job)
        for job in late:
            self._outlet.fail(job, Why.DEADLINE, "not begun by its deadline: the server is busy")
        for job in too_long:
            self._recovery.end_for_length(job)

    def _admit(self) -> None:
        """Takes from the queue, in order, what the batch, the budget and one pass can hold."""
        if not self._waiting:
            return
        joining = self._joining
        limit = PREFILL_ROWS if self._model.batched_prefill else 1
        with self._changed:
            while self._waiting and len(joining) < limit:
                job = self._waiting[0]
                rows = len(self._batch) + len(joining) + 1
                longest_joining = max([job.length, *(other.length for other in joining)])
                longest = max(self._batch.longest, longest_joining)
                if rows > self.budget.rows or (rows > 1 and not self.budget.holds(rows, longest)):
                    break
                if joining and ((len(joining) + 1) * longest_joining > PREFILL_TOKENS or job.alone or joining[0].alone):
                    break
                joining.append(job)
                self._waiting.popleft()
        now = time.monotonic()
        for job in joining:
            if job.began is None:
                job.began = now
                self._watch.began(now - job.submitted, len(job.request.prompt))
                self._outlet.emit(job, Started())

    def _make_room(self) -> None:
        """Evicts the youngest rows until the next token of every row is inside the budget."""
        batch = self._batch
        while len(batch) > 1 and not self.budget.holds(len(batch), batch.longest):
            row = max(range(len(batch)), key=lambda index: batch.jobs[index].began or 0.0)
            job = batch.jobs[row]
            batch.leave(row)
            self._requeue([job])
        if len(batch) == 1 and batch.longest >= self.longest:
            [job] = batch.clear()
            self._recovery.end_for_length(job)

    def _requeue(self, jobs: Sequence[Job]) -> None:
        """Puts jobs back to the front of the queue, in order, with the tokens they have."""
        with self._changed:
            self._waiting.extendleft(reversed([job for job in jobs if not job.cancelled]))

    # --- the passes -------------------------------------------------------------------------------------------------

    def _attempt(self, kind: str, run: Callable[[], None], rows: int) -> None:
        """Runs one pass and deals with what goes wrong in it."""
        began = time.monotonic()
        trouble: tuple[Fault, str] | None = None
        try:
            with self._passes:
                run()
        except Exception as error:
            trouble = classify(error), first_line(error)
            if trouble[0] is Fault.DEVICE:
                raise
            if trouble[0] is Fault.OTHER:
                self._recovery.tell(f"a {kind} step of {rows} rows failed", error)
        # Outside the except block: there the traceback would still hold the failed pass's tensors.
        if trouble is None:
            self._steps += 1
            self.budget.stepped()
            self._watch.stepped(kind, self._passes.ended - began, rows)
            return
        joining = list(self._joining)  # empty if it was the rows that failed
        self._joining.clear()
        if trouble[0] is Fault.MEMORY:
            self._watch.ran_out_of_memory()
            self._recovery.after_memory_ran_out(joining, trouble[1])
        elif joining:
            self._recovery.blame_joining(joining, trouble[1])
        else:
            self._recovery.blame_rows(trouble[1])

    def _prefill(self) -> None:
        logits = self._batch.join(self._joining)
        first = len(self._batch) - len(self._joining)
        for job in self._joining:
            job.alone = False
        self._joining.clear()  # they are rows now: what fails from here on fails as a row
        self._advance(range(first, len(self._batch)), logits)

    def _decode(self) -> None:
        self._advance(range(len(self._batch)), self._batch.step())

    def _advance(self, rows: Sequence[int], logits: Tensor) -> None:
        """Gives each row its new token; rows that end with it leave, and so do those that have none."""
        jobs = [self._batch.jobs[row] for row in rows]
        tokens = choose_each(logits, jobs)
        now = time.monotonic()
        left: list[int] = []
        broken: list[tuple[Job, Exception]] = []
        for row, job, token in zip(rows, jobs, tokens, strict=True):
            try:
                ended = self._take(job, token, now)
            except Exception as error:
                broken.append((job, error))
                ended = True
            if ended:
                left.append(row)
            elif isinstance(token, int):
                self._batch.feed(row, token)
        for row in reversed(left):
            self._batch.leave(row)
        if broken:
            self._recovery.blame_broken(broken, proven=len(broken) < len(jobs))

    def _take(self, job: Job, token: int | Exception, now: float) -> bool:
        """Adds a token to an answer; whether the answer has ended. Raises what is wrong with the token or its text."""
        if isinstance(token, Exception):
            raise token
        if token == NOT_FINITE:
            raise NotFinite
        if token in self._model.ends and not job.request.ignore_end:
            self._finish(job, "stop")
            return True
        if not job.generated:
            self._watch.first_token(now - job.submitted)
        job.generated.append(token)
        self._tokens += 1
        self._watch.generated(None if job.last_token is None else now - job.last_token)
        job.last_token = now
        text = job.assembler.push(token)
        if job.request.stream and text:
            self._outlet.emit(job, Text(text))
        else:
            job.unshown += text
        if job.assembler.stopped:
            self._finish(job, "stop")
        elif len(job.generated) >= job.request.max_tokens:
            self._finish(job, "length")
        return job.ended

    def _finish(self, job: Job, reason: str) -> None:
        self._outlet.finish(job, reason)
        self._recovery.answered(job)

    def _end_all(self, why: Why, words: str) -> None:
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        for job in [*self._batch.clear(), *waiting]:
            self._outlet.fail(job, why, words)
        self._outlet.flush()

"""What becomes of the requests of a pass that failed: who is to blame, who goes on, and whether the server is sick."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from model_api.backends.base import LoadedModel
from model_api.batch import Batch, NotFinite
from model_api.budget import Budget
from model_api.faults import Fault, classify, first_line
from model_api.job import Job
from model_api.outlet import Outlet
from model_api.request import Why
from model_api.watch import Passes, Trouble

log = logging.getLogger(__name__)

MOST_UNEXPLAINED = 8  # failed steps that a request may be in without anybody to blame
TOLD = 64  # kinds of failure whose traceback is in the log already


class Recovery:
    """Finds the one request that makes a pass fail, so that the others go on. Belongs to the engine's thread.

    A request is to blame only while the prompt that was answered first (the warm-up's, in a server) is still answered.
    Where that fails too the server is to blame: `trouble` counts such failures, and one answer ends them.
    """

    def __init__(
        self,
        model: LoadedModel,
        batch: Batch,
        budget: Budget,
        outlet: Outlet,
        passes: Passes,
        requeue: Callable[[Sequence[Job]], None],
    ) -> None:
        """`requeue` puts jobs back to the front of the queue, in order."""
        self._model = model
        self._batch = batch
        self._budget = budget
        self._outlet = outlet
        self._passes = passes
        self._requeue = requeue
        self._known_good: Sequence[int] = ()
        self._told: set[str] = set()
        self.trouble = Trouble()

    def answered(self, job: Job) -> None:
        """A request has been answered to its end."""
        self._known_good = self._known_good or job.request.prompt
        self.trouble = Trouble()

    def is_well(self, words: str = "no prompt was ever answered") -> bool:
        """Whether the prompt that is known to be good is answered; trouble that there was is over then.

        Otherwise a failure is counted; `words` are its reason where no prompt is known to be good. Raises what tells
        that the device is lost.
        """
        if not self._known_good:
            self.failed(words)
            return False
        try:
            with self._passes:
                self._batch.run_prompt(self._known_good)
        except Exception as error:
            fault = classify(error)
            if fault is Fault.DEVICE:
                raise
            if fault is Fault.MEMORY and self._batch.jobs:
                return True  # the rows that run take the memory, and prove that the model works
            self.failed(first_line(error))
            return False
        self.trouble = Trouble()
        return True

    def failed(self, words: str) -> None:
        """A step has failed by the server's own fault."""
        self.trouble = Trouble(self.trouble.failures + 1, words)

    def tell(self, what: str, error: Exception) -> None:
        """Logs a failure, its traceback only the first time: who sends a bad request again must not fill the disk."""
        words = first_line(error)
        log.error("BUG: %s: %s", what, words, exc_info=None if words in self._told else error)
        if len(self._told) < TOLD:
            self._told.add(words)

    # --- a pass that raised -----------------------------------------------------------------------------------------

    def blame_joining(self, joining: Sequence[Job], words: str) -> None:
        """The pass that was to begin these rows raised; the rows that ran before are as they were."""
        if not self.is_well(words):
            self._fail_all(joining, words)
        elif len(joining) == 1:
            self._blame(joining[0], words)
        else:
            for job in joining:
                job.alone = True
            self._requeue(joining)

    def blame_rows(self, words: str) -> None:
        """A step of all rows raised: the youngest that raises alone too is to blame, the others begin again."""
        jobs = self._batch.clear()
        if not self.is_well(words):
            self._fail_all(jobs, words)
            return
        guilty = next((job for job in reversed(jobs) if self._raises_alone(job)), None)
        if guilty is None:
            self._go_on_without_reason(jobs, words)
            return
        self._blame(guilty, words)
        self._requeue([job for job in jobs if job is not guilty])

    def blame_broken(self, broken: Sequence[tuple[Job, Exception]], *, proven: bool) -> None:
        """Rows whose token or text could not be had. `proven`: the same pass was good for others."""
        well = proven or self.is_well(first_line(broken[0][1]))
        for job, error in broken:
            if isinstance(error, NotFinite):
                self._outlet.fail(job, Why.NOT_FINITE if well else Why.FAULT, str(error))
            elif well:
                self.tell("a request's token could not be chosen or decoded", error)
                self._blame(job, first_line(error))
            else:
                self._fail_all([job], first_line(error))

    def _raises_alone(self, job: Job) -> bool:
        if job.cancelled:
            return False
        try:
            with self._passes:
                self._batch.repeat_alone(job)
        except Exception as error:
            if classify(error) is Fault.DEVICE:
                raise
            return classify(error) is Fault.OTHER
        return False

    def _go_on_without_reason(self, jobs: Sequence[Job], words: str) -> None:
        """Nobody raises alone: fewer run together from now on, and nobody is tried for ever."""
        log.error("BUG: %d requests failed together and none of them alone: %s", len(jobs), words)
        self._budget.rows = max(1, len(jobs) // 2)
        for job in jobs:
            job.unexplained += 1
        self._fail_all([job for job in jobs if job.unexplained >= MOST_UNEXPLAINED], words)
        self._requeue([job for job in jobs if job.unexplained < MOST_UNEXPLAINED])

    def _blame(self, job: Job, words: str) -> None:
        self._outlet.fail(job, Why.STEP_FAILED, f"this request makes a step of the model fail: {words}")

    def _fail_all(self, jobs: Sequence[Job], words: str) -> None:
        for job in jobs:
            self._outlet.fail(job, Why.FAULT, f"the server failed in a step: {words}")

    # --- memory that ran out ----------------------------------------------------------------------------------------

    def after_memory_ran_out(self, joining: Sequence[Job], words: str) -> None:
        """Ends only a request that cannot run even alone; the others begin again, fewer at a time.

        Rows that were to begin go back to the queue, and the others stay as they were. If it was a step, how far it
        came is unknown, so all rows go back with the tokens they have, oldest first: nothing is lost but the time to
        read those tokens again.
        """
        running = len(self._batch) if joining else 0
        longest = max(self._batch.longest, *(job.length for job in joining), 0)
        back = list(joining) if joining else self._batch.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        if running + len(back) == 1:
            self._does_not_fit(back[0], words)
            return
        self._budget.ran_out(running + len(back), longest, running)
        self._requeue(back)
        log.warning(
            "out of memory in a step of %d requests: %s; from now on %d requests at once, %d tokens",
            *(running + len(back), words, self._budget.rows, self._budget.tokens),
        )

    def _does_not_fit(self, job: Job, words: str) -> None:
        """Memory ran out with this request alone: it is too long, or even a short one would not fit now."""
        if not self.is_well(words):
            self._outlet.fail(job, Why.OUT_OF_MEMORY, "there is no memory for any request now")
            return
        self._budget.does_not_hold(job.length)
        log.warning(
            "out of memory for a request of %d tokens alone: %s; none longer than %d is taken from now on",
            *(job.length, words, self._budget.longest),
        )
        self.end_for_length(job)

    def end_for_length(self, job: Job) -> None:
        """Ends a request that memory does not hold any more: with the answer so far, if there is one."""
        if job.generated:
            self._outlet.finish(job, "length")
        else:
            self._outlet.fail(job, Why.TOO_LONG, too_long(job.length, self._budget.longest))


def too_long(tokens: int, longest: int) -> str:
    """What a client is told whose prompt leaves no room for an answer."""
    return (
        f"this model's maximum context length is {longest} tokens, which is what memory holds here; "
        f"the prompt has {tokens}"
    )

"""The rows that are decoded together, as the engine knows them and as the decoder has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model_api.backends.base import Decoder, Prompt
from model_api.faults import Fault, classify
from model_api.job import Job
from model_api.sampling import choose


class NotFinite(Exception):
    """A row's logits hold NaN or infinity."""

    def __init__(self) -> None:
        super().__init__("the model produced numbers that are not finite")


class Batch:
    """Each row is a job, a row of the decoder, and the token it is to be fed next. Belongs to the engine's thread."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.jobs: list[Job] = []
        self._next: list[int] = []

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 without rows."""
        return max((job.length for job in self.jobs), default=0)

    def oldest_first(self) -> list[Job]:
        """The jobs by the time they first left the queue."""
        return sorted(self.jobs, key=lambda job: job.began or 0.0)

    def join(self, jobs: Sequence[Job]) -> Tensor:
        """Begins rows; returns the logits of each one's next token. After an error the others are as they were."""
        logits = self._decoder.add([Prompt(job.request.prompt, job.generated) for job in jobs])
        self.jobs.extend(jobs)
        self._next.extend([0] * len(jobs))
        return logits

    def step(self) -> Tensor:
        """Feeds every row its token; returns the next logits. After an error only `clear` may be called."""
        return self._decoder.step(self._next)

    def feed(self, row: int, token: int) -> None:
        """The token that the next step feeds to `row`."""
        self._next[row] = token

    def leave(self, row: int) -> None:
        """Takes a row out; as in the decoder, the last one takes its place."""
        self._decoder.remove(row)
        self.jobs[row], self._next[row] = self.jobs[-1], self._next[-1]
        self.jobs.pop()
        self._next.pop()

    def clear(self) -> list[Job]:
        """Takes all rows out and gives their memory back; returns the jobs, oldest first."""
        jobs = self.oldest_first()
        self.jobs, self._next = [], []
        self._decoder.clear()
        return jobs

    def repeat_alone(self, job: Job) -> None:
        """Does the pass once more that would give `job` its next token, nobody beside it; raises what that raises.

        Only without rows, and there are none afterwards.
        """
        ids, generated = job.request.prompt, job.generated
        try:
            self._decoder.add([Prompt(ids, generated[:-1])])
            if generated:
                self._decoder.step([generated[-1]])
        finally:
            self._decoder.clear()

    def run_prompt(self, ids: Sequence[int]) -> None:
        """Begins a prompt, and without rows goes on with it for a step; raises NotFinite or what the passes raise.

        Rows that there are stay as they were.
        """
        rows = len(self.jobs)
        try:
            logits = self._decoder.add([Prompt(ids)])
            if rows:
                self._decoder.remove(rows)
            else:
                logits = self._decoder.step([ids[-1]])
            if not bool(torch.isfinite(logits.max())):
                raise NotFinite
        finally:
            if not rows:
                self._decoder.clear()


def choose_each(logits: Tensor, jobs: Sequence[Job]) -> list[int | Exception]:
    """One token for each row of `logits`, or what choosing it raises: one row's trouble is not the others'.

    Raises what is no single row's: memory that ran out, a lost device.
    """
    try:
        return list(choose(logits, [job.draw for job in jobs]))
    except Exception as error:
        if classify(error) is not Fault.OTHER:
            raise
        if len(jobs) == 1:
            return [error]
    return [token for row, job in enumerate(jobs) for token in choose_each(logits[row : row + 1], [job])]

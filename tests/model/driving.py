"""An engine in the test's own process, and the collecting of what it answers."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from model_api.backends.base import Decoder, LoadedModel, Prompt
from model_api.engine import Engine
from model_api.job import Job
from model_api.metrics import Metrics
from model_api.request import Event, Failed, Finished, Request, Sampling, Started, Text

PATIENCE = 60.0
GREEDY = Sampling(temperature=0.0)


class Answer:
    """The events of one request, to be waited for."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self.seen: list[Event] = []
        self.job: Job | None = None

    def __call__(self, event: Event) -> None:
        self._events.put(event)

    def next(self, patience: float = PATIENCE) -> Event:
        """The next event."""
        event = self._events.get(timeout=patience)
        self.seen.append(event)
        return event

    def until(self, kind: type[Event]) -> Event:
        """The first event of a kind."""
        while not isinstance(event := self.next(), kind):
            assert not isinstance(event, (Finished, Failed)), event
        return event

    def end(self) -> Finished | Failed:
        """The last event."""
        while not isinstance(event := self.next(), (Finished, Failed)):
            pass
        return event

    @property
    def text(self) -> str:
        """All text seen."""
        return "".join(event.text for event in self.seen if isinstance(event, (Text, Finished)))

    @property
    def tokens(self) -> list[int]:
        """The ids of all tokens made for it, without the one that ended it."""
        assert self.job is not None
        return list(self.job.generated)

    @property
    def began(self) -> bool:
        """Whether it left the queue."""
        return any(isinstance(event, Started) for event in self.seen)


class Fatal(Exception):
    """Where a real server would leave the process."""


@dataclass
class Driven:
    """A running engine and what it reported."""

    engine: Engine
    fatal: list[str] = field(default_factory=list)

    def ask(self, request: Request) -> Answer:
        """Submits a request."""
        answer = Answer()
        answer.job = self.engine.submit(request, answer)
        return answer

    def answers(self, requests: Sequence[Request]) -> list[Finished | Failed]:
        """Submits all and waits for all."""
        return [answer.end() for answer in [self.ask(request) for request in requests]]


@contextmanager
def driving(model: LoadedModel, *, max_batch: int = 8, kv_budget: int | None = None) -> Iterator[Driven]:
    """An engine over `model` for the length of the block; it must have ended by itself afterwards."""
    fatal: list[str] = []
    budget = kv_budget or model.decoder.cells(max_batch, model.context)
    engine = Engine(model, max_batch=max_batch, kv_budget=budget, watch=Metrics(), on_fatal=fatal.append)
    engine.start()
    try:
        yield Driven(engine, fatal)
    finally:
        engine.close()
        assert engine.join(PATIENCE), "the engine did not end"
        model.decoder.clear()


class Meddler:
    """A decoder in front of a real one; a test changes what it does before a pass."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.before_add: Callable[[Sequence[Prompt]], None] = lambda prompts: None
        self.before_step: Callable[[Sequence[int]], None] = lambda tokens: None
        self.after: Callable[[Tensor], Tensor] = lambda logits: logits
        self.prompts: list[Prompt] = []  # of the rows there are, in the decoder's order
        self.most_rows = 0

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.prompts)

    def add(self, prompts: Sequence[Prompt]) -> Tensor:
        self.before_add(prompts)
        logits = self._decoder.add(prompts)
        self.prompts.extend(prompts)
        self.most_rows = max(self.most_rows, self.rows)
        return self.after(logits)

    def step(self, tokens: Sequence[int]) -> Tensor:
        assert len(tokens) == self.rows
        self.before_step(tokens)
        return self.after(self._decoder.step(tokens))

    def remove(self, row: int) -> None:
        self.prompts[row] = self.prompts[-1]
        self.prompts.pop()
        self._decoder.remove(row)

    def clear(self) -> None:
        self.prompts = []
        self._decoder.clear()

    def cells(self, rows: int, longest: int) -> int:
        return self._decoder.cells(rows, longest)

    def bound(self, tokens: int) -> None:
        self._decoder.bound(tokens)

    def held(self) -> int:
        return self._decoder.held()


def meddled(model: LoadedModel, **changes: Any) -> tuple[LoadedModel, Meddler]:
    """`model` with a Meddler as its decoder."""
    meddler = Meddler(model.decoder)
    return replace(model, decoder=meddler, **changes), meddler

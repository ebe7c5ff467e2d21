"""One request on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Callable

from model_api.request import Event, Request
from model_api.sampling import Draw
from model_api.text import Assembler


class Job:
    """A request and what has become of it so far. Only the engine's thread touches what is not marked otherwise."""

    def __init__(self, request: Request, assembler: Assembler, deliver: Callable[[Event], None]) -> None:
        self.request = request
        self.assembler = assembler
        self.deliver = deliver  # called by whoever empties the engine's outbox
        self.draw = Draw(request.sampling, request.prompt)
        self.generated: list[int] = []
        self.unshown = ""  # text of a request that does not stream, kept for its end
        self.submitted = time.monotonic()
        self.began: float | None = None  # when it first left the queue
        self.last_token: float | None = None  # when its last token came
        self.alone = False  # it begins in a pass of its own: one that it was in has failed
        self.unexplained = 0  # failed steps that it was in, with nobody to blame
        self.cancelled = False  # set by any thread, read at the next step
        self.ended = False

    @property
    def length(self) -> int:
        """Tokens it holds: prompt and answer."""
        return len(self.request.prompt) + len(self.generated)

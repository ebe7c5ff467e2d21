"""One synthetic prompt: in the instance's own dialect, with one deadline, not counted when users' work came between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from hasupervisor.model import Address, Miss
from hasupervisor.observe.answers import Dialect, first_model, prompt_fault, prompt_question
from hasupervisor.observe.exchange import Answer, Missed, Question, exchange

ANSWER_LIMIT = 1024 * 1024  # bytes: a model may be talkative
LOOK = 0.25  # seconds between looks whether users' work has come while a prompt is out
NO_SUCH_THING = frozenset({404, 405})
OVERLOADED = frozenset({429, 503})
LOCKED = frozenset({401, 403})
"""It wants an API key, which the supervisor has not: the server answers, and whether the model does cannot be asked."""


@dataclass(frozen=True, slots=True)
class Prompted:
    """How a prompt ended."""

    fault: str  # "" when its answer was good
    excused: bool = False  # a failure that users' work explains: a deadline passed, or a full queue


class Prompter:
    """Prompts one incarnation of an instance and remembers what it has learned of its dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._model: str | None = None  # None: not asked yet
        self.is_locked = False  # the last prompt was turned away for want of a key

    async def ask(self, address: Address, prompt: str, timeout: float, busy: Callable[[], bool]) -> Prompted:
        """Prompts, within `timeout` seconds for everything. `busy` tells whether users' work may be in flight.

        Raises NotAsked when the failure is ours.
        """
        asking = asyncio.ensure_future(self._converse(address, prompt, timeout))
        crowded = busy()
        try:
            while not (await asyncio.wait({asking}, timeout=LOOK))[0]:
                crowded = crowded or busy()
            fault, overloaded = asking.result()
        finally:
            if not asking.done():
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking
        return Prompted(fault, excused=overloaded and (crowded or busy()))

    async def _converse(self, address: Address, prompt: str, timeout: float) -> tuple[str, bool]:
        """The fault in words, and whether it is one that an overload explains."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            for dialect in self._dialects():
                question = prompt_question(dialect, prompt, await self._model_for(dialect, address, deadline))
                answer = await exchange(address, question, max(0.001, deadline - loop.time()), ANSWER_LIMIT)
                if answer.status in NO_SUCH_THING and self._dialect is Dialect.AUTO:
                    continue
                self.is_locked = answer.status in LOCKED
                if self.is_locked:
                    return "", False
                fault = prompt_fault(dialect, answer)
                if not fault:
                    self._dialect = dialect
                return fault, answer.status in OVERLOADED
        except Missed as missed:
            silent = missed.miss in (Miss.SILENT, Miss.CONNECT_TIMEOUT)
            return (f"no answer to it in {timeout:g} s" if silent else str(missed)), silent
        return f"{address} takes neither POST / nor POST /v1/chat/completions", False

    def _dialects(self) -> tuple[Dialect, ...]:
        return (Dialect.CHATGLM, Dialect.OPENAI) if self._dialect is Dialect.AUTO else (self._dialect,)

    async def _model_for(self, dialect: Dialect, address: Address, deadline: float) -> str:
        """The model's name, asked once: some servers refuse a request that does not name it, others have no list."""
        if dialect is not Dialect.OPENAI:
            return ""
        if self._model is None:
            left = max(0.001, (deadline - asyncio.get_running_loop().time()) / 2)
            try:
                answer = await exchange(address, Question("GET", "/v1/models"), left, ANSWER_LIMIT)
            except Missed:
                return ""  # the prompt itself will tell whether that matters
            self._model = _named(answer)
        return self._model or ""


def _named(answer: Answer) -> str | None:
    """The model's name; "" when the server has no list of models; None when it should be asked again."""
    if answer.status == 200 or answer.status in NO_SUCH_THING:
        return first_model(answer)
    return None

"""Bodies of requests: how many bytes for how long, and JSON whose shape is bounded before anything is made of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from model_api.admission import Refusal, Refused
from model_api.problems import Problem, Unanswerable

T = TypeVar("T")

BODIES_HELD = 128 << 20  # bytes of bodies under way, all connections together; beyond it the oldest is cut
SMALL = 16384  # bytes; what is longer is read beside the event loop, not in it
DEEPEST = 32  # levels of lists and objects; tool schemas, the deepest that clients send, have about ten
LONGEST_NUMBER = 64  # characters; reading a number takes time that grows with the square of its length

# A string (also one without an end), a number that is too long, or a mark of structure. Nothing is given back once
# matched (the possessive `+`): the time is linear, whatever the bytes.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[-+.0-9eE]{%d,}+|[\[\]{},:]' % (LONGEST_NUMBER + 1), re.DOTALL)
_OPENING, _CLOSING, _NUMBER = b"[{", b"]}", b"-+.0123456789eE"


def most_items(context: int) -> int:
    """Marks and strings that a body may hold: ten for a message of three tokens, one for each id of a prompt."""
    return max(context, min(4 * context, 100_000)) + 16_384


class Bodies:
    """The bodies that are being received or read, so that all of them together stay within a budget of bytes each."""

    SECONDS = 30.0  # for a client to send one

    def __init__(self, budget: int = BODIES_HELD) -> None:
        self._budget = budget
        self._held: dict[asyncio.Timeout, int] = {}  # oldest first
        self._total = 0
        self._reading = 0  # bytes

    async def read(self, request: HttpRequest, limit: int) -> bytes:
        """The body's bytes; raises Unanswerable, 413 beyond `limit` bytes, 408 when it is slow.

        It is read to its end even when it is too long (up to eight times the limit), or when nothing will be done for
        it: closing a connection on unread bytes resets it, and the client would never see why.
        """
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.SECONDS) as timer:
                self._held[timer] = 0
                try:
                    async for chunk in request.stream():
                        size += len(chunk)
                        if size <= limit:
                            chunks.append(chunk)
                            self._hold(timer, len(chunk))
                        elif size > 8 * limit:
                            break
                finally:
                    self._total -= self._held.pop(timer)
        except TimeoutError:
            raise Unanswerable(Problem(408, f"the body did not arrive in {self.SECONDS:g} s", "timeout")) from None
        if size > limit:
            raise Unanswerable(Problem(413, f"the body is longer than {limit} bytes", "body_too_large"))
        return b"".join(chunks)

    @contextmanager
    def reading(self, body: bytes) -> Iterator[None]:
        """Counts a body whose JSON is being read, or waits for a thread for that; raises Refused beyond the budget."""
        if self._reading and self._reading + len(body) > self._budget:
            raise Refused(Refusal("full", "the server has too many long requests to read at once", 1))
        self._reading += len(body)
        try:
            yield
        finally:
            self._reading -= len(body)

    def _hold(self, timer: asyncio.Timeout, size: int) -> None:
        self._held[timer] += size
        self._total += size
        if self._total > self._budget:
            oldest = next(iter(self._held))
            if not oldest.expired():
                oldest.reschedule(asyncio.get_running_loop().time())


async def read_json(body: bytes, parse: Callable[[Mapping[str, Any]], T], items: int, *, invalid: int) -> T:
    """What `parse` makes of a JSON object; raises Unanswerable with the status `invalid` where the body is none.

    Long bodies are read in a thread: a megabyte of JSON takes tens of milliseconds, for which /health need not wait.
    """

    def work() -> T:
        return parse(to_object(body, items, invalid=invalid))

    return work() if len(body) <= SMALL else await asyncio.to_thread(work)


def to_object(body: bytes, items: int, *, invalid: int) -> dict[str, Any]:
    """The JSON object in a body of at most `items` marks and strings; raises Unanswerable."""

    def wrong(words: str) -> Unanswerable:
        return Unanswerable(Problem(invalid, words, "invalid_json"))

    if (words := _excess(body, items)) is not None:
        raise wrong(words)
    try:
        parsed = json.loads(body, parse_constant=_no_constants)
    except UnicodeDecodeError:
        raise wrong("the body is not UTF-8") from None
    except ValueError as error:
        raise wrong(f"the body is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise wrong(f"the body must be a JSON object, not a {type(parsed).__name__}")
    return parsed


def _excess(body: bytes, items: int) -> str | None:
    """What a body has too much of; None: it may be read."""
    depth = 0
    if 0 in body:
        # No JSON in UTF-8 has a NUL. UTF-16 and UTF-32 have, which Python would read and which hide their marks here.
        return "the body is not UTF-8"
    for count, found in enumerate(_TOKEN.finditer(body), start=1):
        first = body[found.start()]
        if count > items:
            return f"the body has more than {items} values; this model's context cannot hold so many"
        if first in _OPENING:
            depth += 1
            if depth > DEEPEST:
                return f"the body is nested too deeply: more than {DEEPEST} levels"
        elif first in _CLOSING:
            depth -= 1
        elif first in _NUMBER:
            return f"the body is not JSON as this server reads it: a number of more than {LONGEST_NUMBER} characters"
    return None


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")

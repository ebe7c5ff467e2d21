"""Why a request is not answered, and what that says to whoever might ask again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# What OpenAI's client asks again by itself, besides every 5xx; `x-should-retry: false` stops it.
REPEATED = frozenset((408, 409, 429))


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request is not answered. `code` is a word for programs, `field` the parameter that is wrong.

    `final`: asking again, here or elsewhere, would end the same way. None: the status says it.
    """

    status: int
    words: str
    code: str
    field: str | None = None
    retry_after: int | None = None
    final: bool | None = None

    def headers(self) -> Mapping[str, str]:
        """The headers of an answer that tells it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        final = self.status < 500 and self.status not in REPEATED if self.final is None else self.final
        if final:
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


class Unanswerable(Exception):
    """Ends a handler with a Problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.words)
        self.problem = problem


def check_text(text: str, field: str, *, invalid: int) -> None:
    """Raises Unanswerable if `text` cannot be encoded: JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        words = f"{field}: holds half of a surrogate pair, which is no character"
        raise Unanswerable(Problem(invalid, words, "invalid_text", field)) from None

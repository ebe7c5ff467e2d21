"""One line of nginx's access log (log_format ha, by syslog datagram): what was asked, who was tried, how it went. Pure.

Tried with stock nginx 1.22: `$upstream_*` are lists, ", " between tries and " : " after an internal redirect. Of a try,
the connect time "-" means that no connection came about (the status is nginx's own 502 or 504), a header time "-" that
it was connected and never answered; a status "-" that the client left first.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

EVENT_STREAM = "text/event-stream"
CLIENT_LEFT = 499
OVERLOADED = 503
AT_ONCE = 1.0  # seconds within which a client leaves for reasons of its own, whatever the load

_BETWEEN = re.compile(r", | : ")
_LEADING_ZEROS = re.compile(r'"st":0+(?=\d)')


class Unreadable(ValueError):
    """The datagram is not a line of this format."""


@dataclass(frozen=True, slots=True)
class Try:
    """One upstream that a request was sent to."""

    address: str  # "127.0.0.1:8000"; the upstream's name where nginx had nobody to try
    status: int | None  # the instance's, or nginx's 502 and 504 for it; None: the client left before
    seconds: float | None  # spent on it
    first_byte_s: float | None  # until its header was read; None: it never answered


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a user, as it ended."""

    path: str
    method: str
    status: int  # what the client was told; CLIENT_LEFT: it did not wait
    seconds: float  # from its first byte to the last of the answer, waiting included
    sent: int  # bytes to the client
    stream: bool
    tries: tuple[Try, ...]

    @property
    def tells_of_the_load(self) -> bool:
        """Whether it asked a model to answer (POST / or POST /v1/*), was not refused for what it is, nor left at once.

        Any other request costs an instance next to nothing.
        """
        if self.method != "POST" or not (self.path == "/" or self.path.startswith("/v1/")):
            return False
        if 400 <= self.status < CLIENT_LEFT:
            return False
        return not self.was_left or self.seconds >= AT_ONCE

    @property
    def waited_s(self) -> float | None:
        """What a user waited for an answer; who left before it came waited that long at least. None: no telling."""
        if not self.tells_of_the_load or self.status >= 500:
            return None
        return self.seconds if self.was_left else self.latency_s

    @property
    def was_left(self) -> bool:
        """Whether the client left before any instance had begun to answer."""
        return self.status == CLIENT_LEFT and (not self.tries or self.tries[-1].first_byte_s is None)

    @property
    def latency_s(self) -> float | None:
        """What the user waited: for the first byte of a stream, else for the whole answer. None: nobody answered."""
        if not self.tries:
            return None
        last = self.tries[-1]
        if last.first_byte_s is None:
            return None
        if self.stream and last.seconds is not None:
            return max(0.0, self.seconds - last.seconds + last.first_byte_s)
        return self.seconds


def read_line(datagram: bytes) -> Request:
    """The request that a datagram tells of. Raises Unreadable, with what is wrong."""
    begin = datagram.find(b"{")
    text = datagram[max(begin, 0) :].decode(errors="replace")
    try:
        line = _load(text)
        # nginx writes these as bare numbers; the lists are strings, empty when nobody was tried.
        return Request(
            path=line["u"],
            method=line["m"],
            status=int(line["st"]),
            seconds=float(line["rt"]),
            sent=int(line["bo"]),
            stream=line["ct"].startswith(EVENT_STREAM),
            tries=_tries(line["ua"], line["us"], line["uht"], line["urt"]) if line["ua"] else (),
        )
    except KeyError as missing:
        raise Unreadable(f"it has no {missing}") from missing
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as wrong:
        raise Unreadable(str(wrong)) from wrong


def is_traffic(request: Request) -> bool:
    """Whether a request is users' work: the gateway's own pages, and what never got as far as an instance, are not.

    A request that was refused for want of instances (5xx) is: somebody was turned away.
    """
    if request.path == "/health" or request.path.startswith("/ha/"):
        return False
    return bool(request.tries) or request.status >= 500


def _load(text: str) -> dict[str, str]:
    try:
        line = json.loads(text)
    except ValueError:
        # A request that ended before it had a status is logged as 000, which is no JSON number.
        line = json.loads(_LEADING_ZEROS.sub('"st":', text))
    if not isinstance(line, dict):
        raise Unreadable("it is no JSON object")
    return line


def _tries(addresses: str, statuses: str, first_bytes: str, seconds: str) -> tuple[Try, ...]:
    if "," not in addresses and " : " not in addresses:
        return (Try(addresses, _status(statuses), _seconds(seconds), _seconds(first_bytes)),)
    lists = [_BETWEEN.split(text) for text in (addresses, statuses, seconds, first_bytes)]
    if len({len(parts) for parts in lists}) != 1:
        raise Unreadable(f"its upstream lists differ in length: {[len(parts) for parts in lists]}")
    return tuple(
        Try(address, _status(status), _seconds(took), _seconds(first))
        for address, status, took, first in zip(*lists, strict=True)
    )


def _status(text: str) -> int | None:
    return None if text == "-" else int(text)


def _seconds(text: str) -> float | None:
    return None if text == "-" else float(text)

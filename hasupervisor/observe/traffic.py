"""Real traffic: nginx's access log as it happens, joined with what the kernel shows to be in flight."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from hasupervisor.model import Address, Fact, Phase, TrafficView
from hasupervisor.observe.accesslog import CLIENT_LEFT, OVERLOADED, Request, Try, Unreadable, is_traffic, read_line
from hasupervisor.observe.connections import Flight, InFlight
from hasupervisor.observe.tally import NOBODY, Tally
from hasupervisor.observe.window import SPAN, Summary, Window

log = structlog.get_logger(__name__)

BATCH = 200  # lines read before others get their turn: about 3 ms
A_ROW = 5  # errors in a row, beyond which they are no news
LINE_LIMIT = 64 * 1024  # bytes of a datagram


@dataclass(slots=True)
class _Upstream:
    """What the log has told of one address, in the life that is lived there now."""

    window: Window
    runtime_id: str = ""  # empty: nobody has said who lives there
    name: str = NOBODY
    heard_at: float = 0.0  # when a line last spoke of it
    since: float = float("-inf")  # when this life was first seen
    completed_at: float | None = None
    bytes_at: float | None = None
    errors_in_row: int = 0
    errored_at: float | None = None


class Traffic:
    """Counts what users get, by address and in total, over the last minute.

    Every try in a line counts for the address it went to: a failed one is evidence against that address, though the
    user was served by another; a request is logged when it ends, so a try that ended before this life began is the one
    before's. 503 is an instance's word for "full": it is in `error_rate`, but neither adds to
    `errors_in_row` nor ends it, so that an overload makes nobody suspect. A stream that was cut is logged by nginx like
    one that ended well. Lines that nginx dropped cannot be seen; `lost` counts those that could not be read.

    `on_errors` is called for the first errors of a row: whoever decides need not wait for the next cycle. `sock` is the
    datagram socket (None: nginx is off, nothing but connections is known).
    """

    def __init__(
        self,
        sock: socket.socket | None,
        in_flight: InFlight,
        clock: Callable[[], float] = time.monotonic,
        on_errors: Callable[[], None] = lambda: None,
    ) -> None:
        self.received = 0  # lines, ever
        self.lost = 0  # of them unreadable
        self.tally = Tally()
        self._sock = sock
        self._in_flight = in_flight
        self._clock = clock
        self._on_errors = on_errors
        self._total = Window(clock())
        self._upstreams: dict[str, _Upstream] = {}
        self._flights: dict[Address, Flight] | None = None

    def start(self) -> None:
        """Begins to read; needs a running loop."""
        if self._sock is not None:
            self._sock.setblocking(False)
            asyncio.get_running_loop().add_reader(self._sock, self._read)

    def close(self) -> None:
        """Stops reading and closes the socket; its file stays for whoever comes next."""
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def follow(self, facts: Sequence[Fact]) -> None:
        """Tells who lives where, whenever that may have changed: a new runtime_id starts from nothing."""
        now = self._clock()
        lives = {
            _as_nginx_writes(fact.address): (fact.runtime_id, fact.name)
            for fact in facts
            if fact.phase in (Phase.RUNNING, Phase.PAUSED)  # what has ended may have left its address to another
        }
        for key, (runtime_id, name) in lives.items():
            known = self._upstreams.get(key)
            if known is None or known.runtime_id not in ("", runtime_id):
                self._upstreams[key] = _Upstream(Window(now), runtime_id, name, now, now)
            else:
                known.runtime_id, known.name = runtime_id, name
        for key, upstream in list(self._upstreams.items()):
            if key not in lives and now - upstream.heard_at > SPAN:
                del self._upstreams[key]

    def view(self, addresses: Sequence[Address]) -> dict[Address, TrafficView]:
        """The last minute of each address, and what is in flight there now: this looks at the kernel, about 1 ms."""
        now = self._clock()
        self._flights = self._in_flight.count(addresses)
        return {address: self._view(address, now) for address in addresses}

    def total(self) -> TrafficView:
        """The last minute of the whole service; in flight as of the last `view`."""
        flights = self._flights
        in_flight = sum(flight.connections for flight in flights.values()) if flights is not None else 0
        return _show(self._total.summary(self._clock()), in_flight, flights is not None)

    def idle(self, address: Address) -> bool | None:
        """Whether nothing was in flight at the last `view`; None: nobody knows."""
        flight = self._flights.get(address) if self._flights is not None else None
        return None if flight is None else flight.connections == 0

    def _view(self, address: Address, now: float) -> TrafficView:
        flight = self._flights.get(address) if self._flights is not None else None
        upstream = self._upstreams.get(_as_nginx_writes(address))
        summary = upstream.window.summary(now) if upstream is not None else Summary()
        bytes_at = [upstream.bytes_at] if upstream is not None and upstream.bytes_at is not None else []
        if flight is not None and flight.heard_s is not None:
            bytes_at.append(now - flight.heard_s)
        return _show(
            summary,
            flight.connections if flight is not None else 0,
            flight is not None,
            completed_at=upstream.completed_at if upstream is not None else None,
            bytes_at=max(bytes_at, default=None),
            errors_in_row=upstream.errors_in_row if upstream is not None else 0,
            errored_at=upstream.errored_at if upstream is not None else None,
        )

    # --- the log ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        assert self._sock is not None
        now = self._clock()
        for _ in range(BATCH):
            try:
                datagram = self._sock.recv(LINE_LIMIT)
            except BlockingIOError:
                return
            self.received += 1
            try:
                request = read_line(datagram)
            except Unreadable as wrong:
                self._lose(wrong)
                continue
            if is_traffic(request):
                self._count(request, now)

    def _lose(self, wrong: Unreadable) -> None:
        self.lost += 1
        if self.lost == 1:  # the line itself is not logged: it may be a user's
            log.warning(
                f"an access log line of nginx cannot be read: {wrong}; has its log_format been changed by hand? "
                "Compare: chatglm-hactl nginx show"
            )

    def _count(self, request: Request, now: float) -> None:
        served = request.status < 500 and request.status != CLIENT_LEFT
        latency_s = request.latency_s if served else None
        self._total.add(now, latency_s, request.status >= 500)
        last = self._upstreams.get(request.tries[-1].address) if request.tries else None
        name = last.name if last is not None else NOBODY
        self.tally.add(name, request.status, request.seconds, latency_s, request.sent)
        ended = now - sum(tried.seconds or 0.0 for tried in request.tries)
        for tried in request.tries:
            ended += tried.seconds or 0.0
            self._count_try(tried, request, ended, now)

    def _count_try(self, tried: Try, request: Request, ended: float, now: float) -> None:
        upstream = self._upstreams.get(tried.address)
        if upstream is None:
            if ":" not in tried.address or tried.address.startswith("unix:"):  # nobody to try; our own waiting room
                return
            upstream = self._upstreams[tried.address] = _Upstream(Window(now))
        upstream.heard_at = now
        if ended < upstream.since:
            return  # the life before fell over it, and it has waited for another one since
        failed = tried.status is not None and tried.status >= 500
        well = tried.status is not None and not failed
        latency = tried.first_byte_s if request.stream else tried.seconds
        upstream.window.add(now, latency if well else None, failed)
        if tried.first_byte_s is not None:
            upstream.bytes_at = ended
        if well:
            upstream.completed_at = ended
            upstream.errors_in_row = 0
        elif failed and tried.status != OVERLOADED:
            upstream.errors_in_row += 1
            upstream.errored_at = ended
            if upstream.errors_in_row <= A_ROW:
                self._on_errors()


def _as_nginx_writes(address: Address) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else str(address)


def _show(
    summary: Summary,
    in_flight: int,
    in_flight_known: bool,
    *,
    completed_at: float | None = None,
    bytes_at: float | None = None,
    errors_in_row: int = 0,
    errored_at: float | None = None,
) -> TrafficView:
    return TrafficView(
        in_flight=in_flight,
        in_flight_known=in_flight_known,
        completed_at=completed_at,
        bytes_at=bytes_at,
        qps=summary.qps,
        mean_ms=summary.mean_ms,
        p50_ms=summary.p50_ms,
        p95_ms=summary.p95_ms,
        p99_ms=summary.p99_ms,
        error_rate=summary.error_rate,
        errors_in_row=errors_in_row,
        errored_at=errored_at,
    )

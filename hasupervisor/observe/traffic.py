"""Real traffic: nginx's access log as it happens, joined with what the kernel shows to be in flight."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from hasupervisor.model import Address, Fact, Phase, TrafficView
from hasupervisor.observe.accesslog import OVERLOADED, Request, Try, Unreadable, is_traffic, read_line
from hasupervisor.observe.connections import Flight, InFlight
from hasupervisor.observe.namespaces import PAUSE, STALE, Server
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
    `errors_in_row` nor ends it, so that an overload makes nobody suspect. Latencies are of requests for an answer; in
    the total, who left before it came waited that long. A stream that was cut is logged by nginx like one that ended
    well. Lines that nginx dropped cannot be seen; `lost` counts those that could not be read.

    `on_errors` is called for the first errors of a row: whoever decides need not wait for the next cycle. `sock` is the
    datagram socket (None: nothing but connections is known). `gateway`: users come through an nginx of this host.
    """

    def __init__(
        self,
        sock: socket.socket | None,
        in_flight: InFlight,
        clock: Callable[[], float] = time.monotonic,
        on_errors: Callable[[], None] = lambda: None,
        *,
        gateway: bool = True,
    ) -> None:
        self.received = 0  # lines, ever
        self.lost = 0  # of them unreadable
        self.tally = Tally()
        self._sock = sock
        self._in_flight = in_flight
        self._clock = clock
        self._on_errors = on_errors
        self._gateway = gateway
        self._servers: dict[Address, Server] = {}
        self._private: frozenset[Address] = frozenset()  # nobody but programs of this host can connect there
        self._looking: asyncio.Task[None] | None = None
        self._total = Window(clock())
        self._upstreams: dict[str, _Upstream] = {}
        self._flights: dict[Address, Flight] | None = None
        self._counted_at = float("-inf")

    @property
    def hears(self) -> bool:
        """Whether there is a log to read at all; without one nothing but connections is known."""
        return self._sock is not None

    def start(self) -> None:
        """Begins to read; needs a running loop."""
        if self._sock is not None:
            self._sock.setblocking(False)
            asyncio.get_running_loop().add_reader(self._sock, self._read)
        self._looking = asyncio.get_running_loop().create_task(self._look_for_ever(), name="look into namespaces")

    def close(self) -> None:
        """Stops reading and closes the socket; its file stays for whoever comes next."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def follow(self, facts: Sequence[Fact]) -> None:
        """Tells who lives where, whenever that may have changed: a new runtime_id starts from nothing."""
        now = self._clock()
        living = [fact for fact in facts if fact.phase in (Phase.RUNNING, Phase.PAUSED)]
        # What has ended may have left its address to another.
        lives = {_as_nginx_writes(fact.address): (fact.runtime_id, fact.name) for fact in living}
        self._servers = {fact.address: Server.of(fact) for fact in living}
        self._private = frozenset(fact.address for fact in living if _is_loopback(fact.endpoint.host))
        self._in_flight.namespaces.follow(self._servers.values())
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
        now = self._counted_at = self._clock()
        self._flights = self._in_flight.count(addresses, self._servers)
        return {address: self._view(address, now) for address in addresses}

    def total(self) -> TrafficView:
        """The last minute of the whole service; in flight as of the last `view`."""
        flights = self._flights
        in_flight = sum(flight.connections for flight in flights.values()) if flights is not None else 0
        known = flights is not None and all(self._is_known(address) for address in flights)
        return _show(self._total.summary(self._clock()), in_flight, known)

    def idle(self, address: Address) -> bool | None:
        """Whether nothing was in flight at the last `view`; None: nobody knows, or that was too long ago."""
        flight = self._flights.get(address) if self._flights is not None else None
        if flight is None or self._clock() - self._counted_at > STALE:
            return None
        if flight.connections:
            return False
        return True if self._is_known(address) else None

    def _is_known(self, address: Address) -> bool:
        """Whether nobody can be connected there but those that were counted."""
        flight = self._flights.get(address) if self._flights is not None else None
        return flight is not None and (flight.whole or (self._gateway and address in self._private))

    async def _look_for_ever(self) -> None:
        """Containers are looked into by a thread: it takes milliseconds for each."""
        while True:
            try:
                await asyncio.to_thread(self._in_flight.namespaces.look)
            except Exception:
                log.exception("BUG: who is connected to containers could not be seen; what was seen grows old")
            await asyncio.sleep(PAUSE)

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
            self._is_known(address),
            in_flight_at=flight.at if flight is not None else None,
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
        waited_s = request.waited_s
        self._total.add(now, waited_s, request.status >= 500)
        last = self._upstreams.get(request.tries[-1].address) if request.tries else None
        name = last.name if last is not None else NOBODY
        self.tally.add(name, request.status, request.seconds, request.sent)
        if request.tells_of_the_load:
            self.tally.weigh(waited_s, turned_away=request.was_left or self._met_full_ones(request))
        ended = now - sum(tried.seconds or 0.0 for tried in request.tries)
        for tried in request.tries:
            ended += tried.seconds or 0.0
            self._count_try(tried, request, ended, now)

    def _met_full_ones(self, request: Request) -> bool:
        """Whether the client was told 503 because an instance had said that it is full."""
        said_full = (tried.address for tried in request.tries if tried.status == OVERLOADED)
        return request.status == OVERLOADED and any(
            one.name != NOBODY for address in said_full if (one := self._upstreams.get(address)) is not None
        )

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
        tells = well and request.tells_of_the_load  # a page that costs nothing says nothing of how long an answer takes
        upstream.window.add(now, latency if tells else None, failed)
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _as_nginx_writes(address: Address) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else str(address)


def _show(
    summary: Summary,
    in_flight: int,
    in_flight_known: bool,
    *,
    in_flight_at: float | None = None,
    completed_at: float | None = None,
    bytes_at: float | None = None,
    errors_in_row: int = 0,
    errored_at: float | None = None,
) -> TrafficView:
    return TrafficView(
        in_flight=in_flight,
        in_flight_known=in_flight_known,
        in_flight_at=in_flight_at,
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

"""Traffic from datagrams: what counts for whom, and what a new life forgets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import structlog.testing

from hasupervisor.model import Address, Fact, Phase, TrafficView
from hasupervisor.observe.connections import InFlight
from hasupervisor.observe.logsocket import open_log_socket
from hasupervisor.observe.namespaces import STALE
from hasupervisor.observe.traffic import BATCH, Traffic
from tests.observe.servers import free_address, here
from tests.observe.test_accesslog import HEAD, LINE, line
from tests.observe.test_connections import address_of, connected, listening
from tests.real.waiting import eventually

ONE, TWO = Address("127.0.0.1", 8000), Address("127.0.0.1", 8001)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Heard:
    traffic: Traffic
    clock: Clock
    nginx: socket.socket

    async def says(self, *lines: bytes) -> None:
        """Sends lines as nginx would, and waits until they have been read."""
        expected = self.traffic.received + len(lines)
        for raw in lines:
            await asyncio.get_running_loop().sock_sendall(self.nginx, raw)
        await eventually(lambda: self.traffic.received == expected)

    def view(self, address: Address = ONE) -> TrafficView:
        return self.traffic.view([address])[address]


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    nginx = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with open_log_socket(tmp_path / "log.sock") as listener, nginx:
        nginx.setblocking(False)
        nginx.connect(os.fspath(tmp_path / "log.sock"))
        clock = Clock()
        yield Heard(Traffic(listener, InFlight(), clock), clock, nginx)


def flow(view: TrafficView) -> TrafficView:
    """What the log has told, without what was counted in the kernel."""
    return replace(view, in_flight=0, in_flight_known=True, in_flight_at=None)


def fact(address: Address, runtime_id: str) -> Fact:
    return Fact("chatglm-01", runtime_id, Phase.RUNNING, address, address)


async def test_an_answered_request_counts_for_its_instance_and_in_total(heard: Heard) -> None:
    heard.traffic.start()
    heard.clock.now += 10.0
    await heard.says(line(), line(rt=1.5, urt="1.500"))
    view = heard.view()
    assert (view.completed_at, view.bytes_at, view.errors_in_row, view.error_rate) == (1010.0, 1010.0, 0, 0.0)
    assert view.mean_ms == pytest.approx(1000.0)
    total = heard.traffic.total()
    assert total.qps == pytest.approx(0.2)
    assert total.mean_ms == pytest.approx(1000.0)
    assert heard.view(TWO).completed_at is None
    heard.traffic.close()


async def test_a_failed_try_counts_against_its_instance_though_the_user_was_served(heard: Heard) -> None:
    heard.traffic.start()
    retried = line(
        rt=0.6, ua="127.0.0.1:8001, 127.0.0.1:8000", us="502, 200", uct="-, 0.000", uht="-, 0.1", urt="0.0, 0.5"
    )
    await heard.says(retried, retried, retried)
    bad, good = heard.view(TWO), heard.view(ONE)
    assert (bad.errors_in_row, bad.error_rate, bad.completed_at, bad.bytes_at, bad.mean_ms) == (
        3,
        1.0,
        None,
        None,
        None,
    )
    assert (good.errors_in_row, good.error_rate) == (0, 0.0)
    assert good.mean_ms == pytest.approx(500.0)
    total = heard.traffic.total()
    assert (total.error_rate, total.qps) == (0.0, 3.0)
    assert total.mean_ms == pytest.approx(600.0)
    await heard.says(line(ua="127.0.0.1:8001"))
    assert heard.view(TWO).errors_in_row == 0
    heard.traffic.close()


async def test_a_request_that_waited_after_one_life_fell_over_it_is_no_evidence_against_the_next(heard: Heard) -> None:
    heard.traffic.start()
    heard.traffic.follow([fact(ONE, "a")])
    heard.clock.now += 60.0
    heard.traffic.follow([fact(ONE, "b")])
    heard.clock.now += 5.0
    room = "127.0.0.1:9181"
    waited = line(
        rt=8.5, ua=f"{ONE} : {room} : {TWO}", us="502 : 200 : 200", uht="- : 8.0 : 0.3", urt="0.2 : 8.0 : 0.3"
    )
    await heard.says(waited, waited, waited)
    assert (heard.view().errors_in_row, heard.view().error_rate, heard.view(TWO).completed_at) == (0, 0.0, 1065.0)
    own = line(rt=4.5, ua=f"{ONE} : {room} : {TWO}", us="502 : 200 : 200", uht="- : 4.0 : 0.3", urt="0.2 : 4.0 : 0.3")
    await heard.says(own)
    view = heard.view()
    assert (view.errors_in_row, view.error_rate) == (1, 1.0)
    assert view.errored_at == pytest.approx(1060.7), "it is as old as the try, not as the line"
    heard.traffic.close()


async def test_errors_of_an_instance_count_in_a_row_and_an_overload_does_not(heard: Heard) -> None:
    heard.traffic.start()
    await heard.says(line(st=500, us="500"), line(st=503, us="503"), line(st=504, us="504", uht="-"))
    view = heard.view()
    assert (view.errors_in_row, view.error_rate, view.completed_at) == (2, 1.0, None)
    assert view.mean_ms is None
    await heard.says(line(st=404, us="404"))
    view = heard.view()
    assert (view.errors_in_row, view.completed_at, view.error_rate) == (0, 1000.0, 0.75)
    heard.traffic.close()


async def test_a_client_that_left_is_neither_success_nor_error_of_the_instance_and_has_waited(heard: Heard) -> None:
    heard.traffic.start()
    await heard.says(line(st=500, us="500"), line(st=499, rt=30.0, us="-", uht="-", urt="30.000"))
    view = heard.view()
    assert (view.errors_in_row, view.error_rate, view.completed_at, view.mean_ms) == (1, 0.5, None, None)
    assert heard.traffic.total().mean_ms == pytest.approx(30_000.0)
    heard.traffic.close()


async def test_only_requests_for_an_answer_tell_how_long_answers_take(heard: Heard) -> None:
    heard.traffic.start()
    answer = line(rt=4.0, urt="4.000")
    cheap = (
        line(m="GET", u="/v1/models", rt=0.002, urt="0.002"),
        line(m="GET", u="/metrics", rt=0.002, urt="0.002"),
        line(m="POST", u="/tokenize", rt=0.002, urt="0.002"),
        line(st=404, us="404", u="/v1/nothing", rt=0.002, urt="0.002"),
        line(st=401, us="401", rt=0.002, urt="0.002"),
        line(st=429, us="429", rt=0.002, urt="0.002"),
        line(st=499, us="-", uht="-", rt=0.3, urt="0.300"),  # a slip of the finger
    )
    await heard.says(answer, *cheap * 20, line(u="/v1/chat/completions", rt=6.0, urt="6.000"))
    for view in (heard.view(), heard.traffic.total()):
        assert view.mean_ms == pytest.approx(5000.0)
        assert view.p99_ms is None, "two answers have no tail"
    tally = heard.traffic.tally
    assert (tally.ended, tally.answered, tally.latency_s, tally.turned_away) == (2, 2, 10.0, 0)
    assert sum(tally.codes.values()) == 2 + 20 * len(cheap), "all of them are counted"
    heard.traffic.close()


async def test_those_who_left_without_an_answer_and_those_who_were_told_that_all_are_full_are_counted(
    heard: Heard,
) -> None:
    heard.traffic.start()
    heard.traffic.follow([fact(ONE, "a")])
    left = line(st=499, us="-", uht="-", rt=5.0, urt="5.000")
    left_a_stream = line(st=499, us="200", ct="text/event-stream", uht="0.500", rt=5.0, urt="5.000")
    full = line(st=503, us="503", rt=0.01, urt="0.010")
    nobody = line(st=503, ua="ha", us="502", uht="-", rt=10.0, urt="10.0")  # nobody serves: that is for healing
    await heard.says(line(rt=1.2, urt="1.200"), left, left_a_stream, full, nobody)
    tally = heard.traffic.tally
    assert (tally.ended, tally.turned_away) == (5, 2)
    assert (tally.answered, tally.latency_s) == (3, pytest.approx(1.2 + 5.0 + 0.5))
    heard.traffic.close()


async def test_a_stream_is_measured_by_its_first_byte(heard: Heard) -> None:
    heard.traffic.start()
    await heard.says(line(ct="text/event-stream", rt=20.0, uht="0.200", urt="20.000"))
    for view in (heard.view(), heard.traffic.total()):
        assert view.mean_ms == pytest.approx(200.0)
    heard.traffic.close()


async def test_nobody_to_try_is_an_error_of_the_service_and_of_no_instance(heard: Heard) -> None:
    heard.traffic.start()
    await heard.says(line(st=502, ua="ha", us="502", uct="-", uht="-", urt="0.000"))
    assert heard.traffic.total().error_rate == 1.0
    assert flow(heard.view()) == TrafficView()
    heard.traffic.close()


async def test_health_pages_are_no_traffic(heard: Heard) -> None:
    heard.traffic.start()
    await heard.says(line(u="/health"), line(u="/ha/generation", ua=""))
    assert heard.traffic.total().qps == 0.0
    heard.traffic.close()


async def test_a_new_life_at_an_address_starts_from_nothing(heard: Heard) -> None:
    heard.traffic.start()
    await heard.says(line(st=500, us="500"))
    heard.traffic.follow([fact(ONE, "first")])
    assert heard.view().errors_in_row == 1  # the line came before anybody had said who lives there
    heard.traffic.follow([fact(ONE, "first")])
    assert heard.view().errors_in_row == 1
    gone = replace(fact(ONE, "older"), phase=Phase.EXITED)
    heard.traffic.follow([fact(ONE, "first"), gone])
    assert heard.view().errors_in_row == 1
    heard.traffic.follow([fact(ONE, "second")])
    assert flow(heard.view()) == TrafficView()
    heard.traffic.close()


async def test_an_address_where_nobody_lives_is_forgotten_after_a_minute(heard: Heard) -> None:
    heard.traffic.start()
    await heard.says(line(), line(ua="127.0.0.1:8001"))
    heard.clock.now += 59.0
    heard.traffic.follow([fact(ONE, "first")])
    assert heard.view(TWO).completed_at == 1000.0
    heard.clock.now += 2.0
    heard.traffic.follow([fact(ONE, "first")])
    assert flow(heard.view(TWO)) == TrafficView()
    assert heard.view(ONE).completed_at == 1000.0  # as old as it is
    assert heard.view(ONE).qps == 0.0
    heard.traffic.close()


async def test_lines_that_cannot_be_read_are_counted_and_told_once_without_their_words(heard: Heard) -> None:
    heard.traffic.start()
    with structlog.testing.capture_logs() as logs:
        await heard.says(b"<190>garbage secret", HEAD + b'{"u":"/secret"}', line())
    assert (heard.traffic.lost, heard.traffic.received) == (2, 3)
    assert heard.view().completed_at is not None
    assert len(logs) == 1
    assert "secret" not in json.dumps(logs)
    heard.traffic.close()


async def test_a_flood_of_lines_does_not_keep_others_from_their_turn(heard: Heard) -> None:
    async def flood() -> None:
        for _ in range(10 * BATCH):
            await asyncio.get_running_loop().sock_sendall(heard.nginx, line())

    heard.traffic.start()
    flooding = asyncio.ensure_future(flood())
    turns = 0
    while not flooding.done():
        before = heard.traffic.received
        await asyncio.sleep(0)
        assert heard.traffic.received - before <= BATCH
        turns += 1
    assert turns >= 10
    await eventually(lambda: heard.traffic.received == 10 * BATCH)
    heard.traffic.close()


async def test_what_is_in_flight_is_seen_beside_the_log(heard: Heard) -> None:
    with listening() as one, connected("127.0.0.1", address_of(one).port, 3):
        busy, idle = address_of(one), free_address()
        assert heard.traffic.idle(busy) is None  # not looked yet
        heard.traffic.follow([fact(busy, "a"), replace(fact(idle, "b"), name="chatglm-02")])
        views = heard.traffic.view([busy, idle])
        assert (views[busy].in_flight, views[busy].in_flight_known) == (3, True)
        assert (views[idle].in_flight, views[idle].in_flight_known) == (0, True)
        assert (heard.traffic.idle(busy), heard.traffic.idle(idle)) == (False, True)
        assert (heard.traffic.total().in_flight, heard.traffic.total().in_flight_known) == (3, True)
        named = Address("some-name", busy.port)
        assert not heard.traffic.view([named])[named].in_flight_known


async def test_bytes_of_a_stream_that_goes_on_are_a_life_sign(heard: Heard) -> None:
    with listening() as one, connected("127.0.0.1", address_of(one).port, 1):
        address = address_of(one)
        assert heard.view(address).bytes_at is None
        connection, _ = one.accept()
        with connection:
            connection.sendall(b"data: 1\n\n")
            await eventually(lambda: heard.view(address).bytes_at is not None)
            assert heard.view(address).bytes_at == pytest.approx(heard.clock.now, abs=0.5)
            assert heard.view(address).completed_at is None


async def test_an_old_look_does_not_tell_that_nothing_is_in_flight_now(heard: Heard) -> None:
    idle = free_address()
    heard.traffic.follow([fact(idle, "a")])
    heard.view(idle)
    heard.clock.now += STALE
    assert heard.traffic.idle(idle) is True
    heard.clock.now += 0.1
    assert heard.traffic.idle(idle) is None


async def test_without_nginx_only_connections_are_known() -> None:
    with listening() as one, connected("127.0.0.1", address_of(one).port, 1):
        address = address_of(one)
        traffic = Traffic(None, InFlight(), gateway=False)
        traffic.start()
        traffic.follow([here(address)])
        view = traffic.view([address])[address]
        assert (flow(view), view.in_flight, view.in_flight_known) == (TrafficView(), 1, True)
        traffic.close()


async def test_where_nobody_tells_who_listens_there_may_be_more_in_flight_than_is_seen() -> None:
    with listening() as one:
        address = address_of(one)
        traffic = Traffic(None, InFlight(), gateway=False)
        for told in ([], [fact(address, "a")], [replace(here(address), started_at=time.monotonic() + 60.0)]):
            traffic.follow(told)
            assert not traffic.view([address])[address].in_flight_known
            assert traffic.idle(address) is None, "and no prompt is sent as if it were idle"
            assert not traffic.total().in_flight_known


def test_the_example_line_is_one_of_ours() -> None:
    assert set(LINE) == {"t", "gen", "id", "m", "u", "st", "rt", "bo", "ct", "ua", "us", "uct", "uht", "urt"}

"""The TCP server: /metrics, /healthz and the page, for readers only and under our own names only."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from hasupervisor.model import Address, GatewayView, Pause, RuntimeView, State, Wants
from hasupervisor.report.desk import Unavailable
from hasupervisor.report.http import LIMITS, CannotListen, bind, is_ours, public_pages
from hasupervisor.report.metrics import Metrics
from hasupervisor.report.page import text
from hasupervisor.report.server import serve
from tests.report.clerk import Clerk
from tests.report.example import NOW, SERVING, SNAPSHOT


@dataclass
class Pages:
    clerk: Clerk
    metrics: Metrics
    client: httpx.AsyncClient
    port: int
    now: float = NOW


@asynccontextmanager
async def pages(clerk: Clerk | None = None) -> AsyncIterator[Pages]:
    """The server on a free port of loopback; `now` is its clock."""
    clerk = clerk if clerk is not None else Clerk()
    listener = bind(Address("127.0.0.1", 0))
    port = listener.getsockname()[1]
    metrics = Metrics(clerk, "0.1.0")
    stopping = asyncio.Event()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, verify=False) as client:
        given = Pages(clerk, metrics, client, port)
        application = public_pages(clerk, metrics, Address("127.0.0.1", port), clock=lambda: given.now)
        task = asyncio.create_task(serve(listener, application, stopping, LIMITS))
        try:
            yield given
        finally:
            stopping.set()
            await task


# --- metrics ----------------------------------------------------------------------------------------------------------


def samples(exposition: str) -> dict[str, float]:
    found = [line.rpartition(" ") for line in exposition.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in found}


async def scraped(given: Pages, accept: str = "") -> httpx.Response:
    answer = await given.client.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    return answer


async def test_the_metrics_show_the_picture() -> None:
    async with pages() as given:
        answer = await scraped(given)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = samples(answer.text)
    expected = {
        "chatglm_ha_desired_instances": 3,
        "chatglm_ha_serving_instances": 1,
        "chatglm_ha_paused": 0,
        "chatglm_ha_settled": 1,
        "chatglm_ha_problems": 1,
        "chatglm_ha_runtime_up": 1,
        "chatglm_ha_operations_running": 1,
        'chatglm_ha_health{chatglm_ha_health="yellow"}': 1,
        'chatglm_ha_health{chatglm_ha_health="green"}': 0,
        'chatglm_ha_instance_state{chatglm_ha_instance_state="serving",instance="chatglm-01"}': 1,
        'chatglm_ha_instance_state{chatglm_ha_instance_state="backoff",instance="chatglm-01"}': 0,
        'chatglm_ha_instance_state{chatglm_ha_instance_state="backoff",instance="chatglm-02"}': 1,
        'chatglm_ha_instance_routed{instance="chatglm-01"}': 1,
        'chatglm_ha_instance_routed{instance="chatglm-03"}': 0,
        'chatglm_ha_instance_restarts_total{instance="chatglm-02"}': 3,
        'chatglm_ha_instance_in_flight{instance="chatglm-01"}': 3,
        "chatglm_ha_nginx_up": 1,
        "chatglm_ha_nginx_generation": 41,
        "chatglm_ha_nginx_live_generation": 41,
        "chatglm_ha_nginx_servers": 1,
        'chatglm_ha_nginx_reloads_total{result="ok"}': 0,
        'chatglm_ha_nginx_reloads_total{result="failed"}': 0,
        "chatglm_ha_cycle_duration_seconds_count": 0,
        "chatglm_ha_last_cycle_timestamp_seconds": SNAPSHOT.cycled_wall,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert any(re.fullmatch(r'chatglm_ha_build_info\{python="3[.0-9]+",version="0.1.0"\}', name) for name in found)
    assert 'chatglm_ha_instance_in_flight{instance="chatglm-03"}' not in found, "it is not known"
    assert found["chatglm_ha_process_resident_memory_bytes"] > 1e6


async def test_every_name_begins_with_ours_and_every_family_is_explained() -> None:
    async with pages() as given:
        exposition = (await scraped(given)).text
    parsed = {family.name for family in text_string_to_metric_families(exposition)}
    assert "chatglm_ha_instance_state" in parsed
    families = re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.MULTILINE)
    helps = re.findall(r"^# HELP (\S+) \S+", exposition, re.MULTILINE)
    assert [name for name, _ in families] == helps
    assert all(name.startswith("chatglm_ha_") for name in samples(exposition))
    assert not any(name.endswith("_created") for name in samples(exposition))
    assert all(name.endswith("_total") for name, kind in families if kind == "counter")


async def test_what_is_counted_grows() -> None:
    async with pages() as given:
        for seconds in (0.0004, 0.004, 0.3):
            given.metrics.cycled(seconds)
        given.metrics.reloaded(True)
        given.metrics.reloaded(False)
        given.metrics.reloaded(True)
        found = samples((await scraped(given)).text)
    assert found['chatglm_ha_nginx_reloads_total{result="ok"}'] == 2
    assert found['chatglm_ha_nginx_reloads_total{result="failed"}'] == 1
    assert found["chatglm_ha_cycle_duration_seconds_count"] == 3
    assert found['chatglm_ha_cycle_duration_seconds_bucket{le="0.005"}'] == 2


async def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    async with pages() as given:
        answer = await scraped(given, "application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_without_nginx_and_before_the_first_cycle_there_is_less_to_show() -> None:
    async with pages(Clerk(snapshot=replace(SNAPSHOT, gateway=GatewayView(off=True)))) as given:
        assert "chatglm_ha_nginx_generation" not in (await scraped(given)).text
        given.clerk.fail = Unavailable("the first cycle has not ended")
        found = samples((await scraped(given)).text)
        assert not any("instances" in name for name in found)
        assert any("build_info" in name for name in found)


# --- health -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "status"), [(0.0, 200), (4.9, 200), (5.0, 503), (600.0, 503)])
async def test_the_daemon_calls_itself_alive_while_its_cycle_turns(age: float, status: int) -> None:
    async with pages() as given:
        given.now = SNAPSHOT.cycled_at + age
        answer = await given.client.get("/healthz")
    assert answer.status_code == status
    assert f"the last cycle ended {age:.1f} s ago" in answer.text
    assert answer.text.startswith("ok: ") == (status == 200)


async def test_a_daemon_that_starts_says_so() -> None:
    async with pages(Clerk(fail=Unavailable("the first cycle has not ended"))) as given:
        for path in ("/healthz", "/"):
            answer = await given.client.get(path)
            assert (answer.status_code, answer.text) == (503, "starting: the first cycle has not ended\n")


# --- the page and who may read it -------------------------------------------------------------------------------------


async def test_the_page_is_the_status_in_plain_text_with_strict_headers() -> None:
    async with pages() as given:
        answer = await given.client.get("/")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'self'; frame-ancestors 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.text == text(SNAPSHOT) + "\n"
    lines = answer.text.splitlines()
    assert lines[0] == "YELLOW chatglm on gpu-07: 1 of 3 serving"
    assert lines[2:4] == [
        "chatglm-02: backing off: exited 1, try 4 of 5 in 40 s",
        "    chatglm-hactl logs chatglm-02 --last-failure",
    ]
    assert [line.split()[:4] for line in lines[5:]] == [
        ["NAME", "STATE", "COLOUR", "ROUTED"],
        ["chatglm-01", "serving", "green", "yes"],
        ["chatglm-02", "backoff", "red", "no"],
        ["chatglm-03", "loading", "yellow", "no"],
    ]


def test_the_page_says_what_holds_the_daemon_and_controls_no_terminal() -> None:
    held = replace(
        SNAPSHOT,
        wants=Wants(3, pause=Pause("alice (uid 1000)", NOW)),
        runtime=RuntimeView(trouble="no answer in 5 s"),
        instances=(replace(SERVING, state=State.SUSPECT, reason="evil \x1b[2J\nreason"),),
    )
    shown = text(held)
    assert "PAUSED by alice (uid 1000)" in shown
    assert "STALE dockerd: no answer in 5 s" in shown
    assert "evil  [2J reason" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_can_be_changed_here(method: str) -> None:
    async with pages() as given:
        for path in ("/", "/metrics", "/healthz"):
            answer = await given.client.request(method, path, content=b"x=1")
            assert (answer.status_code, answer.text) == (405, "this server is read only: GET\n")
        missing = await given.client.get("/v1/status")
        assert (missing.status_code, missing.text) == (404, "there is nothing at /v1/status\n")
        assert (await given.client.head("/healthz")).status_code == 200


async def test_a_web_page_elsewhere_cannot_read_it_by_a_name_of_its_own() -> None:
    async with pages() as given:
        answer = await given.client.get("/", headers={"Host": "evil.example"})
        assert answer.status_code == 421
        assert "evil.example" in answer.text
        assert f"127.0.0.1:{given.port}" in answer.text
        assert (await given.client.get("/", headers={"Host": "localhost:9180"})).status_code == 200


@pytest.mark.parametrize(
    ("host", "listen", "ours"),
    [
        ("127.0.0.1:9180", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("LOCALHOST:9180", "127.0.0.1", True),
        ("[::1]:9180", "127.0.0.1", True),
        ("", "127.0.0.1", True),
        ("192.168.1.10:9180", "127.0.0.1", False),
        ("evil.example", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("127.0.0.1.evil.example:9180", "127.0.0.1", False),
        ("evil.example:9180", "0.0.0.0", False),
        ("192.168.1.10:9180", "0.0.0.0", True),
        ("192.168.1.10", "192.168.1.10", True),
        ("gpu-07.example:9180", "gpu-07.example", True),
        (f"{os.uname().nodename}:9180", "0.0.0.0", True),
        (f"{os.uname().nodename}:9180", "127.0.0.1", False),
        ("[", "127.0.0.1", False),
        (":80", "127.0.0.1", False),
    ],
)
def test_a_host_is_ours_by_address_or_by_our_own_name(host: str, listen: str, ours: bool) -> None:
    assert is_ours(host, Address(listen, 9180)) is ours


async def test_a_defect_is_plain_words_and_a_line_with_bug() -> None:
    with capture_logs() as logged:
        async with pages(Clerk(fail=ZeroDivisionError("secret"))) as given:
            for path in ("/", "/healthz", "/metrics"):
                answer = await given.client.get(path)
                assert answer.status_code == 500
                assert "secret" not in answer.text
                assert "BUG" in answer.text
    assert [line["event"] for line in logged] == ["BUG: a request failed"] * 3


def test_an_address_that_is_taken_says_who_to_look_for() -> None:
    with bind(Address("127.0.0.1", 0)) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(CannotListen) as refusal:
            bind(Address("127.0.0.1", port))
    words = f"http.listen: cannot listen on 127.0.0.1:{port}: Address already in use; ss -ltnp 'sport = :{port}'"
    assert str(refusal.value) == words


def test_an_address_that_is_none_of_ours_or_no_address_is_explained() -> None:
    with pytest.raises(CannotListen, match=r"cannot listen on 203\.0\.113\.1:9180: Cannot assign requested address"):
        bind(Address("203.0.113.1", 9180))
    with pytest.raises(CannotListen, match=r"http\.listen: no-such-host\.invalid:9180: .*; getent hosts"):
        bind(Address("no-such-host.invalid", 9180))

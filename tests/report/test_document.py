"""The documents: exactly the promised keys, times and numbers that any reader can read, and no invention."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasupervisor.model import (
    Address,
    Cause,
    GatewayView,
    Leaving,
    Operation,
    OperationState,
    Pause,
    RuntimeView,
    State,
    TrafficView,
    Wants,
)
from hasupervisor.report import document
from hasupervisor.report.answers import encode
from hasupervisor.report.desk import DryRun
from hasupervisor.report.snapshot import Snapshot
from tests.report import schema
from tests.report.example import BACKING_OFF, LOADING, NOW, OPERATION, SERVING, SNAPSHOT, WALL, judged
from tests.report.schema import conforms


@dataclass(frozen=True)
class Line:
    id: int = 812
    at_wall: float = WALL
    subject: str = "chatglm-02"
    event: str = "state"
    sentence: str = "serving -> backoff: killed by signal 9"
    by: str = "chatglm-ha"


PAUSED = replace(SNAPSHOT, wants=Wants(3, "manual", Pause("alice (uid 1000)", WALL - 60, "driver", WALL + 540)))
DOCKERD_HUNG = replace(
    SNAPSHOT, runtime=RuntimeView(listed_at=NOW - 12.11, trouble="no answer in 5 s (3rd time)", trouble_since=NOW - 10)
)
NEVER_LISTED = replace(SNAPSHOT, settled=False, runtime=RuntimeView(trouble="cannot reach dockerd"))
NGINX_OFF = replace(SNAPSHOT, gateway=GatewayView(off=True))
NGINX_BROKEN = replace(SNAPSHOT, gateway=GatewayView(ok=False, reason="unknown directive", generation=3))
EMPTY = replace(SNAPSHOT, instances=(), problems=(), operations=(), wants=Wants(0))


@pytest.mark.parametrize(
    "snapshot",
    [SNAPSHOT, PAUSED, DOCKERD_HUNG, NEVER_LISTED, NGINX_OFF, NGINX_BROKEN, EMPTY],
    ids=["plain", "paused", "dockerd hung", "never listed", "nginx off", "nginx broken", "empty"],
)
def test_the_status_has_exactly_the_promised_keys_and_types(snapshot: Snapshot) -> None:
    assert conforms(document.status(snapshot), schema.STATUS)


@pytest.mark.parametrize("state", list(State))
def test_an_instance_in_any_state_has_the_promised_shape_and_a_next(state: State) -> None:
    one = judged("chatglm-01", state)
    snapshot = replace(SNAPSHOT, instances=(one,))
    assert conforms(document.instance(one, snapshot), schema.INSTANCE)
    explained = document.explanation(one, snapshot, [Line()])
    assert conforms(explained, schema.EXPLANATION)
    assert explained["next"]


def test_the_serving_instance_shows_what_the_contract_shows() -> None:
    assert document.instance(SERVING, SNAPSHOT) == {
        "name": "chatglm-01",
        "state": "serving",
        "colour": "green",
        "verdict": "serving",
        "reason": "answers, 3 in flight, progressing",
        "since": "2026-11-24T03:01:11.123Z",
        "endpoint": "127.0.0.1:8000",
        "address": "172.17.0.2:8000",
        "runtime_id": "3f1c9a" * 10,
        "pid": 4711,
        "image": "chatglm-service:v1.1.0",
        "gpus": ["GPU-1"],
        "routed": True,
        "in_flight": 3,
        "queued": 2,
        "restarts": 0,
        "attempts": {"failed": 0, "of": 5},
        "retry_in_s": None,
        "last_failure": None,
        "qps": 4.2,
        "latency_ms": {"mean": 900.0, "p50": 800.0, "p95": 1800.0},
        "error_rate": 0.0,
    }


def test_one_that_does_not_run_keeps_its_endpoint_and_says_when_it_is_tried_again() -> None:
    shown = document.instance(BACKING_OFF, SNAPSHOT)
    assert shown["endpoint"] == "127.0.0.1:8001"
    assert (shown["runtime_id"], shown["pid"], shown["image"], shown["routed"]) == (None, None, None, False)
    assert shown["attempts"] == {"failed": 3, "of": 5}
    assert shown["retry_in_s"] == 40.0
    assert shown["last_failure"] == {"at": "2026-11-24T03:02:01.123Z", "reason": "exited 1"}


def test_what_is_not_known_is_null_and_not_zero() -> None:
    shown = document.instance(LOADING, SNAPSHOT)
    assert (shown["in_flight"], shown["queued"]) == (None, None)
    assert shown["latency_ms"] == {"mean": None, "p50": None, "p95": None}
    not_finite = replace(SERVING, traffic=TrafficView(qps=float("nan"), mean_ms=float("inf")))
    assert document.instance(not_finite, SNAPSHOT)["qps"] is None


def test_routed_is_what_the_live_generation_says_and_without_nginx_the_decision() -> None:
    assert document.is_routed(SERVING, SNAPSHOT)
    elsewhere = replace(SNAPSHOT, gateway=replace(SNAPSHOT.gateway, live=frozenset({Address("172.17.0.9", 8000)})))
    assert not document.is_routed(SERVING, elsewhere)
    assert not document.is_routed(SERVING, NGINX_OFF)
    joining = replace(SNAPSHOT, gateway=replace(SNAPSHOT.gateway, joining=SNAPSHOT.gateway.live))
    wanted = replace(SERVING, record=replace(SERVING.record, in_rotation=True))
    assert not document.is_routed(wanted, joining), "not every worker is proven to know it"
    assert document.is_routed(SERVING, joining), "it leaves, and not every worker is proven to have let go of it"
    assert document.is_routed(wanted, NGINX_OFF)
    assert not document.is_routed(wanted, elsewhere), "the wish alone sends nobody there"


def test_serving_counts_those_that_serve() -> None:
    assert (document.status(SNAPSHOT)["serving"], document.status(SNAPSHOT)["desired"]) == (1, 3)


def test_a_pause_and_a_hung_runtime_are_shown() -> None:
    assert document.status(PAUSED)["paused"] == {
        "by": "alice (uid 1000)",
        "since": "2026-11-24T03:01:11.123Z",
        "until": "2026-11-24T03:11:11.123Z",
        "reason": "driver",
    }
    assert document.status(DOCKERD_HUNG)["stale"] == {
        "what": "dockerd",
        "sentence": "no answer in 5 s (3rd time)",
        "age_s": 12.1,
    }
    assert document.status(NEVER_LISTED)["stale"]["age_s"] is None


def test_one_instance_can_be_asked_for_alone() -> None:
    alone = document.status(SNAPSHOT, only="chatglm-02")
    assert [instance["name"] for instance in alone["instances"]] == ["chatglm-02"]
    assert alone["serving"] == 1, "the rest is about the whole service"


def _leaving(state: State = State.DRAINING, unrouted_since: float | None = NOW - 20, patient: bool = False) -> Snapshot:
    one = judged("chatglm-01", state)
    ends_at = unrouted_since + 300.0 if unrouted_since is not None else None
    leaving = Leaving(
        Cause.RESTART, "restarted by alice", NOW - 30, unrouted_since=unrouted_since, patient=patient, ends_at=ends_at
    )
    return replace(SNAPSHOT, instances=(replace(one, record=replace(one.record, leaving=leaving)),))


def _with(state: State, snapshot: Snapshot = SNAPSHOT, **record: object) -> Snapshot:
    one = judged("chatglm-01", state)
    changed = replace(one, record=replace(one.record, **record))  # type: ignore[arg-type]
    return replace(snapshot, instances=(changed,))


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (replace(SNAPSHOT, instances=(SERVING,)), "nothing; it serves"),
        (
            replace(SNAPSHOT, instances=(BACKING_OFF,)),
            "tries again in 40 s; at once with: chatglm-hactl restart chatglm-02",
        ),
        (
            _with(State.PARKED, parked_at=NOW - 60),
            "tries again in 29 min; at once with: chatglm-hactl restart chatglm-01",
        ),
        (
            _with(State.PARKED, replace(SNAPSHOT, policy=replace(SNAPSHOT.policy, park_retry=0)), parked_at=NOW),
            "nothing by itself; chatglm-hactl restart chatglm-01 tries again",
        ),
        (_with(State.PARKED, stuck="cannot be ended"), "nothing, until dockerd lets go of it"),
        (
            _with(State.PARKED, replace(SNAPSHOT, wants=Wants(3, drained=frozenset({"chatglm-01"})))),
            "stays out until: chatglm-hactl undrain chatglm-01",
        ),
        (_with(State.BACKOFF, PAUSED, retry_at=NOW), "nothing while the service is paused: chatglm-hactl resume"),
        (_with(State.BACKOFF, DOCKERD_HUNG, retry_at=NOW), "waits for dockerd"),
        (_with(State.BACKOFF, retry_at=NOW), "is started as soon as it may: one at a time"),
        (replace(SNAPSHOT, instances=(LOADING,)), "takes traffic once it serves; has 9 min more for that"),
        (_leaving(), "is stopped once nothing is in flight, at the latest in 5 min"),
        (
            _leaving(patient=True),
            "is stopped once nothing is in flight, or when nothing has moved for 5 min; "
            "sooner with: chatglm-hactl scale N",
        ),
        (_leaving(unrouted_since=None), "is stopped once nginx has let go of it and nothing is in flight"),
        (_leaving(State.STOPPING), "is stopped"),
    ],
)
def test_an_explanation_says_what_comes_next(snapshot: Snapshot, expected: str) -> None:
    assert document.explanation(snapshot.instances[0], snapshot, [])["next"] == expected


def test_an_explanation_has_the_last_words() -> None:
    explained = document.explanation(BACKING_OFF, SNAPSHOT, [Line()])
    assert explained["last_failure"] == {
        "at": "2026-11-24T03:02:01.123Z",
        "reason": "exited 1",
        "tail": "loading …\nout of memory\n",
    }
    assert explained["evidence"] == ["the runtime says it is backoff"]
    assert explained["history"] == [
        {
            "id": 812,
            "at": "2026-11-24T03:02:11.123Z",
            "subject": "chatglm-02",
            "event": "state",
            "sentence": "serving -> backoff: killed by signal 9",
            "by": "chatglm-ha",
        }
    ]


@pytest.mark.parametrize(
    "operation", [OPERATION, replace(OPERATION, state=OperationState.FAILED, ended_wall=WALL, targets=())]
)
def test_an_operation_has_the_promised_shape(operation: Operation) -> None:
    assert conforms(document.operation(operation), schema.OPERATION)


def test_a_dry_run_has_the_promised_shape() -> None:
    assert conforms(document.dry_run(DryRun(2, 4, ("start chatglm-03",), None)), schema.DRY_RUN)


@given(st.floats())
def test_any_time_can_be_written_and_read_back(wall: float) -> None:
    written = document.timestamp(wall)
    assert schema.TIME.fullmatch(written)
    read = datetime.fromisoformat(written).timestamp()
    if 0 <= wall <= 2e11:
        assert abs(read - wall) < 0.0011


@given(st.floats(), st.floats(), st.text(st.characters()), st.integers())
def test_whatever_the_numbers_and_words_are_the_status_is_json(
    number: float, other: float, words: str, count: int
) -> None:
    traffic = TrafficView(in_flight=count, qps=number, mean_ms=other, p50_ms=number, p95_ms=other, error_rate=number)
    one = replace(SERVING, traffic=traffic, reason=words)
    shown = json.loads(encode(document.status(replace(SNAPSHOT, instances=(one,), traffic=traffic, summary=words))))
    assert shown["instances"][0]["name"] == "chatglm-01"

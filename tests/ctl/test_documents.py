"""The stand-in's documents have the keys and the kinds of values that the daemon's own documents have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hasupervisor.memory import Entry
from hasupervisor.model import (
    Address,
    Colour,
    Fact,
    Failure,
    GatewayView,
    Judged,
    Operation,
    OperationKind,
    Pause,
    Phase,
    Policy,
    Problem,
    Record,
    RuntimeView,
    State,
    TrafficView,
    Verdict,
    VerdictKind,
    Wants,
)
from hasupervisor.model.gpu import CardView
from hasupervisor.report import document, gpus
from hasupervisor.report.desk import DryRun
from hasupervisor.report.snapshot import AutoscaleView, Snapshot
from tests.ctl import documents
from tests.report import cards

JUDGED = Judged(
    record=Record(
        "chatglm-02", 8001, failures=(1.0,), last_failure=Failure(1.0, 1.0, "exited 1", "tail"), retry_at=9.0
    ),
    verdict=Verdict(VerdictKind.DEAD, "exited 1"),
    state=State.BACKOFF,
    colour=Colour.RED,
    reason="exited 1",
    fact=Fact("chatglm-02", "3f1c9a", Phase.EXITED, Address("127.0.0.1", 8001), Address("172.17.0.3", 8000)),
    traffic=TrafficView(mean_ms=1.0, p50_ms=1.0, p95_ms=1.0),
    explain=("its process has ended",),
)
ENTRY = Entry(812, 1.0, "chatglm-02", "state", "serving -> backoff", "chatglm-ha")
SNAPSHOT = Snapshot(
    service="chatglm",
    host="gpu-07",
    version="0.1.0",
    started_wall=1.0,
    now=5.0,
    now_wall=5.0,
    cycled_at=5.0,
    cycled_wall=5.0,
    settled=True,
    health=Colour.YELLOW,
    summary="0 of 1 serving",
    problems=(Problem("chatglm-02", "backing off", "chatglm-hactl logs chatglm-02 --last-failure"),),
    wants=Wants(1, pause=Pause("alice (uid 1000)", 1.0, "new driver", 9.0)),
    policy=Policy("chatglm", range(8000, 8100), 1, 6),
    runtime_name="dockerd",
    runtime=RuntimeView(listed_at=1.0, trouble="no answer in 5 s (3rd time)", trouble_since=1.0),
    gateway=GatewayView(ok=False, reason="unknown directive", generation=42, live_generation=41, servers=1),
    autoscale=AutoscaleView("thresholds", "holding 1"),
    bind="127.0.0.1",
    instances=(JUDGED,),
    traffic=TrafficView(mean_ms=1.0, p50_ms=1.0, p95_ms=1.0),
    gpus=replace(cards.GPUS, cards=(replace(cards.SERVING, view=CardView("GPU-6a1f", 0, cards.fact(0, seen_at=5.0))),)),
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (documents.troubled_status(), document.status(SNAPSHOT)),
        (documents.fallen_instance(2), document.instance(JUDGED, SNAPSHOT)),
        (documents.EXPLANATION, document.explanation(JUDGED, SNAPSHOT, [ENTRY])),
        (documents.HISTORY[0], document.entry(ENTRY)),
        (
            documents.operation("3 of 4 serving"),
            document.operation(
                Operation("op-7", OperationKind.SCALE, "alice (uid 1000)", 1.0, 1.0, ("chatglm-04",), 4)
            ),
        ),
        (documents.gpus(documents.gpu(0)), gpus.whole(SNAPSHOT)),
        (documents.DRY_RUN, document.dry_run(DryRun(2, 4, ("start chatglm-03",), None))),
        (documents.problem(409, "no", hint="x", problems=("y",)), document.problem("Refused", 409, "no", "x", ["y"])),
    ],
    ids=["status", "an instance", "explanation", "history", "operation", "gpus", "dry run", "problem"],
)
def test_the_stand_in_says_what_the_daemon_says(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert not list(differences(ours, theirs, ""))


def differences(ours: Any, theirs: Any, where: str) -> Any:
    """Keys that only one has, and values of another kind; null fits everything."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        yield from (f"{where}.{key}" for key in ours.keys() ^ theirs.keys())
        for key in ours.keys() & theirs.keys():
            yield from differences(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        if ours and theirs:
            yield from differences(ours[0], theirs[0], f"{where}[0]")
    elif ours is not None and theirs is not None and _kind(ours) is not _kind(theirs):
        yield f"{where}: {ours!r} and {theirs!r}"


def _kind(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)

"""A host with three instances, one of each colour, as the daemon would picture it."""

from __future__ import annotations

from dataclasses import replace

from hasupervisor.decide.autoscale.facts import Opinion, Sample
from hasupervisor.model import (
    Address,
    Colour,
    Fact,
    Failure,
    GatewayView,
    Judged,
    Operation,
    OperationKind,
    OperationState,
    Phase,
    Policy,
    ProbeView,
    Problem,
    Progress,
    Record,
    RuntimeView,
    Said,
    State,
    TrafficView,
    Verdict,
    VerdictKind,
    Wants,
)
from hasupervisor.report.snapshot import AutoscaleView, Snapshot

NOW = 10_000.0
WALL = 1_795_489_331.123  # 2026-11-24T03:02:11.123Z

_ADDRESS = Address("172.17.0.2", 8000)


def judged(name: str, state: State, **changes: object) -> Judged:
    """One instance in that state, with all that usually goes with it."""
    colours = {State.SERVING: Colour.GREEN, State.BACKOFF: Colour.RED, State.PARKED: Colour.RED}
    number = int(name[-2:])
    whole = Judged(
        record=Record(name, 7999 + number, state=state, since=NOW - 60, since_wall=WALL - 60),
        verdict=Verdict(VerdictKind.SERVING if state is State.SERVING else VerdictKind.LOADING, "so it seems"),
        state=state,
        colour=colours.get(state, Colour.YELLOW),
        reason=f"is {state}",
        explain=(f"the runtime says it is {state}",),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


SERVING = judged(
    "chatglm-01",
    State.SERVING,
    reason="answers, 3 in flight, progressing",
    fact=Fact(
        name="chatglm-01",
        runtime_id="3f1c9a" * 10,
        phase=Phase.RUNNING,
        endpoint=Address("127.0.0.1", 8000),
        address=_ADDRESS,
        started_at=NOW - 60,
        pid=4711,
        image="chatglm-service:v1.1.0",
        gpus=("GPU-1",),
    ),
    probe=ProbeView("3f1c9a" * 10, said=Said.HEALTHY, progress=Progress(in_flight=3, queued=2)),
    traffic=TrafficView(in_flight=3, qps=4.2, mean_ms=900.04, p50_ms=800.0, p95_ms=1800.0, error_rate=0.0),
)

BACKING_OFF = judged(
    "chatglm-02",
    State.BACKOFF,
    reason="backing off: exited 1, try 4 of 5 in 40 s",
    verdict=Verdict(VerdictKind.DEAD, "exited 1"),
    record=Record(
        "chatglm-02",
        8001,
        restarts=3,
        failures=(NOW - 30, NOW - 20, NOW - 10),
        last_failure=Failure(NOW - 10, WALL - 10, "exited 1", "loading …\nout of memory\n"),
        retry_at=NOW + 40,
        state=State.BACKOFF,
        since=NOW - 10,
        since_wall=WALL - 10,
    ),
)

LOADING = judged(
    "chatglm-03",
    State.LOADING,
    fact=replace(SERVING.fact, name="chatglm-03", endpoint=Address("127.0.0.1", 8002), address=Address("h", 8002))
    if SERVING.fact
    else None,
    traffic=TrafficView(in_flight_known=False),
)

OPERATION = Operation(
    "op-7",
    OperationKind.SCALE,
    "alice (uid 1000)",
    started=NOW - 5,
    started_wall=WALL - 5,
    targets=("chatglm-03",),
    total=3,
    state=OperationState.RUNNING,
    sentence="1 of 3 serving; chatglm-03: loads",
)

SNAPSHOT = Snapshot(
    service="chatglm",
    host="gpu-07",
    version="0.1.0",
    started_wall=WALL - 3600,
    now=NOW,
    now_wall=WALL,
    cycled_at=NOW - 0.2,
    cycled_wall=WALL - 0.2,
    settled=True,
    health=Colour.YELLOW,
    summary="1 of 3 serving",
    problems=(Problem("chatglm-02", BACKING_OFF.reason, "chatglm-hactl logs chatglm-02 --last-failure"),),
    wants=Wants(desired=3),
    policy=Policy(service="chatglm", ports=range(8000, 8100), min=2, max=6),
    runtime_name="dockerd",
    runtime=RuntimeView(listed_at=NOW - 1),
    gateway=GatewayView(generation=41, live_generation=41, live=frozenset({_ADDRESS}), servers=1),
    autoscale=AutoscaleView(
        "thresholds",
        "holding 3: the means are between the thresholds",
        {"qps": 8.1234},
        opinions={
            "thresholds": Opinion(3, "holding 3: the means are between the thresholds", {"qps": 8.1234}),
            "concurrency": Opinion(3, "holding 3: 4 would be wanted", {"needed": 4.0}, "service.max is 3"),
        },
        slots=8.0,
        slots_how="assumed",
        windows={"sample": 10.0, "evaluate": 30.0, "up": 60.0, "down": 120.0},
        samples=7,
        latest=Sample(at=NOW - 4.0, serving=3, desired=3, in_flight=5.0, qps=8.1),
        age_s=4.0,
    ),
    bind="127.0.0.1",
    instances=(SERVING, BACKING_OFF, LOADING),
    traffic=TrafficView(in_flight=3, qps=4.2, mean_ms=900.0, p50_ms=800.0, p95_ms=1800.0),
    operations=(OPERATION,),
)

"""Pure functions from the picture to the documents that people and machines read (CONTRACT 4, docs/control-api.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from hasupervisor.decide.gpu.ledger import WAITS
from hasupervisor.model import Address, Judged, Operation, Pause, Record, State, TrafficView
from hasupervisor.report import gpus
from hasupervisor.report.desk import DrillPlan, DryRun, Entry
from hasupervisor.report.snapshot import Snapshot
from hasupervisor.report.times import timestamp as timestamp

SCHEMA = 1

Document = dict[str, Any]


def status(snapshot: Snapshot, only: str | None = None) -> Document:
    """The status document; with `only` of that one instance, everything else the same."""
    serving = sum(1 for judged in snapshot.instances if judged.state is State.SERVING)
    shown = [judged for judged in snapshot.instances if only is None or judged.record.name == only]
    return {
        "schema": SCHEMA,
        "service": snapshot.service,
        "host": snapshot.host,
        "version": snapshot.version,
        "now": timestamp(snapshot.now_wall),
        "health": snapshot.health.value,
        "summary": snapshot.summary,
        "desired": snapshot.wants.desired,
        "serving": serving,
        "mode": snapshot.wants.mode,
        "paused": paused(snapshot.wants.pause),
        "settled": snapshot.settled,
        "stale": _stale(snapshot),
        "problems": [{"subject": p.subject, "sentence": p.sentence, "hint": p.hint} for p in snapshot.problems],
        "instances": [instance(judged, snapshot) for judged in shown],
        "gpus": gpus.cards(snapshot.gpus, snapshot.now),
        "gpu_driver": gpus.driver(snapshot.gpus),
        "gpu_room": gpus.room(snapshot.gpus),
        "nginx": _nginx(snapshot),
        "autoscale": autoscale(snapshot),
        "traffic": {**_flow(snapshot.traffic), "in_flight": _in_flight(snapshot.traffic)},
    }


def instance(judged: Judged, snapshot: Snapshot) -> Document:
    """One instance of the status document. A number that is not known is null."""
    record, fact, traffic = judged.record, judged.fact, judged.traffic
    progress = judged.probe.progress if judged.probe is not None else None
    endpoint = fact.endpoint if fact is not None else Address(snapshot.bind, record.port)
    return {
        "name": record.name,
        "state": judged.state.value,
        "colour": judged.colour.value,
        "verdict": judged.verdict.kind.value,
        "reason": judged.reason,
        "since": timestamp(record.since_wall),
        "endpoint": str(endpoint),
        "address": str(fact.address) if fact is not None else None,
        "runtime_id": fact.runtime_id if fact is not None else None,
        "pid": fact.pid if fact is not None else None,
        "image": (fact.image or None) if fact is not None else None,
        "gpus": list(fact.gpus) if fact is not None else [],
        "routed": is_routed(judged, snapshot),
        "in_flight": _in_flight(traffic),
        "queued": progress.queued if progress is not None else None,
        "restarts": record.restarts,
        "attempts": {"failed": len(record.failures), "of": snapshot.policy.attempts},
        "retry_in_s": retry_in(record, snapshot),
        "last_failure": _failure(record),
        **_flow(traffic),
    }


def is_routed(judged: Judged, snapshot: Snapshot) -> bool:
    """Whether it gets requests: not before that is proven, and until it is proven that it gets none any more.

    Without nginx the decision is the fact.
    """
    gateway, wanted = snapshot.gateway, judged.record.in_rotation
    if gateway.off:
        return wanted
    return judged.fact is not None and judged.fact.address in (
        gateway.live - gateway.joining if wanted else gateway.live
    )


def retry_in(record: Record, snapshot: Snapshot) -> float | None:
    """Seconds until it is tried again by itself, or None where that is not what it waits for."""
    if record.retry_at is not None:
        return round(max(0.0, record.retry_at - snapshot.now), 1)
    if record.parked_at is not None and snapshot.policy.park_retry > 0:
        return round(max(0.0, record.parked_at + snapshot.policy.park_retry - snapshot.now), 1)
    return None


def paused(pause: Pause | None) -> Document | None:
    if pause is None:
        return None
    return {
        "by": pause.by,
        "since": timestamp(pause.since_wall),
        "until": timestamp(pause.until_wall) if pause.until_wall is not None else None,
        "reason": pause.reason,
    }


def autoscale(snapshot: Snapshot) -> Document:
    view = snapshot.autoscale
    return {
        "policy": view.policy,
        "desired": snapshot.wants.desired,
        "sentence": view.sentence,
        "inputs": {name: _rounded(value, 3) for name, value in view.inputs.items()},
    }


def explanation(judged: Judged, snapshot: Snapshot, history: Iterable[Entry]) -> Document:
    """Why one instance is as it is, and what comes next."""
    record = judged.record
    failure = record.last_failure
    return {
        "name": record.name,
        "state": judged.state.value,
        "colour": judged.colour.value,
        "verdict": judged.verdict.kind.value,
        "reason": judged.reason,
        "since": timestamp(record.since_wall),
        "evidence": list(judged.explain),
        "next": what_next(judged, snapshot),
        "last_failure": {**(_failure(record) or {}), "tail": failure.tail} if failure is not None else None,
        "history": [entry(line) for line in history],
    }


def what_next(judged: Judged, snapshot: Snapshot) -> str:
    """What the daemon does next with it, or what it waits for."""
    record, policy = judged.record, snapshot.policy
    match judged.state:
        case State.SERVING:
            return "nothing; it serves"
        case State.SUSPECT:
            return "comes back once it answers its probes; is restarted once it is proven dead, sick or hung"
        case State.STARTING | State.LOADING if judged.fact is not None and judged.fact.started_at is not None:
            left = judged.fact.started_at + policy.start_timeout - snapshot.now
            return f"takes traffic once it serves; has {_interval(left)} more for that"
        case State.DRAINING if record.leaving is not None and record.leaving.ends_at is not None:
            left = record.leaving.ends_at - snapshot.now
            if record.leaving.patient:
                idle = f"or when nothing has moved for {_interval(left)}"
                return f"is stopped once nothing is in flight, {idle}; sooner with: chatglm-hactl scale N"
            return f"is stopped once nothing is in flight, at the latest in {_interval(left)}"
        case State.DRAINING:
            return "is stopped once nginx has let go of it and nothing is in flight"
        case State.STOPPING:
            return "is stopped"
        case _:
            return _next_start(judged, snapshot)


def _next_start(judged: Judged, snapshot: Snapshot) -> str:
    """Of one that does not run: when it is started, or what that waits for."""
    record, seconds = judged.record, retry_in(judged.record, snapshot)
    if record.stuck is not None:
        return f"nothing, until {snapshot.runtime_name} lets go of it"
    if record.name in snapshot.wants.drained:
        return f"stays out until: chatglm-hactl undrain {record.name}"
    if snapshot.runtime.trouble is not None:
        return f"waits for {snapshot.runtime_name}"
    if snapshot.wants.pause is not None:
        return "nothing while the service is paused: chatglm-hactl resume"
    if judged.reason.startswith(WAITS):
        return "is started once a GPU has room for it: chatglm-hactl gpu list"
    if seconds:
        return f"tries again in {_interval(seconds)}; at once with: chatglm-hactl restart {record.name}"
    if judged.state is State.PARKED and seconds is None:
        return f"nothing by itself; chatglm-hactl restart {record.name} tries again"
    return "is started as soon as it may: one at a time" if snapshot.policy.one_at_a_time else "is started"


def operation(operation: Operation) -> Document:
    return {
        "id": operation.id,
        "kind": operation.kind.value,
        "by": operation.by,
        "started": timestamp(operation.started_wall),
        "ended": timestamp(operation.ended_wall) if operation.ended_wall is not None else None,
        "state": operation.state.value,
        "sentence": operation.sentence,
        "targets": list(operation.targets),
        "total": operation.total,
    }


def entry(line: Entry) -> Document:
    return {
        "id": line.id,
        "at": timestamp(line.at_wall),
        "subject": line.subject,
        "event": line.event,
        "sentence": line.sentence,
        "by": line.by,
    }


def dry_run(plan: DryRun) -> Document:
    return {"desired": plan.desired, "wanted": plan.wanted, "steps": list(plan.steps), "refused": plan.refused}


def drill_plan(plan: DrillPlan) -> Document:
    return {
        "fault": plan.fault,
        "name": plan.name,
        "rate": plan.rate,
        "seconds": plan.seconds,
        "what": plan.what,
        "refused": "it could hurt" if plan.objections else None,
        "problems": list(plan.objections),
    }


def problem(title: str, status: int, detail: str, hint: str | None, problems: Sequence[str] = ()) -> Document:
    """RFC 9457 with our two members: the next command, and a list of sentences."""
    return {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "hint": hint,
        "problems": list(problems),
    }


def _stale(snapshot: Snapshot) -> Document | None:
    """The part of the picture that is old: the runtime's list, since it cannot be asked."""
    runtime = snapshot.runtime
    if runtime.trouble is None:
        return None
    age = snapshot.now - runtime.listed_at if runtime.listed_at is not None else None
    return {"what": snapshot.runtime_name, "sentence": runtime.trouble, "age_s": _rounded(age, 1)}


def _nginx(snapshot: Snapshot) -> Document | None:
    gateway = snapshot.gateway
    if gateway.off:
        return None
    return {
        "ok": gateway.ok,
        "generation": gateway.generation,
        "live_generation": gateway.live_generation,
        "servers": gateway.servers,
        "old_workers": gateway.old_workers,
        "held": gateway.held,
        "reason": gateway.reason,
    }


def _failure(record: Record) -> Document | None:
    failure = record.last_failure
    return None if failure is None else {"at": timestamp(failure.at_wall), "reason": failure.reason}


def _flow(traffic: TrafficView) -> Document:
    return {
        "qps": _rounded(traffic.qps, 2),
        "latency_ms": {
            "mean": _rounded(traffic.mean_ms, 1),
            "p50": _rounded(traffic.p50_ms, 1),
            "p95": _rounded(traffic.p95_ms, 1),
        },
        "error_rate": _rounded(traffic.error_rate, 4),
    }


def _in_flight(traffic: TrafficView) -> int | None:
    return traffic.in_flight if traffic.in_flight_known else None


def _rounded(value: float | None, digits: int) -> float | None:
    """JSON has no NaN and no infinity: a number that is none is not known."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _interval(seconds: float) -> str:
    seconds = max(0.0, seconds)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

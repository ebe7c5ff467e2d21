"""How long an instance on its way out may finish what users have in it.

Out of nginx first, then nothing in flight, then SIGTERM. For how long it may go on with what is in flight depends on
who wants it out:

- a person (`restart`, `drain`, `scale`): `drain.timeout` from when nginx has let go of it;
- healing: while its work moves, `drain.timeout` as well, for a server that calls itself unhealthy may still finish a
  stream; where nothing has moved for `health.hang_after`, no longer than that;
- the autoscaler, whom nothing hurries: without an end while its work moves. Where nothing has moved for `drain.timeout`
  (or `hang_after`, if that is longer) somebody merely keeps a connection open, and that is not waited for.
"""

from __future__ import annotations

from dataclasses import replace

from hasupervisor.decide.gate import Gate
from hasupervisor.decide.health import progressed_at
from hasupervisor.decide.load import own_count
from hasupervisor.model import Cause, Leaving, ProbeView, Seen, TrafficView, Verdict, VerdictKind

QUIET = 0.1
"""Seconds without anything in flight, after nginx has let go, before the SIGTERM: a connection that a retired worker
was just making is seen by then."""

_FAILED = (VerdictKind.HUNG, VerdictKind.SICK, VerdictKind.DEAD)
_GOOD = (VerdictKind.SERVING, VerdictKind.BUSY)


def work_in(seen: Seen, leaving: Leaving, gate: Gate) -> int | None:
    """Requests in flight; None: nobody knows, it may be busy. What was counted before nginx had let go of it is old.

    Where connections cannot be seen its own count is believed, if it was asked for after nginx had let go of it.
    """
    traffic, probe, let_go = seen.traffic, seen.probe, leaving.unrouted_since
    counted_before = traffic.in_flight_at is not None and let_go is not None and traffic.in_flight_at < let_go
    if traffic.in_flight_known and not counted_before:
        return traffic.in_flight
    if probe is None or probe.asked_at is None or let_go is None:
        return None
    told = own_count(probe, gate.policy, gate.now)
    return int(told) if told is not None and probe.asked_at > let_go else None


def wait(leaving: Leaving, gate: Gate, *, quiet: bool) -> Leaving:
    """Since when nginx has let go of it, and since when nothing is in flight either."""
    unrouted = (leaving.unrouted_since if leaving.unrouted_since is not None else gate.now) if gate.unrouted else None
    since = (leaving.quiet_since if leaving.quiet_since is not None else gate.now) if quiet else None
    return replace(leaving, unrouted_since=unrouted, quiet_since=since)


def waited_since(leaving: Leaving, verdict: Verdict, gate: Gate) -> float | None:
    """Since when it is waited for; None: nginx still sends requests to one that can serve, that is awaited first."""
    failed = verdict.kind in _FAILED and gate.no_disturbance is None
    return leaving.since if failed else leaving.unrouted_since


def ends_at(leaving: Leaving, seen: Seen, verdict: Verdict, gate: Gate) -> float | None:
    """When it is ended at the latest, if nothing moves from now on; None: that is not counted yet."""
    since = waited_since(leaving, verdict, gate)
    if since is None:
        return None
    timeout, hang_after = gate.policy.drain_timeout, gate.policy.hang_after
    moved = max(since, _moved_at(seen.probe, seen.traffic))
    if leaving.cause is Cause.HEAL:
        return min(since + timeout, moved + min(timeout, hang_after))
    return moved + max(timeout, hang_after) if leaving.patient else since + timeout


def _moved_at(probe: ProbeView | None, traffic: TrafficView) -> float:
    """When work in it was last seen to move. A report of nothing to do is no work that moves."""
    progress = probe.progress if probe is not None else None
    works = progress is not None and progress.in_flight + progress.queued > 0
    moved = progressed_at(probe if works else None, traffic)
    return moved if moved is not None else float("-inf")


def called_off(leaving: Leaving, verdict: Verdict, gate: Gate) -> str | None:
    """Why healing (or the autoscaler) does not end it after all, or None: it has recovered, or a person or a brake."""
    if leaving.cause is Cause.SCALE:
        return gate.paused
    if leaving.cause is not Cause.HEAL:
        return None
    if verdict.kind in _GOOD:
        return "it has recovered"
    return gate.paused or gate.no_disturbance


def words(leaving: Leaving, in_flight: int | None, gate: Gate) -> str:
    """What it still waits for."""
    if not gate.unrouted:
        return "waits for nginx to let go of it"
    if in_flight == 0:
        return "nothing in flight"
    if in_flight is None:
        return "in flight cannot be counted, waits for the drain timeout"
    if leaving.patient:
        return f"{in_flight} in flight, which nothing hurries (chatglm-hactl scale N does)"
    return f"{in_flight} in flight"

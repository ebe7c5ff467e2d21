"""From evidence to a verdict: is this instance serving, busy, loading, suspect, hung, sick or dead?

The one rule above all others: progress of real work is health. A probe that times out says that a probe timed out;
whoever restarts on that alone kills healthy, busy instances at peak, the commonest outage of the field.
"""

from __future__ import annotations

from hasupervisor.model import (
    Fact,
    Miss,
    Phase,
    Policy,
    ProbeView,
    Record,
    Said,
    Seen,
    TrafficView,
    Verdict,
    VerdictKind,
)

REFUSED_FOR = 5.0
"""Seconds that a living process must refuse connections before it counts as dead: a restart of dockerd takes its
port forwarder away for a moment, and that is no reason to restart the container behind it."""

PROMPT_FAILURES = 2
"""Synthetic prompts in a row that must fail: one alone may have met a burst of users' work."""


def judge(seen: Seen, policy: Policy, now: float) -> Verdict:
    """The verdict on one instance. Never raises; what nobody could find out is UNKNOWN."""
    fact = seen.fact
    if fact is None:
        return Verdict(VerdictKind.DEAD, "the runtime does not list it")
    match fact.phase:
        case Phase.EXITED:
            return Verdict(VerdictKind.DEAD, how_it_ended(fact))
        case Phase.CREATED:
            return Verdict(VerdictKind.DEAD, "was created but never started")
        case Phase.REMOVING:
            return Verdict(VerdictKind.UNKNOWN, "is being removed")
        case Phase.PAUSED:
            return Verdict(VerdictKind.SUSPECT, "is frozen by hand; it comes back with `docker unpause`")
        case Phase.RUNNING:
            pass
    probe = seen.probe
    if probe is None or probe.runtime_id != fact.runtime_id:
        return Verdict(VerdictKind.UNKNOWN, "not asked yet")
    proven = bool(probe.prompt_ok) or _has_served(seen.record, fact)
    if not probe.failures:
        return _answered(seen, fact, probe, policy, now, proven=proven)
    if proven and probe.failures < policy.failures and probe.miss is not Miss.REFUSED:
        last = _answered(seen, fact, probe, policy, now, proven=proven)  # one miss makes nothing better, nor worse
        missed = f"missed {probe.failures} of {policy.failures} probes ({probe.error})"
        return Verdict(last.kind, missed) if last.kind is VerdictKind.SERVING else last
    return _unanswered(fact, probe, seen.traffic, policy, now, proven=proven)


def _has_served(record: Record, fact: Fact) -> bool:
    """Whether this very life has served users, under an earlier daemon too; then it no longer counts as loading."""
    return record.incarnation == fact.runtime_id and (record.in_rotation or record.serving_since is not None)


def how_it_ended(fact: Fact) -> str:
    """How a process ended, in words: "exited 1", "killed by signal 9", "ran out of memory"."""
    if fact.oom_killed:
        return "ran out of memory and was killed"
    code = fact.exit_code
    if code is None:
        return "ended"
    if code < 0:
        return f"killed by signal {-code}"
    if code > 128:  # the convention of shells and of Docker
        return f"killed by signal {code - 128}"
    return f"exited {code}"


def progressed_at(probe: ProbeView, traffic: TrafficView) -> float | None:
    """When work was last seen to move, by any witness: its own count, an answered request, bytes of a stream."""
    times = [t for t in (probe.progressed_at, traffic.completed_at, traffic.bytes_at) if t is not None]
    return max(times, default=None)


def progress_window(traffic: TrafficView, policy: Policy) -> float:
    """Seconds within which a working instance should have shown some progress.

    By Little's law one answer is due every latency / in-flight seconds; twice that, and never less than a probe's
    own patience.
    """
    if traffic.mean_ms is None or traffic.in_flight == 0:
        return policy.timeout
    return max(policy.timeout, 2.0 * traffic.mean_ms / 1000.0 / traffic.in_flight)


def _answered(seen: Seen, fact: Fact, probe: ProbeView, policy: Policy, now: float, *, proven: bool) -> Verdict:
    match probe.said:
        case None:
            return Verdict(VerdictKind.UNKNOWN, "not asked yet")
        case Said.LOADING:
            return _loading(fact, policy, now, "says that it is loading")
        case Said.UNHEALTHY:
            why = f"says that it is unhealthy: {probe.reason}" if probe.reason else "says that it is unhealthy"
            if probe.unhealthies < policy.failures:
                return Verdict(VerdictKind.SUSPECT, why)
            return Verdict(VerdictKind.SICK, why)
        case Said.HEALTHY:
            return _healthy(seen, fact, probe, policy, now, proven=proven)


def _healthy(seen: Seen, fact: Fact, probe: ProbeView, policy: Policy, now: float, *, proven: bool) -> Verdict:
    stalled = _stalled_for(probe, now)
    if stalled is not None and stalled >= policy.hang_after:
        return Verdict(VerdictKind.HUNG, f"answers probes, but its work has not moved for {stalled:.0f} s")
    if probe.prompt_failures >= PROMPT_FAILURES:
        return Verdict(VerdictKind.SICK, f"answers probes, but not a prompt: {probe.prompt_error}")
    if probe.prompt_failures:
        return Verdict(VerdictKind.SUSPECT, f"did not answer a prompt: {probe.prompt_error}; it is asked again")
    if not proven:
        return _loading(fact, policy, now, "answers; its first prompt is still to be answered")
    if probe.successes < policy.successes and not _has_served(seen.record, fact):
        return _loading(fact, policy, now, f"answers ({probe.successes} of {policy.successes})")
    if probe.successes < policy.successes and not seen.record.in_rotation:
        return Verdict(VerdictKind.SUSPECT, f"answers again ({probe.successes} of {policy.successes})")
    if seen.traffic.in_flight:
        return Verdict(VerdictKind.SERVING, f"answers, {seen.traffic.in_flight} in flight, progressing")
    return Verdict(VerdictKind.SERVING, "answers, idle")


def _stalled_for(probe: ProbeView, now: float) -> float | None:
    """Seconds without any progress of its own, of an instance that reports work in flight; None: does not apply."""
    progress = probe.progress
    if progress is None or progress.in_flight + progress.queued == 0 or probe.progressed_at is None:
        return None
    return now - probe.progressed_at


def _loading(fact: Fact, policy: Policy, now: float, words: str) -> Verdict:
    age = now - fact.started_at if fact.started_at is not None else 0.0
    if age > policy.start_timeout:
        return Verdict(VerdictKind.SICK, f"did not serve within {policy.start_timeout:.0f} s of its start: {words}")
    return Verdict(VerdictKind.LOADING, f"{words} ({age:.0f} s of at most {policy.start_timeout:.0f} s)")


def _unanswered(
    fact: Fact, probe: ProbeView, traffic: TrafficView, policy: Policy, now: float, *, proven: bool
) -> Verdict:
    if not proven:
        return _loading(fact, policy, now, f"does not answer yet ({probe.error})")
    if probe.miss is Miss.REFUSED:
        return _refusing(probe, policy, now)
    moved = progressed_at(probe, traffic)
    since_moved = now - moved if moved is not None else None
    if not traffic.in_flight_known:
        return Verdict(VerdictKind.SUSPECT, f"does not answer ({probe.error}); what is in flight cannot be counted")
    if traffic.in_flight:
        return _silent_with_work(probe, traffic, policy, now, since_moved)
    if (
        since_moved is not None and since_moved <= policy.interval + policy.timeout
    ):  # a probe it kept waiting may end now
        return Verdict(VerdictKind.BUSY, f"misses probes ({probe.error}), but finished work {since_moved:.1f} s ago")
    return Verdict(VerdictKind.DEAD, f"has nothing in flight and missed {probe.failures} probes ({probe.error})")


def _refusing(probe: ProbeView, policy: Policy, now: float) -> Verdict:
    since = now - (probe.first_failure_at if probe.first_failure_at is not None else now)
    if probe.failures >= policy.failures and since >= REFUSED_FOR:
        return Verdict(VerdictKind.DEAD, f"its process lives, but refused connections for {since:.0f} s")
    return Verdict(VerdictKind.SUSPECT, f"refuses connections ({probe.error})")


def _silent_with_work(
    probe: ProbeView, traffic: TrafficView, policy: Policy, now: float, since_moved: float | None
) -> Verdict:
    """Work is in flight and probes go unanswered: busy, suspect or hung."""
    window = progress_window(traffic, policy)
    if since_moved is not None and since_moved <= window:
        return Verdict(
            VerdictKind.BUSY, f"misses probes ({probe.error}), but works: {traffic.in_flight} in flight, progressing"
        )
    if probe.progress is not None and probe.miss is Miss.SILENT:
        return Verdict(
            VerdictKind.HUNG,
            f"reported its progress until now and answers nothing any more: {probe.failures} probes accepted, none "
            f"answered, {traffic.in_flight} in flight",
        )
    silent = now - max(
        t
        for t in (probe.first_failure_at, probe.answered_at, traffic.completed_at, traffic.bytes_at, 0.0)
        if t is not None
    )
    if silent >= policy.hang_after:
        return Verdict(VerdictKind.HUNG, f"{traffic.in_flight} in flight, no answer and no progress for {silent:.0f} s")
    return Verdict(
        VerdictKind.SUSPECT,
        f"misses probes ({probe.error}) with {traffic.in_flight} in flight and no progress seen; "
        f"counts as hung after {policy.hang_after:.0f} s",
    )

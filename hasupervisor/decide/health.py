"""From evidence to a verdict: is this instance serving, busy, loading, suspect, hung, sick or dead?

The one rule above all others: progress of real work is health. A probe that times out says that a probe timed out;
whoever restarts on that alone kills healthy, busy instances at peak, the commonest outage of the field.
"""

from __future__ import annotations

from dataclasses import dataclass

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

ERRORS_IN_ROW = 3
"""Answers 5xx to users in a row that make an instance suspect; a prompt then decides. One bad question may be sent to
three instances, but it is one error for each of them."""

HANG_FLOOR = 5.0
"""Seconds without any sign of life that an adapted `hang_after` never falls below, however fast the usual answers."""

IDLE_CPU = 1.0
"""Seconds without CPU use after which an instance counts as doing nothing at all."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A running instance, and the evidence about it."""

    record: Record
    fact: Fact
    probe: ProbeView
    traffic: TrafficView
    policy: Policy
    now: float

    @property
    def has_served(self) -> bool:
        """Whether this very life has served users, under an earlier daemon too; then it no longer counts as loading."""
        record = self.record
        return record.incarnation == self.fact.runtime_id and (record.in_rotation or record.serving_since is not None)

    @property
    def proven(self) -> bool:
        return bool(self.probe.prompt_ok) or self.has_served

    @property
    def moved_ago(self) -> float | None:
        """Seconds since work was last seen to move; None: never."""
        moved = progressed_at(self.probe, self.traffic)
        return self.now - moved if moved is not None else None

    @property
    def hang_after(self) -> float:
        """Seconds without progress that prove a hang: the setting, or less where the instance has shown to be fast.

        Never under three times its own 99th percentile; and only while it uses no CPU: a long answer to an unusual
        question is work, and a stopped or deadlocked process does none.
        """
        p99, idle_since, setting = self.traffic.p99_ms, self.traffic.idle_since, self.policy.hang_after
        if p99 is None or idle_since is None or self.now - idle_since < IDLE_CPU:
            return setting
        return min(setting, max(HANG_FLOOR, 3.0 * p99 / 1000.0))


def judge(seen: Seen, policy: Policy, now: float) -> Verdict:
    """The verdict on one instance. Never raises; what nobody could find out is UNKNOWN."""
    fact, probe = seen.fact, seen.probe
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
    if probe is None or probe.runtime_id != fact.runtime_id:
        return Verdict(VerdictKind.UNKNOWN, "not asked yet")
    case = _Case(seen.record, fact, probe, seen.traffic, policy, now)
    if not probe.failures:
        return _answered(case)
    if case.proven and probe.failures < policy.failures and probe.miss is not Miss.REFUSED:
        last = _answered(case)  # one miss makes nothing worse, and nothing better
        missed = f"missed {probe.failures} of {policy.failures} probes ({probe.error})"
        return Verdict(last.kind, missed) if last.kind is VerdictKind.SERVING else last
    return _unanswered(case)


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


def is_accused(probe: ProbeView, traffic: TrafficView) -> bool:
    """Whether users were given errors in a row, and no prompt has been answered well since the last of them."""
    if traffic.errors_in_row < ERRORS_IN_ROW or traffic.errored_at is None:
        return False
    return not probe.prompt_ok or probe.prompted_at is None or probe.prompted_at <= traffic.errored_at


def _answered(case: _Case) -> Verdict:
    probe = case.probe
    match probe.said:
        case None:
            return Verdict(VerdictKind.UNKNOWN, "not asked yet")
        case Said.LOADING:
            return _loading(case, "says that it is loading")
        case Said.UNHEALTHY:
            why = f"says that it is unhealthy: {probe.reason}" if probe.reason else "says that it is unhealthy"
            kind = VerdictKind.SUSPECT if probe.unhealthies < case.policy.failures else VerdictKind.SICK
            return Verdict(kind, why)
        case Said.HEALTHY:
            return _healthy(case)


def _healthy(case: _Case) -> Verdict:
    probe, policy = case.probe, case.policy
    stalled = _stalled_for(case)
    if stalled is not None and stalled >= case.hang_after:
        return Verdict(VerdictKind.HUNG, f"answers probes, but its work has not moved for {stalled:.0f} s")
    if probe.prompt_failures >= PROMPT_FAILURES:
        return Verdict(VerdictKind.SICK, f"answers probes, but not a prompt: {probe.prompt_error}")
    if probe.prompt_failures:
        return Verdict(VerdictKind.SUSPECT, f"did not answer a prompt: {probe.prompt_error}; it is asked again")
    if not case.proven:
        return _loading(case, "answers; its first prompt is still to be answered")
    if is_accused(probe, case.traffic):
        words = f"its last {case.traffic.errors_in_row} answers to users were errors; a prompt decides"
        return Verdict(VerdictKind.SUSPECT, words)
    counted = f"({probe.successes} of {policy.successes})"
    if probe.successes < policy.successes and not case.has_served:
        return _loading(case, f"answers {counted}")
    if probe.successes < policy.successes and not case.record.in_rotation:
        return Verdict(VerdictKind.SUSPECT, f"answers again {counted}")
    if case.traffic.in_flight:
        return Verdict(VerdictKind.SERVING, f"answers, {case.traffic.in_flight} in flight, progressing")
    return Verdict(VerdictKind.SERVING, "answers, idle")


def _stalled_for(case: _Case) -> float | None:
    """Seconds without any progress, of an instance that reports work in flight; None: does not apply."""
    progress = case.probe.progress
    if progress is None or progress.in_flight + progress.queued == 0 or case.probe.progressed_at is None:
        return None
    return case.moved_ago


def _loading(case: _Case, words: str) -> Verdict:
    """On its way up, for `start_timeout` at most: from its start, or from when a new daemon met it."""
    known = case.record.incarnation == case.fact.runtime_id
    met = case.record.met_at if known and case.record.met_at is not None else case.now
    age, limit = case.now - max(met, case.fact.started_at or 0.0), case.policy.start_timeout
    if age > limit:
        return Verdict(VerdictKind.SICK, f"did not serve within {limit:.0f} s of its start: {words}")
    return Verdict(VerdictKind.LOADING, f"{words} ({age:.0f} s of at most {limit:.0f} s)")


def _unanswered(case: _Case) -> Verdict:
    probe, traffic, error = case.probe, case.traffic, case.probe.error
    if not case.proven:
        return _loading(case, f"does not answer yet ({error})")
    if probe.miss is Miss.REFUSED:
        return _refusing(case)
    if not traffic.in_flight_known:
        return Verdict(VerdictKind.SUSPECT, f"does not answer ({error}); what is in flight cannot be counted")
    if traffic.in_flight:
        return _silent_with_work(case)
    ago = case.moved_ago
    if ago is not None and ago <= case.policy.interval + case.policy.timeout:  # as long as a probe may wait behind work
        return Verdict(VerdictKind.BUSY, f"misses probes ({error}), but finished work {ago:.1f} s ago")
    return Verdict(VerdictKind.DEAD, f"has nothing in flight and missed {probe.failures} probes ({error})")


def _refusing(case: _Case) -> Verdict:
    probe = case.probe
    since = case.now - (probe.first_failure_at if probe.first_failure_at is not None else case.now)
    if probe.failures >= case.policy.failures and since >= REFUSED_FOR:
        return Verdict(VerdictKind.DEAD, f"its process lives, but refused connections for {since:.0f} s")
    return Verdict(VerdictKind.SUSPECT, f"refuses connections ({probe.error})")


def _silent_with_work(case: _Case) -> Verdict:
    """Work is in flight and probes go unanswered: busy, suspect or hung."""
    probe, traffic, hang_after = case.probe, case.traffic, case.hang_after
    ago, working = case.moved_ago, f"{traffic.in_flight} in flight"
    if ago is not None and ago <= progress_window(traffic, case.policy):
        return Verdict(VerdictKind.BUSY, f"misses probes ({probe.error}), but works: {working}, progressing")
    if probe.progress is not None and probe.miss is Miss.SILENT:
        words = "reported its progress until now and answers nothing any more"
        return Verdict(VerdictKind.HUNG, f"{words}: {probe.failures} probes accepted, none answered, {working}")
    signs = (probe.first_failure_at, probe.answered_at, traffic.completed_at, traffic.bytes_at)
    silent = case.now - max((at for at in signs if at is not None), default=0.0)
    if silent >= hang_after:
        return Verdict(VerdictKind.HUNG, f"{working}, no answer and no progress for {silent:.0f} s")
    return Verdict(
        VerdictKind.SUSPECT,
        f"misses probes ({probe.error}) with {working} and no progress seen; counts as hung after {hang_after:.0f} s",
    )

"""From evidence to a verdict: is this instance serving, busy, loading, suspect, hung, sick or dead?

The one rule above all others: progress of real work is health. A probe that times out says that a probe timed out;
whoever restarts on that alone kills healthy, busy instances at peak, the commonest outage of the field.

So HUNG, which ends in SIGKILL, needs two independent witnesses: no progress, and no use of the CPU; or no progress, and
neither an answer nor a byte for `hang_after`. With one witness an instance is SUSPECT: it leaves the rotation, and that
is undone at once. What is in flight and cannot be seen may be work: only a known 0 is nothing. An answer that is too
old says nothing of now: UNKNOWN.
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

STALE_ROUNDS = 3.0
"""Rounds of probes (`interval` + `timeout`) after which the last answer, or the last miss, is too old for a verdict."""

LATE = 0.1
"""Seconds that a health answer may take before it is called late."""

IDLE_CPU = 1.0
"""Seconds without CPU use after which an instance counts as doing nothing at all."""

STILL = 1.0
"""Seconds without any movement of users' work, at least, before a late answer makes an instance suspect."""


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
        met = record.incarnation == self.fact.runtime_id
        return met and (record.in_rotation or record.serving_since is not None)

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
        p99, setting = self.traffic.p99_ms, self.policy.hang_after
        if p99 is None or not self.uses_no_cpu:
            return setting
        return min(setting, max(HANG_FLOOR, 3.0 * p99 / 1000.0))

    @property
    def uses_no_cpu(self) -> bool:
        """Whether its processes are known to do nothing at all."""
        idle_since = self.traffic.idle_since
        return idle_since is not None and self.now - idle_since >= IDLE_CPU

    @property
    def told_work(self) -> bool:
        """Whether work was in it by the last count of its own."""
        progress = self.probe.progress
        return progress is not None and progress.in_flight + progress.queued > 0

    @property
    def work(self) -> str:
        """What users have in it, in words."""
        known = self.traffic.in_flight_known
        return f"{self.traffic.in_flight} in flight" if known else "what is in flight cannot be seen, it may be busy"


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
            return Verdict(VerdictKind.DEAD, "is being removed")
        case Phase.PAUSED:
            return Verdict(VerdictKind.SUSPECT, "is frozen by hand; it comes back with `docker unpause`")
        case Phase.RUNNING:
            pass
    if probe is None or probe.runtime_id != fact.runtime_id:
        return _not_asked(seen.record, fact, None, policy, now)
    case = _Case(seen.record, fact, probe, seen.traffic, policy, now)
    told_at = probe.ended_at if probe.ended_at is not None else probe.answered_at
    if told_at is not None and now - told_at > stale_after(policy):
        words = f"cannot be asked{_why(probe)}: what is known of it is {now - told_at:.0f} s old"
        return Verdict(VerdictKind.UNKNOWN, words, since=told_at)
    if probe.failures < policy.failures and _stands_still(case):
        return Verdict(VerdictKind.SUSPECT, f"is late with its answer, uses no CPU and moves nothing: {case.work}")
    if not probe.failures:
        return _answered(case)
    if case.proven and probe.failures < policy.failures and probe.miss is not Miss.REFUSED:
        last = _answered(case)  # one miss makes nothing worse, and nothing better
        missed = f"missed {probe.failures} of {policy.failures} probes ({probe.error})"
        return Verdict(last.kind, missed) if last.kind is VerdictKind.SERVING else last
    return _unanswered(case)


def stale_after(policy: Policy) -> float:
    """Seconds after which what the last probe found out is too old for a verdict."""
    return STALE_ROUNDS * (policy.interval + policy.timeout)


def is_late(probe: ProbeView, policy: Policy, now: float) -> bool:
    """Whether the answer to the question that is out is later than answers are: nothing is wrong yet, it may become."""
    return probe.answered_at is not None and now - probe.answered_at > policy.interval + LATE


def _not_asked(record: Record, fact: Fact, probe: ProbeView | None, policy: Policy, now: float) -> Verdict:
    """Nobody has asked it: a moment ago it was not there, or questions cannot be put."""
    since = record.met_at if record.incarnation == fact.runtime_id else None
    if probe is not None and probe.unasked_since is not None:
        since = probe.unasked_since
    if since is None or now - since <= stale_after(policy):
        return Verdict(VerdictKind.UNKNOWN, "not asked yet")
    words = f"cannot be asked{_why(probe)}: nothing is known of it for {now - since:.0f} s"
    return Verdict(VerdictKind.UNKNOWN, words, since=since)


def _why(probe: ProbeView | None) -> str:
    return f" ({probe.unasked})" if probe is not None and probe.unasked else ""


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


def progressed_at(probe: ProbeView | None, traffic: TrafficView) -> float | None:
    """When work was last seen to move, by any witness: its own count, an answered request, bytes of a stream."""
    told = probe.progressed_at if probe is not None else None
    times = [t for t in (told, traffic.completed_at, traffic.bytes_at) if t is not None]
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
            return _not_asked(case.record, case.fact, probe, case.policy, case.now)
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
        # Its own count is one witness; what users get, or its CPU, is the other. Without that: SIGTERM, no SIGKILL.
        kind = VerdictKind.HUNG if case.traffic.in_flight_known or case.uses_no_cpu else VerdictKind.SICK
        return Verdict(kind, f"answers probes, but its work has not moved for {stalled:.0f} s")
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
    if not case.traffic.in_flight_known:
        return Verdict(VerdictKind.SERVING, "answers; what is in flight cannot be seen")
    if case.traffic.in_flight:
        return Verdict(VerdictKind.SERVING, f"answers, {case.traffic.in_flight} in flight, progressing")
    return Verdict(VerdictKind.SERVING, "answers, idle")


def _stands_still(case: _Case) -> bool:
    """Whether users' work stands still in it, before its probes count as missed.

    That takes it out of rotation, which its next answer undoes at once; it ends nobody. By itself a late answer, or a
    second in which nothing moves, means nothing.
    """
    probe, traffic = case.probe, case.traffic
    if probe.late_since is None or not case.proven or probe.said is not Said.HEALTHY or not case.uses_no_cpu:
        return False
    if traffic.in_flight_known and not traffic.in_flight:
        return False
    due = case.policy.timeout  # as long as nobody knows how long its answers take
    if traffic.mean_ms is not None and traffic.in_flight:
        due = 2.0 * traffic.mean_ms / 1000.0 / traffic.in_flight
    ago = case.moved_ago
    return ago is not None and ago > max(STILL, due)


def _stalled_for(case: _Case) -> float | None:
    """Seconds without any progress, of an instance that reports work in flight; None: does not apply."""
    return case.moved_ago if case.told_work and case.probe.progressed_at is not None else None


def _loading(case: _Case, words: str) -> Verdict:
    """On its way up, for `start_timeout` at most."""
    age, limit = loads_for(case.record, case.fact, case.now), case.policy.start_timeout
    if age > limit and _works(case):
        return Verdict(VerdictKind.LOADING, f"{words}; users reach it past the gateway, and its work moves")
    if age > limit:
        return Verdict(VerdictKind.SICK, f"did not serve within {limit:.0f} s of its start: {words}")
    return Verdict(VerdictKind.LOADING, f"{words} ({age:.0f} s of at most {limit:.0f} s)")


def loads_for(record: Record, fact: Fact, now: float) -> float:
    """Seconds that a process which is not proven has had for its load: from its start, or since a new daemon met it."""
    known = record.incarnation == fact.runtime_id
    met = record.met_at if known and record.met_at is not None else now
    return now - max(met, fact.started_at or 0.0)


def _works(case: _Case) -> bool:
    """Whether work of users is in it by its own count, and has just moved."""
    ago = case.moved_ago
    return case.told_work and ago is not None and ago <= 2.0 * (case.policy.interval + case.policy.timeout)


def _unanswered(case: _Case) -> Verdict:
    probe, traffic, error = case.probe, case.traffic, case.probe.error
    if not case.proven:
        return _loading(case, f"does not answer yet ({error})")
    if probe.miss is Miss.REFUSED:
        return _refusing(case)
    if traffic.in_flight or not traffic.in_flight_known:
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
    """Work is in flight, or may be, and probes go unanswered: busy, suspect or hung."""
    probe, traffic, hang_after = case.probe, case.traffic, case.hang_after
    ago, working = case.moved_ago, case.work
    if ago is not None and ago <= progress_window(traffic, case.policy):
        return Verdict(VerdictKind.BUSY, f"misses probes ({probe.error}), but works: {working}, progressing")
    surely = traffic.in_flight_known or case.told_work  # an idle process uses no CPU either
    if surely and probe.progress is not None and probe.miss is Miss.SILENT and case.uses_no_cpu:
        words = "reported its progress until now, answers nothing any more and uses no CPU"
        return Verdict(VerdictKind.HUNG, f"{words}: {probe.failures} probes accepted, none answered, {working}")
    signs = (probe.first_failure_at, probe.answered_at, traffic.completed_at, traffic.bytes_at)
    silent = case.now - max((at for at in signs if at is not None), default=0.0)
    if silent >= hang_after:
        # Its own last count is as old as its silence: without a look at its work or its CPU it is no witness for now.
        kind = VerdictKind.HUNG if traffic.in_flight_known or (surely and case.uses_no_cpu) else VerdictKind.DEAD
        return Verdict(kind, f"{working}, no answer and no progress for {silent:.0f} s")
    return Verdict(
        VerdictKind.SUSPECT,
        f"misses probes ({probe.error}) and no progress is seen: {working}; "
        f"counts as hung after {hang_after:.0f} s, {silent:.0f} s have gone by",
    )

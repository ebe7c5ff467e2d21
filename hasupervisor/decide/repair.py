"""From verdict and record to the next step of one instance: start, wait, drain, stop, fence, park."""

from __future__ import annotations

from dataclasses import replace

from hasupervisor.decide import drain
from hasupervisor.decide.gate import Gate, Turn
from hasupervisor.model import (
    Cause,
    Fact,
    Failure,
    Leaving,
    Outcome,
    Phase,
    Record,
    Seen,
    State,
    Step,
    StepKind,
    Verdict,
    VerdictKind,
)

HOW = 10.0
"""Seconds that the runtime has to say how a process ended that is known to have ended. It is milliseconds behind; a
runtime that hangs is in trouble, and known to be, before this is over."""

TROUBLE_RETRY = 10.0
"""Seconds until a start is tried again that the runtime's own trouble prevented."""


MET_AT_ONCE = 10.0
"""Seconds after its start within which a life must have been met for its load to be timed."""

REMOVAL = 30.0
"""Seconds that the runtime has to finish a removal that somebody else began; then the name counts as stuck."""

STUCK_RETRY = 60.0
"""Seconds from a step that did not succeed to the next on what has ended by itself since."""


def advance(seen: Seen, verdict: Verdict, gate: Gate) -> Turn:
    """The next step of one instance. `seen.record` is not changed; the returned record is the new memory."""
    record = _absorb(seen.record, seen.fact, seen.outcomes, gate)
    fact = seen.fact
    if record.stuck is not None:
        return Turn(replace(record, in_rotation=False), State.PARKED, record.stuck)
    if seen.acting is not None:
        return _under_way(record, seen.acting, gate)
    if gate.list_is_old:
        return Turn(record, record.state, _meanwhile(record, gate))
    if fact is None:
        return _absent(record, gate)
    if fact.phase in (Phase.EXITED, Phase.CREATED):
        return _ended(record, fact, verdict, gate)
    if fact.phase is Phase.REMOVING:
        return _being_removed(record, verdict, gate)
    record = _live(record, fact, verdict, gate)
    if record.leaving is not None:
        return _leave(record, seen, fact, verdict, gate)
    return _living(record, fact, verdict, gate)


def fail(record: Record, reason: str, gate: Gate, ended: str | None) -> Record:
    """Counts one failed life, once: the next try backs off with jitter, or the instance is parked.

    One that served while nobody else did is tried again within `backoff`, however often it has failed.
    """
    if ended is not None and ended == record.ended:
        return replace(record, in_rotation=False, serving_since=None, incarnation=None)
    failures = (*record.failures, gate.now)
    served = record.serving_since is not None
    count = len(failures)
    needed = served and gate.last  # users wait for it: it is neither given up nor kept waiting for long
    parked = count >= gate.policy.attempts and not needed
    delay = 0.0 if served and count == 1 else _backoff(count, gate)
    if needed:
        delay = min(delay, gate.policy.backoff)
    return replace(
        record,
        failures=failures,
        last_failure=Failure(at=gate.now, at_wall=gate.now_wall, reason=reason),
        retry_at=None if parked else gate.now + delay,
        parked_at=gate.now if parked else None,
        in_rotation=False,
        serving_since=None,
        incarnation=None,
        ended=ended if ended is not None else record.ended,
    )


def can_stay(seen: Seen) -> bool:
    """Whether an instance on its way out may still stay after all: its process lives, and nothing has ended it yet."""
    alive = seen.fact is not None and seen.fact.phase is Phase.RUNNING and seen.record.ended != seen.fact.runtime_id
    return alive and seen.acting is None and seen.record.stuck is None


def forgive(record: Record) -> Record:
    """A person asked for this instance: earlier failures do not hold it back."""
    return replace(record, failures=(), retry_at=None, parked_at=None)


def _backoff(count: int, gate: Gate) -> float:
    delay = min(gate.policy.backoff * 2.0 ** (count - 1), gate.policy.backoff_max)
    return delay * (0.75 + 0.5 * gate.jitter)


def _absorb(record: Record, fact: Fact | None, outcomes: tuple[Outcome, ...], gate: Gate) -> Record:
    """Takes in how the last steps ended."""
    for outcome in outcomes:
        record = replace(record, acted_at=max(record.acted_at, outcome.at))
        if outcome.stuck:
            record = replace(record, stuck=f"cannot be ended: {outcome.error}", in_rotation=False)
        elif outcome.step == StepKind.START and not outcome.ok:
            record = _try_later(record, outcome, gate) if outcome.trouble else fail(record, outcome.error, gate, None)
        if outcome.tail and record.last_failure is not None and not record.last_failure.tail:
            record = replace(record, last_failure=replace(record.last_failure, tail=outcome.tail))
    if record.stuck is not None and not gate.list_is_old and gate.asleep is None and _has_let_go(record, fact, gate):
        record = replace(record, stuck=None)
    return record


def _has_let_go(record: Record, fact: Fact | None, gate: Gate) -> bool:
    """Whether what was stuck is gone after all, or has ended: then its remains are cleared away, a try a minute."""
    return fact is None or (fact.phase is Phase.EXITED and gate.now - record.acted_at >= STUCK_RETRY)


def _try_later(record: Record, outcome: Outcome, gate: Gate) -> Record:
    """A start that the runtime as a whole prevented: not the instance's failure, but not tried again at once either."""
    why = Failure(at=gate.now, at_wall=gate.now_wall, reason=outcome.error)
    return replace(record, last_failure=why, retry_at=gate.now + min(TROUBLE_RETRY, gate.policy.backoff_max))


def _under_way(record: Record, acting: str, gate: Gate) -> Turn:
    if acting == StepKind.START:
        return Turn(record, State.STARTING, "is being started")
    why = record.leaving.why if record.leaving else (record.last_failure.reason if record.last_failure else "")
    what = "what is left of it is removed" if acting == StepKind.CLEAR else "is being ended"
    record = replace(record, in_rotation=False)
    return Turn(record, State.STOPPING, f"{what}: {why}" if why else what)


def _absent(record: Record, gate: Gate) -> Turn:
    """The runtime has nothing of that name: start it, or say why not."""
    if record.incarnation is not None and record.leaving is None and gate.asleep is None:
        record = fail(record, "was removed by somebody else", gate, ended=record.incarnation)
    waited = record.waits_since
    record = replace(_calm(record), in_rotation=False, serving_since=None, incarnation=None, waits_since=None)
    if record.leaving is not None and record.leaving.cause is Cause.SCALE:
        return Turn(record, State.STOPPING, record.leaving.why)  # the next cycle ends its record
    record = replace(record, leaving=None)
    if gate.drained:
        record = replace(record, disturbed_at=None, bad_since=None)
        return Turn(record, State.PARKED, "drained by hand, stopped")
    if record.parked_at is not None:
        retry = record.parked_at + gate.policy.park_retry
        if gate.policy.park_retry <= 0 or gate.now < retry:
            return Turn(record, State.PARKED, parked_sentence(record, gate))
    if record.retry_at is not None and gate.now < record.retry_at:
        return Turn(record, State.BACKOFF, backoff_sentence(record, gate))
    waiting = gate.asleep or gate.paused or gate.no_start
    if waiting is not None:
        if waiting is gate.no_start:
            record = replace(record, waits_since=waited if waited is not None else gate.now)
        return Turn(record, State.BACKOFF if record.failures else State.STARTING, waiting)
    again = record.ended is not None or bool(record.failures)
    restarts = record.restarts + (1 if again else 0)
    record = replace(record, restarts=restarts, retry_at=None, parked_at=None, gpus=gate.gpus)
    why = f"start again after: {record.last_failure.reason}" if again and record.last_failure else "start"
    step = Step(StepKind.START, record.name, why, port=record.port, gpus=gate.gpus)
    return Turn(record, State.STARTING, "is being started", step)


def _ended(record: Record, fact: Fact, verdict: Verdict, gate: Gate) -> Turn:
    """Its process is gone, its remains are there: count the end once, keep its last words, clear them away."""
    record = replace(record, in_rotation=False)
    if record.ended != fact.runtime_id:
        if fact.died_at is not None and (gate.asleep is not None or gate.now - fact.died_at < HOW):
            state = State.STOPPING if record.leaving else State.SUSPECT
            return Turn(record, state, f"its process has ended; {gate.asleep or 'the runtime will say how'}")
        if record.leaving is None:
            record = fail(record, verdict.sentence, gate, ended=fact.runtime_id)
        else:
            record = replace(record, ended=fact.runtime_id, incarnation=None, serving_since=None)
    state = State.STOPPING if record.leaving else State.PARKED if record.parked_at is not None else State.BACKOFF
    sentence = record.leaving.why if record.leaving else _after_failure(record, gate)
    if gate.asleep is not None:
        return Turn(record, state, f"{sentence}; {gate.asleep}")
    step = Step(StepKind.CLEAR, record.name, sentence, runtime_id=fact.runtime_id)
    return Turn(record, state, sentence, step)


def _meanwhile(record: Record, gate: Gate) -> str:
    """What is said until the runtime's list tells what the last step has done: a moment, unless the runtime hangs."""
    if record.parked_at is not None or record.retry_at is not None:
        return _after_failure(record, gate)
    if gate.asleep is not None:
        return gate.asleep
    if record.state is State.STARTING:
        return "was started a moment ago, not seen running yet"
    return "was told to end a moment ago, not seen to be gone yet"


def _calm(record: Record) -> Record:
    """Forgets since when the life before was bad, unless healing ended it: then that is known until it serves again."""
    return record if record.disturbed_at is not None else replace(record, bad_since=None)


def _after_failure(record: Record, gate: Gate) -> str:
    return parked_sentence(record, gate) if record.parked_at is not None else backoff_sentence(record, gate)


def _live(record: Record, fact: Fact, verdict: Verdict, gate: Gate) -> Record:
    """Bookkeeping that every living process needs: whose life it is, how long it serves, how long it is bad."""
    good = verdict.kind in (VerdictKind.SERVING, VerdictKind.BUSY)
    if good and record.ended == fact.runtime_id:
        record = replace(record, ended=None)  # ending it did not succeed, and it has recovered
    if record.incarnation != fact.runtime_id:  # a life that nobody knows yet: nothing is proven of it
        record = replace(_calm(record), in_rotation=False, serving_since=None)
        record = replace(record, incarnation=fact.runtime_id, met_at=gate.now)
    if good:
        window = gate.now - gate.policy.window
        over = record.disturbed_at is None or gate.routed
        record = replace(
            record,
            bad_since=None if over else record.bad_since,
            disturbed_at=None if over else record.disturbed_at,
            parked_at=None,
            retry_at=None,
            failures=tuple(t for t in record.failures if t > window),
        )
    elif verdict.kind in (VerdictKind.SUSPECT, VerdictKind.HUNG, VerdictKind.SICK, VerdictKind.DEAD):
        record = record if record.bad_since is not None else replace(record, bad_since=gate.now)
    return record


def _being_removed(record: Record, verdict: Verdict, gate: Gate) -> Turn:
    """Somebody else removes it. A removal that the runtime does not finish blocks the name: another one takes over."""
    record = replace(record, in_rotation=False)
    lasts = gate.now - record.since if record.state is State.STOPPING and record.since else 0.0
    if lasts < REMOVAL or gate.asleep is not None:
        return Turn(record, State.STOPPING, f"{verdict.sentence} by somebody else")
    words = f"{verdict.sentence} by somebody else for {lasts:.0f} s, and does not go"
    record = replace(record, stuck=words, leaving=None, disturbed_at=None)
    return Turn(record, State.PARKED, words)


def _living(record: Record, fact: Fact, verdict: Verdict, gate: Gate) -> Turn:
    match verdict.kind:
        case VerdictKind.SERVING:
            return _serving(record, fact, verdict, gate, may_join=True)
        case VerdictKind.BUSY:
            return _serving(record, fact, verdict, gate, may_join=False)
        case VerdictKind.UNKNOWN:
            return _unknown(record, verdict)
        case VerdictKind.LOADING:
            record = replace(record, in_rotation=False, serving_since=None)
            return Turn(record, State.LOADING, verdict.sentence)
        case VerdictKind.SUSPECT:
            return _suspect(record, verdict.sentence, gate)
        case VerdictKind.HUNG | VerdictKind.SICK | VerdictKind.DEAD:
            return _heal(record, fact, verdict, gate)


def _unknown(record: Record, verdict: Verdict) -> Turn:
    """Nobody could ask: no reason to act, and after a while (`verdict.since`) no reason to call it well either."""
    if verdict.since is None:
        return Turn(record, State.SERVING if record.in_rotation else record.state, verdict.sentence)
    where = "stays in rotation" if record.in_rotation else "stays out of rotation"
    return Turn(record, State.SUSPECT, f"{verdict.sentence}; {where}")


def _serving(record: Record, fact: Fact, verdict: Verdict, gate: Gate, *, may_join: bool) -> Turn:
    """Proven. A busy one that was taken out comes back by an answered probe, not by its progress: no flapping."""
    if not record.in_rotation and not may_join and not gate.unheard:
        return Turn(record, State.SUSPECT, f"{verdict.sentence}; back in rotation once it answers a probe")
    if record.serving_since is None:
        record = replace(record, serving_since=gate.now, load_s=_load_time(record, fact, gate))
    record = replace(record, in_rotation=True, proven=fact.runtime_id)
    if not gate.routed:
        state = State.LOADING if record.state in (State.STARTING, State.LOADING) else State.SUSPECT
        return Turn(record, state, f"{verdict.sentence}; joins the gateway")
    return Turn(record, State.SERVING, verdict.sentence)


def _load_time(record: Record, fact: Fact, gate: Gate) -> float | None:
    """Seconds from its start to now, when it serves first; of one that nobody saw start, what was known before."""
    met, started = record.met_at, fact.started_at
    if met is None or started is None or met - started > MET_AT_ONCE:
        return record.load_s
    return gate.now - started


def _suspect(record: Record, sentence: str, gate: Gate) -> Turn:
    if gate.keep_routed and record.in_rotation:
        return Turn(record, State.SUSPECT, f"{sentence}; stays in rotation")
    if gate.unheard and not gate.works and record.serving_since is not None:  # no work stands still in it
        return Turn(replace(record, in_rotation=True), State.SUSPECT, f"{sentence}; back in rotation: nobody is heard")
    return Turn(replace(record, in_rotation=False), State.SUSPECT, sentence)


def _heal(record: Record, fact: Fact, verdict: Verdict, gate: Gate) -> Turn:
    """A living process that has to go: fence what hangs, drain what only ails. A brake or a pause holds both."""
    held = gate.asleep or gate.paused or gate.no_disturbance
    if held is not None and verdict.kind is VerdictKind.HUNG:  # it is proven to serve nobody: no keep_routed for it
        return Turn(replace(record, in_rotation=False), State.SUSPECT, f"{verdict.sentence}; left alone: {held}")
    if held is not None:
        return _suspect(record, f"{verdict.sentence}; left alone: {held}", gate)
    record = replace(record, bad_since=gate.bad_since)
    # Healed again before it has served: others have waited for it since the first time.
    began = record.disturbed_at if record.disturbed_at is not None else gate.now
    if verdict.kind is VerdictKind.HUNG:
        record = replace(fail(record, verdict.sentence, gate, ended=fact.runtime_id), disturbed_at=began)
        step = Step(StepKind.KILL, record.name, verdict.sentence, runtime_id=fact.runtime_id)
        return Turn(record, State.STOPPING, f"fenced: {verdict.sentence}", step)
    leaving = Leaving(Cause.HEAL, verdict.sentence, since=gate.now)
    record = replace(record, leaving=leaving, in_rotation=False, disturbed_at=began)
    return Turn(record, State.DRAINING, f"restarts: {verdict.sentence}")


def _leave(record: Record, seen: Seen, fact: Fact, verdict: Verdict, gate: Gate) -> Turn:
    """Out of nginx, then nothing in flight (or the time is over), then SIGTERM."""
    leaving = record.leaving
    assert leaving is not None
    record = replace(record, in_rotation=False)
    if gate.asleep is not None:
        return Turn(record, State.DRAINING, f"{leaving.why}; {gate.asleep}")
    if record.ended != fact.runtime_id and (held := drain.called_off(leaving, verdict, gate)) is not None:
        record = replace(record, leaving=None, disturbed_at=None)
        if verdict.kind in (VerdictKind.SERVING, VerdictKind.BUSY):
            return _living(record, fact, verdict, gate)
        return _suspect(record, f"{verdict.sentence}; left alone: {held}", gate)
    in_flight = drain.work_in(seen, leaving, gate)
    leaving = drain.wait(leaving, gate, quiet=gate.unrouted and in_flight == 0)
    leaving = replace(leaving, ends_at=drain.ends_at(leaving, seen, verdict, gate))
    record = replace(record, leaving=leaving)
    if leaving.quiet_since is not None and gate.now - leaving.quiet_since >= drain.QUIET:
        return _stop(record, fact, StepKind.STOP, leaving.why, gate)
    if verdict.kind is VerdictKind.HUNG and gate.no_disturbance is None:
        return _stop(record, fact, StepKind.KILL, f"{leaving.why}; {verdict.sentence}", gate)
    since = drain.waited_since(leaving, verdict, gate)
    if since is not None and leaving.ends_at is not None and gate.now >= leaving.ends_at:
        what = f"{in_flight} still in flight" if in_flight is not None else "what is in flight cannot be counted"
        return _stop(record, fact, StepKind.STOP, f"{leaving.why}; {what} after {gate.now - since:.0f} s", gate)
    return Turn(record, State.DRAINING, f"{leaving.why}: {drain.words(leaving, in_flight, gate)}")


def _stop(record: Record, fact: Fact, kind: StepKind, why: str, gate: Gate) -> Turn:
    leaving = record.leaving
    if leaving is not None and leaving.cause is Cause.HEAL:
        anew = record.ended != fact.runtime_id and (record.disturbed_at or leaving.since) >= leaving.since
        began = gate.now if anew else record.disturbed_at
        record = replace(fail(record, leaving.why, gate, ended=fact.runtime_id), disturbed_at=began)
    else:
        record = replace(record, ended=fact.runtime_id)
    step = Step(kind, record.name, why, runtime_id=fact.runtime_id, grace=gate.policy.stop_grace)
    return Turn(record, State.STOPPING, why, step)


def backoff_sentence(record: Record, gate: Gate) -> str:
    """ "backing off: exited 1, try 4 of 5 in 40 s"."""
    reason = record.last_failure.reason if record.last_failure else "failed"
    left = max(0.0, (record.retry_at or gate.now) - gate.now)
    number, limit = len(record.failures) + 1, gate.policy.attempts
    which = f"try {number} of {limit}" if number <= limit else f"try {number}, as nobody else serves,"
    return f"backing off: {reason}, {which} in {left:.0f} s"


def parked_sentence(record: Record, gate: Gate) -> str:
    """ "parked: exited 1, 5 times; tried again in 29 min"."""
    reason = record.last_failure.reason if record.last_failure else "failed"
    sentence = f"parked: {reason}, {len(record.failures)} failures"
    if gate.policy.park_retry <= 0:
        return f"{sentence}; not tried again by itself (chatglm-hactl restart {record.name} does)"
    left = max(0.0, (record.parked_at or gate.now) + gate.policy.park_retry - gate.now)
    when = f"{left / 60:.0f} min" if left >= 60 else f"{left:.0f} s"
    return f"{sentence}; tried again in {when}"

"""What healing may do: with a cause, one at a time, held where the cause is outside, with backoff and a limit."""

from __future__ import annotations

from collections.abc import Iterator

from hasupervisor.model import Cause, Step, StepKind
from tests.sim.invariants.frame import Moment, cycle, moved_by_hand, step
from tests.sim.lives import Life

# --- 2, 3, 4: what healing may do ---------------------------------------------------------------------------------


@step("2, 3: healing leaves alone whoever serves, however slow its probes")
def healing_needs_a_cause(m: Moment, s: Step) -> Iterator[str]:
    life = _disturbed(m, s)
    if life is None or not life.able or life.runtime_id not in m.ledger.joined:
        return
    p = m.host.policy
    recently = p.hang_after + p.failures * (p.interval + p.timeout) + p.inference_timeout * 2 + 30.0
    blamed = life.lie is not None or m.now - life.bad_at < recently
    silent = not life.traits.reports and life.traits.behind_queue and life.users > 0
    since = max((job.began for job in life.running), default=0.0)  # its slots are full since then
    waited = m.now - max(life.completed_at or 0.0, life.started_at or 0.0, since)
    moved = s.kind is StepKind.STOP and _is_given_up(m, life)
    if not blamed and not moved and not (silent and waited >= p.hang_after):
        yield f"{s.name} was fine and {'busy' if life.users else 'idle'}, but was given {s.kind}: {s.why}"
    answered = life.completed_at if life.completed_at is not None else float("-inf")
    works = life.users > 0 and answered > max(m.now - p.timeout + 0.05, m.daemon.began)
    if works and s.kind is StepKind.KILL:
        yield f"{s.name} was busy, had answered somebody {m.now - answered:.1f} s ago, and was killed: {s.why}"


@step("2: an instance that works on a card that is given up is moved while others serve, and not before")
def a_move_leaves_somebody(m: Moment, s: Step) -> Iterator[str]:
    life = _disturbed(m, s)
    if life is None or not _is_given_up(m, life) or not life.able or life.lie is not None:
        return
    others = [other for other in m.host.lives() if other is not life and other.address in m.host.nginx.live]
    recently = m.now - life.bad_at < m.host.policy.hang_after + 60.0
    if not others and life.runtime_id in m.ledger.joined and not recently:
        yield f"{s.name} works, nobody else serves, and it was given {s.kind}: {s.why}"


@step("2: at most one instance that could serve is disturbed at a time")
def healing_disturbs_one_at_a_time(m: Moment, s: Step) -> Iterator[str]:
    life = _disturbed(m, s)
    if life is None or not life.able or life.runtime_id not in m.ledger.joined or s.kind is not StepKind.STOP:
        return  # users wait in one that is proven to hang: it is killed at once
    others = m.ledger.disturbed - {s.name}
    if others:
        yield f"{s.name} could serve and was given {s.kind} while {', '.join(sorted(others))} was still out ({s.why})"


@step("2: a restart of all takes one after the other")
def a_restart_of_all_goes_one_by_one(m: Moment, s: Step) -> Iterator[str]:
    if s.kind is not StepKind.STOP or m.ledger.cause(m.daemon, s) is not Cause.RESTART:
        return
    records = m.daemon.loop.records()
    command = records[s.name].operation
    same = [r for r in records.values() if r.operation == command]
    leaving = {r.name for r in same if r.leaving is not None and r.leaving.cause is Cause.RESTART}
    if len(leaving) > 1:
        yield f"{', '.join(sorted(leaving))} are restarted at the same time"


@step("4: many turning bad at once is one cause outside them: one is tried, the others are held")
def a_common_cause_is_held(m: Moment, s: Step) -> Iterator[str]:
    life = _disturbed(m, s)
    since = m.ledger.everybody_lied_about_since
    if life is None or since is None or not life.able or life.runtime_id not in m.ledger.routed_when_lies_began:
        return
    if m.now - since < 25.0:
        yield f"{s.name} was given {s.kind} {m.now - since:.1f} s after all probes began to fail"
    others = m.ledger.restarted_in_common_cause - {s.name} - m.daemon.loop.wants.drained
    others &= {r.name for r in m.daemon.loop.records().values() if not m.ledger.is_over(r)}
    if others:
        yield f"{s.name} was given {s.kind} as well as {', '.join(sorted(others))} while all probes fail"


@cycle("4: instances in a common cause stay in the routing, since they may well serve")
def a_common_cause_keeps_its_routing(m: Moment) -> Iterator[str]:
    since = m.ledger.everybody_lied_about_since
    p = m.host.policy
    noticed = p.interval + p.timeout * (p.failures + 0.25) + 1.0  # by all of them
    if since is None or not m.daemon.loop.settled or m.now - since < noticed:
        return
    routed = {route.address for route in m.plan.routing.routes}
    lost = [
        life.name
        for life in m.host.lives()
        if life.able
        and not life.users
        and life.address not in routed
        and life.runtime_id in m.ledger.routed_when_lies_began
    ]
    lost = [name for name in lost if not moved_by_hand(m, name) and name not in m.ledger.restarted_in_common_cause]
    if m.ledger.lasting(("lost", "all"), len(lost) > 1, m.now) > 1.0:
        yield f"{', '.join(lost)} were un-routed although all that is wrong is their probes"


def _is_given_up(m: Moment, life: Life) -> bool:
    """Whether its card was found to be lost or worn, and no person has given it back since."""
    held = [m.host.store.cards[uuid].quarantine for uuid in life.gpus if uuid in m.host.store.cards]
    return any(quarantine is not None for quarantine in held)


def _disturbed(m: Moment, s: Step) -> Life | None:
    """The living process that healing ends with this step, or None when a person wanted it or nothing lives."""
    if s.kind not in (StepKind.STOP, StepKind.KILL):
        return None
    life = m.host.dockerd.lives.get(s.name)
    return life if life is not None and life.alive and m.ledger.cause(m.daemon, s) is Cause.HEAL else None


# --- 5: retries ---------------------------------------------------------------------------------------------------


@step("5: every retry backs off, has a limit, and keeps its reason")
def retries_back_off(m: Moment, s: Step) -> Iterator[str]:
    if s.kind is not StepKind.START:
        return
    record = m.daemon.loop.records()[s.name]
    tries = m.ledger.tries[s.name]
    failed = tries.counted(m.now, m.host.policy.window)
    p = m.host.policy
    if failed and record.last_failure is None:
        yield f"{s.name} is started again and nobody remembers why it failed"
    if not failed:
        return
    waited = m.now - tries.failures[-1]
    if tries.needed:
        due = 0.75 * p.backoff if failed > 1 else 0.0
        if waited < due - 0.1:
            yield f"{s.name} is the only one that serves and is started again after {waited:.2f} s, {due:.2f} s are due"
        return
    if failed >= p.attempts and (p.park_retry <= 0 or waited < p.park_retry - 1.0):
        yield f"{s.name} has failed {failed} times and is started again after {waited:.1f} s"
        return
    due = 0.0 if failed == 1 and tries.served_before else min(p.backoff * 2 ** (failed - 1), p.backoff_max) * 0.75
    if waited < min(due, p.park_retry or due) - 0.1:
        yield f"{s.name} has failed {failed} times and is started again after {waited:.2f} s, {due:.2f} s are due"


@cycle("5: a life fails once, and every failure is that of a life")
def a_life_fails_once(m: Moment) -> Iterator[str]:
    for name, (count, births) in m.ledger.grown.items():
        if m.host.dockerd.births[name] == births:
            yield f"{name} has {count} failures written down, but has lived {births} lives by the last of them but one"


@cycle("5: the count is reset by healthy serving alone")
def only_serving_resets_the_count(m: Moment) -> Iterator[str]:
    for name, record in m.daemon.loop.records().items():
        tries = m.ledger.tries[name]
        window = [at for at in tries.failures if m.now - at < m.host.policy.window - 1.0]
        if m.ledger.lasting(("forgot", name), len(record.failures) < len(window), m.now) > 20.0:
            yield f"{name} has failed {len(window)} times lately, but only {len(record.failures)} are remembered"

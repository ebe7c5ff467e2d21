"""The invariants of the design (DESIGN 3), each a function with its sentence, checked at every cycle and every step.

A function yields what is wrong, in words. What the loop believes is never asked: the truth is the simulated host's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hasupervisor.model import Address, Cause, OperationKind, OperationState, Phase, Plan, Said, State, Step, StepKind
from tests.sim.dockerd import HOST, STICKS
from tests.sim.host import Daemon, Host
from tests.sim.ledger import Ledger
from tests.sim.lives import Life, Mode
from tests.sim.senses import LIST_EVERY


@dataclass(frozen=True, slots=True)
class Moment:
    """What one check looks at: the host, what the checks remember, and the cycle or step that was just decided."""

    host: Host
    ledger: Ledger
    daemon: Daemon
    plan: Plan

    @property
    def now(self) -> float:
        return self.host.engine.now


Check = Callable[[Moment], Iterator[str]]
StepCheck = Callable[[Moment, Step], Iterator[str]]

EVERY_CYCLE: list[tuple[str, Check]] = []
EVERY_STEP: list[tuple[str, StepCheck]] = []


def cycle(sentence: str) -> Callable[[Check], Check]:
    """An invariant that is checked after every cycle."""

    def register(check: Check) -> Check:
        EVERY_CYCLE.append((sentence, check))
        return check

    return register


def step(sentence: str) -> Callable[[StepCheck], StepCheck]:
    """An invariant that is checked when a step begins."""

    def register(check: StepCheck) -> StepCheck:
        EVERY_STEP.append((sentence, check))
        return check

    return register


# --- 1: who is routed ---------------------------------------------------------------------------------------------


@cycle("1: no request goes to an instance that is not proven able to serve")
def only_proven_instances_are_routed(m: Moment) -> Iterator[str]:
    if not m.daemon.loop.settled:
        return
    facts = {fact.address: fact for fact in m.daemon.picture.view().facts}
    for route in m.plan.routing.routes:
        fact = facts.get(route.address)
        life = m.host.dockerd.buried[fact.runtime_id] if fact is not None else None
        if fact is None or fact.phase is not Phase.RUNNING:
            yield f"{route.name} is wanted in the routing, but its process is not there"
        elif life is not None and not life.proven and life.runtime_id not in m.ledger.routed_at_start:
            yield f"{route.name} is wanted in the routing, but has never answered anybody well"


@cycle("1: an instance that cannot serve leaves the routing soon")
def a_bad_one_is_taken_out(m: Moment) -> Iterator[str]:
    if not m.daemon.loop.settled:
        return
    routed = {route.address: route.name for route in m.plan.routing.routes}
    able = [life for life in m.host.lives() if _heard(life) and life.address in routed]
    everybody = {r.name: Address(HOST, r.port) for r in m.daemon.loop.records().values()}
    for name, address in everybody.items():
        life = m.host.dockerd.at(address)
        bound = _seen_bad_within(m, life)
        bad = address in routed and bound is not None and bool(able) and not _most_are_bad(m)
        what = "dead" if life is None else "paused" if life.phase is Phase.PAUSED else str(life.mode)
        kinds = (*map(str, Mode), "dead", "paused")
        lasted = {kind: m.ledger.lasting(("bad", name, kind), bad and kind == what, m.now) for kind in kinds}
        if lasted[what] > (bound or 0.0):
            yield f"{name} is {what} and stays in the routing for more than {bound:.1f} s, while others can serve"


@cycle("1: whoever says that it is unhealthy is not routed while others can serve")
def a_sick_one_stays_out(m: Moment) -> Iterator[str]:
    probes = m.daemon.prober.views()
    routed = {route.name: route.address for route in m.plan.routing.routes}
    sick = [name for name in routed if name in probes and probes[name].said is Said.UNHEALTHY]
    others = [life for life in m.host.lives() if _heard(life) and life.address in routed.values()]
    for name in m.daemon.loop.records():
        wrong = m.daemon.loop.settled and bool(others) and name in sick and not _most_are_bad(m)
        if m.ledger.lasting(("sick", name), wrong, m.now) > 1.2:
            yield f"{name} has said that it is unhealthy and is in the routing"
        if wrong and name not in m.ledger.routed_before:
            yield f"{name} has said that it is unhealthy and is taken into the routing"


def _heard(life: Life) -> bool:
    """Able to serve, and its probes say so."""
    queued = life.traits.behind_queue and len(life.running) >= life.traits.slots
    return life.able and life.lie is None and not queued


def _seen_bad_within(m: Moment, life: Life | None) -> float | None:
    """Seconds within which the witnesses must have told that it cannot serve; None: it can, or nobody can know."""
    p = m.host.policy
    if life is None:
        return LIST_EVERY + p.interval + 1.0
    if life.phase is Phase.PAUSED:
        return LIST_EVERY + p.timeout * 2 + p.interval + _window(m, life) + 1.0
    silence = p.interval + p.timeout * (1.25 + p.failures) + _window(m, life) + 1.5
    match life.mode:
        case Mode.FROZEN:
            return silence
        case Mode.SICK:
            return p.interval + 1.5 if life.lie is None else p.interval + silence
        case Mode.WEDGED if life.traits.reports and life.users:
            return p.hang_after + p.interval + 1.5
        case _:
            return None


def _window(m: Moment, life: Life) -> float:
    """Seconds for which a silent instance may still count as busy."""
    return max(m.host.policy.timeout, 4.0 * m.host.traits.service * life.slow, 2.0)


def _most_are_bad(m: Moment) -> bool:
    """A common cause, as far as the truth tells: two or more, and most of those that live, are not well."""
    lives = [life for life in m.host.lives() if life.alive and life.proven]
    bad = [life for life in lives if not life.able or life.lie is not None or m.now - life.bad_at < 60.0]
    return len(bad) >= 2 and 2 * len(bad) >= len(lives)


@cycle("1: an instance that is able to serve does not stay out")
def an_able_one_does_not_stay_out(m: Moment) -> Iterator[str]:
    p = m.host.policy
    view = m.daemon.picture.view()
    listed = {fact.runtime_id for fact in view.facts}
    drained = m.daemon.loop.wants.drained
    bound = 4.0 * p.interval + p.successes * p.interval + p.timeout + 6.0 + 2.0 * m.host.traits.prompt
    for life in m.host.lives():
        record = m.daemon.loop.records().get(life.name)
        if record is None:
            continue
        leaves = record.leaving is not None or record.stuck is not None or life.name in drained or life.slow > 1.0
        well = life.able and life.lie is None and not life.users and life.runtime_id in listed and view.trouble is None
        out = well and not leaves and m.daemon.gateway.at_rest and m.daemon.loop.settled
        out = out and life.address not in m.host.nginx.live
        if m.ledger.lasting(("out", life.runtime_id), out, m.now) > bound:
            yield f"{life.name} is able to serve and has been kept out for {bound:.0f} s ({record.state})"


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
    waited = m.now - max(life.completed_at or 0.0, life.started_at or 0.0)
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
    others &= {r.name for r in m.daemon.loop.records().values() if r.stuck is None}
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
    lost = [name for name in lost if not _moved_by_hand(m, name) and name not in m.ledger.restarted_in_common_cause]
    if m.ledger.lasting(("lost", "all"), len(lost) > 1, m.now) > 1.0:
        yield f"{', '.join(lost)} were un-routed although all that is wrong is their probes"


def _moved_by_hand(m: Moment, name: str) -> bool:
    record = m.daemon.loop.records().get(name)
    leaving = record.leaving if record is not None else None
    by_hand = leaving is not None and leaving.cause is not Cause.HEAL
    return by_hand or name in m.daemon.loop.wants.drained


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


# --- 6: a person wins ---------------------------------------------------------------------------------------------


@step("6: while a person has paused the service, nothing is started or stopped but by a person's command")
def a_pause_holds_everything_automatic(m: Moment, s: Step) -> Iterator[str]:
    if m.host.desk.wants.pause is None or s.kind is StepKind.CLEAR:
        return
    record = m.daemon.loop.records().get(s.name)
    running = [o for o in m.daemon.loop.operations if o.state is OperationState.RUNNING]
    named = any(s.name in o.targets or (record is not None and record.operation == o.id) for o in running)
    scaled = any(o.kind is OperationKind.SCALE for o in running)
    wished = record is not None and record.leaving is not None and record.leaving.cause is not Cause.HEAL
    if not (named or scaled or wished or s.name in m.daemon.loop.wants.drained):
        yield f"{s.name} is given {s.kind} in a pause: {s.why}"


@step("6: an instance that was drained by hand is not started")
def a_drained_one_stays_out(m: Moment, s: Step) -> Iterator[str]:
    if s.kind is StepKind.START and s.name in m.host.desk.wants.drained:
        yield f"{s.name} is started although it is drained by hand"


@cycle("6: an instance that was drained by hand is not routed")
def a_drained_one_is_not_routed(m: Moment) -> Iterator[str]:
    routed = {route.name for route in m.plan.routing.routes}
    for name in m.host.desk.wants.drained & routed:
        if m.daemon.loop.settled and m.ledger.lasting(("drained", name), True, m.now) > 0.5:
            yield f"{name} is drained by hand and still in the routing"
    for name in m.host.desk.wants.drained - routed:
        m.ledger.lasting(("drained", name), False, m.now)


# --- the order of things ------------------------------------------------------------------------------------------


@step("drain: an instance that could serve is stopped when nginx has let go of it and nothing is in flight")
def a_healthy_one_is_stopped_quietly(m: Moment, s: Step) -> Iterator[str]:
    life = m.host.dockerd.lives.get(s.name)
    if s.kind not in (StepKind.STOP, StepKind.KILL) or life is None or not life.able or life.runtime_id != s.runtime_id:
        return
    record = m.daemon.loop.records().get(s.name)
    p = m.host.policy
    limit = min(p.drain_timeout, p.hang_after) if m.ledger.cause(m.daemon, s) is Cause.HEAL else p.drain_timeout
    since = record.leaving.since if record is not None and record.leaving is not None else m.now
    waited = m.now - since >= limit
    by_hand = m.ledger.cause(m.daemon, s) is not Cause.HEAL and life.lie is None
    if life.address in m.host.nginx.live and by_hand:
        yield f"{s.name} could serve and is given {s.kind} while nginx still sends it requests: {s.why}"
    if life.users and not waited and s.kind is StepKind.STOP:
        yield f"{s.name} could serve and is stopped with {life.users} requests in flight: {s.why}"


@step("steps: nothing is started that is there, and no step is meant for an earlier life")
def steps_fit_the_truth(m: Moment, s: Step) -> Iterator[str]:
    life = m.host.dockerd.lives.get(s.name)
    if s.kind is StepKind.START and life is not None and not m.ledger.unknown(m.daemon, life):
        yield f"{s.name} is started although it is there ({life.phase}, {life.runtime_id})"
    if s.name in m.daemon.hands.acting():
        yield f"{s.name} is given {s.kind} while {m.daemon.hands.acting()[s.name]} is under way"
    earlier = s.kind is not StepKind.START and life is not None and life.runtime_id != s.runtime_id
    if earlier and life is not None and not m.ledger.unknown(m.daemon, life):
        yield f"{s.name}: {s.kind} is meant for {s.runtime_id}, but {life.runtime_id} lives"


@step("placement: every instance gets one card that is not given up, and no card is promised more than it has")
def no_card_is_promised_twice(m: Moment, s: Step) -> Iterator[str]:
    board, policy = m.host.board, m.host.policy.gpu
    if s.kind is not StepKind.START or board is None or policy is None:
        return
    card = next((card for card in board.cards if (card.uuid,) == s.gpus), None)
    if card is None:
        yield f"{s.name} is started on {s.gpus or 'no GPU'}"
        return
    held = m.host.store.cards.get(card.uuid)
    if held is not None and (held.quarantine is not None or held.by_hand is not None):
        yield f"{s.name} is started on GPU {card.index}, which is quarantined"
    known = [life for life in board.on(card) if not m.ledger.unknown(m.daemon, life)]
    promised = (len(known) + 1) * policy.need_bytes + policy.reserve_bytes
    if promised > card.total:
        yield f"{s.name} is started on GPU {card.index}, which {', '.join(life.name for life in known)} fill"


@step("placement: where one loads at a time, nothing is started while another one loads in the same place")
def one_loads_at_a_time(m: Moment, s: Step) -> Iterator[str]:
    if s.kind is not StepKind.START or not m.host.policy.one_at_a_time:
        return
    starting = [
        n
        for n, kind in m.daemon.hands.acting().items()
        if kind == StepKind.START and n != s.name and m.daemon.loop.records()[n].gpus == s.gpus
    ]
    loading = [
        life.name
        for life in m.host.lives()
        if life.name != s.name
        and life.gpus == s.gpus
        and life.phase is Phase.RUNNING
        and not life.loaded
        and not life.stuck
        and not m.ledger.unknown(m.daemon, life)
        and not life.standing
        and m.now - life.bad_at > LIST_EVERY + 0.5
    ]
    if starting or loading:
        yield f"{s.name} is started while {', '.join(starting + loading)} loads"


@cycle("scaling: never more instances than are wanted, beside those that leave or are stuck; each its own port")
def as_many_as_wanted(m: Moment) -> Iterator[str]:
    records = m.daemon.loop.records().values()
    staying = [r for r in records if r.stuck is None and not (r.leaving and r.leaving.cause is Cause.SCALE)]
    paused = m.host.desk.wants.pause is not None
    over = m.daemon.loop.settled and not paused and len(staying) > m.host.desk.wants.desired
    if m.ledger.lasting(("over", "all"), over, m.now) > 1.5:
        yield f"{len(staying)} instances stay, {m.host.desk.wants.desired} are wanted"
    ports = [r.port for r in records]
    if len(set(ports)) < len(ports):
        yield f"two instances have one port: {sorted(ports)}"


@cycle("words: whoever is not well has a reason, and the summary counts what serves")
def everybody_has_a_reason(m: Moment) -> Iterator[str]:
    serving = [judged for judged in m.plan.instances if judged.state is State.SERVING]
    if not m.plan.summary.startswith(f"{len(serving)} of "):
        yield f"the summary says {m.plan.summary!r}, {len(serving)} serve"
    for judged in m.plan.instances:
        if not judged.reason.strip():
            yield f"{judged.record.name} is {judged.state} for no reason"
        if m.daemon.loop.settled and judged.state is State.SERVING and judged.fact is None:
            yield f"{judged.record.name} is shown as serving although nothing runs"


# --- 9: the daemon dies -------------------------------------------------------------------------------------------


@cycle("9: a daemon that comes back wants what was wanted, and looks before it acts")
def a_restart_keeps_the_wants(m: Moment) -> Iterator[str]:
    if m.daemon.loop.wants != m.host.desk.wants:
        yield f"wants are {m.daemon.loop.wants}, people asked for {m.host.desk.wants}"
    if not m.daemon.loop.settled and m.plan.steps:
        yield f"steps were taken before everybody had been asked: {m.plan.steps}"


@cycle("9: the start of the daemon un-routes nobody who serves")
def a_start_unroutes_nobody(m: Moment) -> Iterator[str]:
    if not m.daemon.loop.settled or m.now - (m.daemon.settled_at or m.now) > 1.0:
        return
    routed = {route.address for route in m.plan.routing.routes}
    for life in m.host.lives():
        served = life.runtime_id in m.ledger.served_at_start and life.able and life.lie is None
        fine = served and m.now - life.bad_at > 30.0 and not life.traits.behind_queue
        if fine and life.address not in routed and not _moved_by_hand(m, life.name):
            record = m.daemon.loop.records().get(life.name)
            if record is not None and record.leaving is None:
                yield f"{life.name} served when the daemon started and was un-routed by it"


__all__ = ["EVERY_CYCLE", "EVERY_STEP", "STICKS", "Moment"]

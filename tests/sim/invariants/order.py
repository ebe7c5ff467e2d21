"""A person wins, things happen in their order and place, everything has its words, and a new daemon goes on."""

from __future__ import annotations

from collections.abc import Iterator

from hasupervisor.model import Cause, OperationKind, OperationState, Phase, State, Step, StepKind
from tests.sim.invariants.frame import Moment, cycle, moved_by_hand, step
from tests.sim.lives import Life
from tests.sim.senses import LIST_EVERY

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
        and not _is_not_awaited(m, life)
    ]
    if starting or loading:
        yield f"{s.name} is started while {', '.join(starting + loading)} loads"


def _is_not_awaited(m: Moment, life: Life) -> bool:
    """Whether it loads for far longer than usual while nobody serves: then users wait for whoever else may come up.

    One that nobody can ask is past its `start_timeout`: it would be ended if it could be asked, and whoever waited for
    it would wait without an end.
    """
    age = m.now - (life.started_at or m.now)
    if life.name in m.host.dockerd.unaskable and age > m.host.policy.start_timeout:
        return True
    others = [other for other in m.host.lives() if other.able and other.address in m.host.nginx.live]
    return not others and age > 2.0 * 0.7 * m.host.traits.load


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
        if fine and life.address not in routed and not moved_by_hand(m, life.name):
            record = m.daemon.loop.records().get(life.name)
            if record is not None and record.leaving is None:
                yield f"{life.name} served when the daemon started and was un-routed by it"

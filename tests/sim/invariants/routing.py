"""Who is routed: those who are proven able to serve, all of them, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator

from hasupervisor.model import Address, Phase, Said
from tests.sim.dockerd import HOST
from tests.sim.invariants.frame import Moment, cycle
from tests.sim.lives import Life, Mode
from tests.sim.senses import LIST_EVERY


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
        bound = seen_bad_within(m, life)
        bad = address in routed and bound is not None and bool(able) and not _most_are_bad(m)
        what = "dead" if life is None else "paused" if life.phase is Phase.PAUSED else str(life.mode)
        if m.ledger.lasting_as(("bad", name), what if bad else None, m.now) > (bound or 0.0):
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
    return life.able and not life.grinds and life.lie is None and not queued


def seen_bad_within(m: Moment, life: Life | None) -> float | None:
    """Seconds within which the witnesses must have told that it cannot serve; None: it can, or nobody can know."""
    p = m.host.policy
    if life is None:
        return LIST_EVERY + p.interval + 1.0
    if life.name in m.host.dockerd.unaskable:
        return None
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
        leaves = leaves or life.name in m.host.dockerd.unaskable
        well = life.able and life.lie is None and not life.users and life.runtime_id in listed and view.trouble is None
        out = well and not leaves and m.daemon.gateway.at_rest and m.daemon.loop.settled
        out = out and life.address not in m.host.nginx.live
        if m.ledger.lasting(("out", life.runtime_id), out, m.now) > bound:
            yield f"{life.name} is able to serve and has been kept out for {bound:.0f} s ({record.state})"

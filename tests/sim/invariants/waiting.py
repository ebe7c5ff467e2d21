"""Nothing waits without an end for something that waits without an end, and whoever waits has been told of."""

from __future__ import annotations

from collections.abc import Iterator

from hasupervisor.decide.placement import LIST_LASTS
from hasupervisor.model import Cause, Phase, Record, State
from tests.sim.invariants.frame import Moment, cycle
from tests.sim.invariants.routing import seen_bad_within
from tests.sim.lives import Life
from tests.sim.senses import LIST_EVERY, PROMPT_EVERY

HOLD = 30.0
"""Seconds for which a common cause may hold all of those that turned bad together."""

JOINS = 10.0
"""Seconds that nginx, the runtime and the daemon's own pace may add to a start and an end."""


@cycle("11: with somebody who can be healed, somebody serves again within a bound that the configuration gives")
def somebody_serves_again(m: Moment) -> Iterator[str]:
    """Bound: detect + HOLD + end + wait + load + join (`dark_bound`), counted while no other fault goes on that ends.

    detect: `hang_after`, or two prompts of an idle one (30 s + 2 x `inference_timeout`), beside
    `interval` + `failures` x 1.25 `timeout`. end: min(`drain.timeout`, `hang_after`) + `stop_grace`.
    wait: the longest backoff before `attempts` are used up, and `start_timeout` for another one that is tried first, or
    that loads and comes to no end.
    """
    live = m.host.nginx.live
    dark = not any(life.able and life.address in live for life in m.host.lives())
    bound = dark_bound(m)
    hope = [r.name for r in m.daemon.loop.records().values() if _can_be_healed(m, r)] if dark else []
    if m.ledger.lasting(("dark", "all"), bool(hope) and not _goes_by(m), m.now) > bound:
        yield f"nobody serves for {bound:.0f} s, though {', '.join(hope)} could be healed: {_said(m, hope)}"


@cycle("11: nothing waits without an end for something that waits without an end")
def nobody_waits_for_ever(m: Moment) -> Iterator[str]:
    """Bound: `dark_bound`, and as much again for every other instance, since they are healed one by one."""
    live, calm = m.host.nginx.live, not _goes_by(m)
    bound = dark_bound(m) * max(1, len(m.daemon.loop.records()))
    for name, record in m.daemon.loop.records().items():
        life = m.host.dockerd.lives.get(name)
        well = life is not None and life.able and life.address in live
        waits = not well and calm and _can_be_healed(m, record)
        if m.ledger.lasting(("waits", name), waits, m.now) > bound:
            yield f"{name} could be healed and has waited for {bound:.0f} s: {_said(m, [name])}"


@cycle("11: while nobody serves, who has served before does not wait for a loader that comes to no end")
def nobody_waits_for_a_stuck_loader(m: Moment) -> Iterator[str]:
    """Bound: twice a usual load (10 s at least), the longest backoff, and a load for each of the others."""
    p, live = m.host.policy, m.host.nginx.live
    load = m.host.traits.load * 1.4
    records = m.daemon.loop.records()
    backoff = 1.25 * min(p.backoff_max, p.backoff * 2.0 ** (p.attempts - 1))
    bound = max(10.0, 2.0 * load) + backoff + (len(records) + 1) * (load + JOINS)
    dark = not any(life.able and life.address in live for life in m.host.lives()) and not _goes_by(m)
    for name, record in records.items():
        gone = dark and m.host.dockerd.lives.get(name) is None and record.load_s is not None
        if m.ledger.lasting(("absent", name), gone and _can_be_healed(m, record), m.now) > bound:
            yield f"nobody serves, and {name} is not started for {bound:.0f} s: {_said(m, [name])}"


@cycle("11: of whoever cannot be healed a person is told, with the next command")
def a_person_is_told(m: Moment) -> Iterator[str]:
    """Bound: `start_timeout`, for whoever loads, and `dark_bound`."""
    told = {problem.subject for problem in m.plan.problems if problem.hint}
    live, calm, held = m.host.nginx.live, not _goes_by(m), m.host.refused_cards()
    bound = m.host.policy.start_timeout + dark_bound(m)
    for name in m.daemon.loop.records():
        life = m.host.dockerd.lives.get(name)
        well = life is not None and life.able and life.address in live
        untold = not well and calm and name not in told and m.host.endless.hopeless(name, held)
        if m.ledger.lasting(("untold", name), untold, m.now) > bound:
            yield f"{name} cannot be healed and nobody has been told for {bound:.0f} s: {_said(m, [name])}"


@cycle("11: nothing waits for a list of instances that the runtime would give")
def no_list_grows_old(m: Moment) -> Iterator[str]:
    """Bound: LIST_LASTS; a runtime that does not answer is another matter, of which a person is told."""
    view = m.daemon.picture.view()
    if view.listed_at is not None and view.trouble is None and m.now - view.listed_at > LIST_LASTS:
        yield f"the runtime answers, and its list is {m.now - view.listed_at:.0f} s old"


@cycle("12: nobody is shown as serving for longer than it takes to see that it cannot")
def nothing_green_is_bad(m: Moment) -> Iterator[str]:
    """Bound: as for the routing; where no probe can be put, three rounds of them."""
    p = m.host.policy
    blind = 3.0 * (p.interval + p.timeout) + 2.0
    for judged in m.plan.instances:
        name = judged.record.name
        life = m.host.dockerd.lives.get(name)
        there = life is not None and life.phase in (Phase.RUNNING, Phase.PAUSED)
        bound = _seen_within(m, life) if life is not None and there else LIST_EVERY + p.interval + 2.0
        green = judged.state is State.SERVING and bound is not None and not _goes_by(m)
        if m.ledger.lasting(("green", name), green, m.now) > (bound or 0.0) + blind:
            what = life.phase if life is not None and not there else life.mode if life is not None else "gone"
            yield f"{name} is {what} and is shown as serving: {judged.reason}"


def _seen_within(m: Moment, life: Life) -> float | None:
    unaskable = life.name in m.host.dockerd.unaskable
    return 0.0 if unaskable and life.standing else seen_bad_within(m, life)


def dark_bound(m: Moment) -> float:
    """Seconds from a fault until somebody serves again, with nothing else going wrong."""
    p, traits = m.host.policy, m.host.traits
    load = traits.load * 1.4
    detect = max(p.hang_after, PROMPT_EVERY + 2.0 * p.inference_timeout) + p.interval + p.failures * 1.25 * p.timeout
    end = min(p.drain_timeout, p.hang_after) + p.stop_grace
    backoff = 1.25 * min(p.backoff_max, p.backoff * 2.0 ** (p.attempts - 1))
    join = p.successes * p.interval + p.inference_timeout + JOINS
    return detect + HOLD + end + backoff + p.start_timeout + load + join


def _can_be_healed(m: Moment, record: Record) -> bool:
    """Whether everything that it needs is there, and no fault of its own goes on: it only has to be healed."""
    name, dockerd = record.name, m.host.dockerd
    given_up = record.stuck is not None or record.parked_at is not None
    by_hand = name in m.daemon.loop.wants.drained or (
        record.leaving is not None and record.leaving.cause is not Cause.HEAL
    )
    if given_up or by_hand or record.port in dockerd.taken_ports:
        return False
    fails = m.now < dockerd.launch_fails.get(name, 0.0) or m.now < dockerd.crashes.get(name, (0.0, False))[0]
    life = dockerd.lives.get(name)
    paused = life is not None and life.phase is Phase.PAUSED
    hangs_early = life is not None and life.alive and not life.proven and life.standing  # only `start_timeout` tells
    return not fails and not paused and not hangs_early and not m.host.endless.hopeless(name, m.host.refused_cards())


def _goes_by(m: Moment) -> bool:
    """Whether something is the matter now that ends by itself, or that a person has ordered."""
    if m.ledger.went_by[0] != m.host.cycles:
        m.ledger.went_by = (m.host.cycles, _something_is_the_matter(m))
    return m.ledger.went_by[1]


def _something_is_the_matter(m: Moment) -> bool:
    host, dockerd, board = m.host, m.host.dockerd, m.host.board
    runtime = dockerd.down or m.daemon.picture.view().trouble is not None or m.now < dockerd.lies_until
    nginx = m.now < max(host.nginx.broken_until, host.nginx.deaf_until, host.blind_until)
    lives = any(life.lie is not None or life.slow > 1.0 or _loads_slowly(life) for life in host.lives())
    gpus = board is not None and (board.down or any(card.silent_since is not None for card in board.cards))
    paused = host.desk.wants.pause is not None or not m.daemon.loop.settled
    return runtime or nginx or lives or gpus or paused


def _loads_slowly(life: Life) -> bool:
    return life.alive and life.slow_start and not life.loaded


def _said(m: Moment, names: list[str]) -> str:
    return "; ".join(f"{j.record.name} {j.state}: {j.reason}" for j in m.plan.instances if j.record.name in names)

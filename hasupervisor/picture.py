"""Puts the one frozen picture together that status, metrics and the page are made from."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hasupervisor import __version__
from hasupervisor.autoscaler import Autoscaler
from hasupervisor.config import Config
from hasupervisor.loop import Loop
from hasupervisor.memory import Scribe
from hasupervisor.model import Colour, Plan, Problem, TrafficView, World
from hasupervisor.report.snapshot import AutoscaleView, GpusView, Snapshot

RUNTIME_NAMES = {"docker": "dockerd", "process": "the keepers of the processes"}


@dataclass(frozen=True)
class Easel:
    """Where the picture is taken from."""

    loop: Loop
    scribe: Scribe
    config: Callable[[], Config]
    traffic: Callable[[], TrafficView]
    autoscaler: Autoscaler
    probe_trouble: Callable[[], str | None]
    drill: Callable[[], Problem | None]  # one that is under way
    troubles: Callable[[], Sequence[Problem]]  # of parts that instances do not depend on, and of the runtime's files
    clock: Callable[[], float]
    wall: Callable[[], float]
    started_wall: float


def take(easel: Easel) -> Snapshot:
    """The picture of now. The first cycle must have ended."""
    plan, world = easel.loop.latest, easel.loop.world
    assert plan is not None
    assert world is not None
    config = easel.config()
    own = _own_problems(easel)
    return Snapshot(
        service=config.service.name,
        host=socket.gethostname(),
        version=__version__,
        started_wall=easel.started_wall,
        now=easel.clock(),
        now_wall=easel.wall(),
        cycled_at=world.now,
        cycled_wall=world.now_wall,
        settled=easel.loop.settled,
        health=_health(plan, own),
        summary=plan.summary,
        problems=(*plan.problems, *own),
        wants=easel.loop.wants,
        policy=easel.loop.policy,
        runtime_name=RUNTIME_NAMES[config.service.runtime],
        runtime=world.runtime,
        gateway=world.gateway,
        autoscale=_autoscale(easel.autoscaler),
        bind=config.service.bind,
        instances=plan.instances,
        traffic=easel.traffic(),
        operations=easel.loop.operations,
        gpus=_gpus(plan, world),
    )


def _gpus(plan: Plan, world: World) -> GpusView | None:
    if world.gpus is None:
        return None
    return GpusView(world.gpus.driver, world.gpus.kernel_log, plan.cards, plan.room, plan.no_room)


def _own_problems(easel: Easel) -> tuple[Problem, ...]:
    """What troubles the daemon itself, while it goes on serving."""
    found: list[Problem] = []
    trouble = easel.scribe.trouble
    if trouble is not None:
        found.append(Problem("memory", f"{trouble.sentence}; what is new is kept in memory", trouble.hint))
    probes = easel.probe_trouble()
    if probes is not None:
        found.append(Problem("probes", probes, "chatglm-hactl history --since 10m"))
    drill = easel.drill()
    if drill is not None:  # whoever is called at night should see that it is on purpose
        found.append(drill)
    found.extend(easel.troubles())
    return tuple(found)


def _health(plan: Plan, own: tuple[Problem, ...]) -> Colour:
    return Colour.YELLOW if own and plan.health is Colour.GREEN else plan.health


def _autoscale(autoscaler: Autoscaler) -> AutoscaleView:
    view, rules = autoscaler.view(), autoscaler.judge.rules
    ours = view.opinions[rules.policy]
    return AutoscaleView(
        policy=rules.policy,
        sentence=view.sentence,
        inputs=ours.inputs,
        opinions=view.opinions,
        slots=view.slots.count,
        slots_how=view.slots.how,
        windows={
            "sample": rules.sample,
            "evaluate": rules.evaluate,
            "up": rules.up_samples * rules.sample,
            "down": rules.down_samples * rules.sample,
        },
        samples=view.samples,
        latest=view.latest,
        age_s=view.age_s,
    )

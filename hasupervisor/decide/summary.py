"""The words for people: colours, the one-line summary, the problems with their next command, the evidence."""

from __future__ import annotations

from collections.abc import Sequence

from hasupervisor.decide.brakes import CommonCause
from hasupervisor.decide.gpu.ledger import WAITS
from hasupervisor.decide.placement import stale_list
from hasupervisor.model import (
    Cause,
    Colour,
    GatewayView,
    Judged,
    Phase,
    Problem,
    State,
    TrafficView,
    VerdictKind,
    World,
)
from hasupervisor.model.gpu import CardJudged

LONG = 60.0
"""Seconds after which a wait that should be short is a problem of its own, with the next command."""

_COLOURS = {
    State.SERVING: Colour.GREEN,
    State.STARTING: Colour.YELLOW,
    State.LOADING: Colour.YELLOW,
    State.SUSPECT: Colour.YELLOW,
    State.DRAINING: Colour.YELLOW,
    State.STOPPING: Colour.YELLOW,
    State.BACKOFF: Colour.RED,
    State.PARKED: Colour.RED,
}


def colour(state: State, *, drained: bool) -> Colour:
    """Green serves; yellow is on its way up, down, or suspect; red has failed. A drained one has not failed."""
    return Colour.YELLOW if drained and state is State.PARKED else _COLOURS[state]


def serving(judged: Sequence[Judged]) -> int:
    """How many serve: proven, and routed as far as the gateway has confirmed."""
    return sum(1 for j in judged if j.state is State.SERVING)


def sentence(world: World, judged: Sequence[Judged]) -> str:
    """ "2 of 3 serving"."""
    return f"{serving(judged)} of {world.wants.desired} serving"


def health(world: World, judged: Sequence[Judged], problems: Sequence[Problem]) -> Colour:
    """Red when nothing serves although something should; green when all that is wanted serves and nothing is wrong.

    Yellow where nobody knows: whoever is in rotation and cannot be asked may well serve.
    """
    up = serving(judged)
    unknown = any(j.record.in_rotation and j.verdict.kind is VerdictKind.UNKNOWN for j in judged)
    if world.wants.desired > 0 and up == 0 and not unknown:
        return Colour.RED
    return Colour.GREEN if up >= world.wants.desired and not problems else Colour.YELLOW


def problems(
    world: World,
    judged: Sequence[Judged],
    cause: CommonCause | None,
    membership: str | None,
    gpus: Sequence[Problem] = (),
) -> tuple[Problem, ...]:
    """What a person should know, the worst first, each with the next command."""
    found: list[Problem] = []
    if world.runtime.trouble is not None:
        found.append(
            Problem("runtime", f"{world.runtime.trouble}; routing stays as it was", "chatglm-hactl history --since 10m")
        )
    elif (old := stale_list(world)) is not None:
        words = f"{old.removeprefix('waits: ')}; until the next one nothing is started or ended"
        found.append(Problem("runtime", words, "systemctl restart chatglm-ha (instances are not touched)"))
    found.extend(_gateway_problems(world.gateway))
    if cause is not None:
        words = f"common cause: {cause.sentence(world.now)}; one at a time is restarted, to see whether it helps"
        found.append(Problem("service", words, "chatglm-hactl history --since 10m"))
    if membership is not None:
        found.append(Problem("service", membership, "chatglm-hactl config show"))
    found.extend(gpus)
    ranked = sorted(judged, key=lambda j: (j.colour is not Colour.RED, j.record.name))
    found.extend(problem for j in ranked if (problem := _instance_problem(j, world)) is not None)
    return tuple(found)


def _gateway_problems(gateway: GatewayView) -> list[Problem]:
    if gateway.ok:
        return []
    return [Problem("nginx", gateway.reason or "does not answer", "chatglm-hactl nginx test")]


def _instance_problem(judged: Judged, world: World) -> Problem | None:
    hint = _hint(judged, world)
    return Problem(judged.record.name, judged.reason, f"chatglm-hactl {hint}") if hint is not None else None


def _hint(judged: Judged, world: World) -> str | None:
    """The next command for whoever is not well, or is held for longer than things take; None: nothing is wrong."""
    name, record = judged.record.name, judged.record
    held = world.wants.pause is not None and "paused by" in judged.reason
    match judged.state:
        case State.PARKED if record.stuck is not None:
            return f"explain {name}"
        case State.PARKED if name in world.wants.drained:
            return f"undrain {name}"
        case State.SUSPECT | State.STARTING | State.BACKOFF if held:
            return "resume"
        case State.STARTING | State.BACKOFF if judged.reason.startswith(WAITS):
            return "gpu list"
        case State.BACKOFF | State.PARKED:
            return f"logs {name} --last-failure"
        case State.STARTING if record.waits_since is not None and world.now - record.waits_since > LONG:
            return f"explain {name}"
        case State.SUSPECT:
            return f"explain {name}"
        case State.DRAINING if record.leaving is not None and record.leaving.cause is Cause.HEAL:
            return f"explain {name}"
        case State.DRAINING if record.leaving is not None and record.leaving.unrouted_since is None:
            return "nginx test" if world.now - record.leaving.since > LONG else None
        case _:
            return None


def evidence(judged: Judged, world: World, gpus: Sequence[CardJudged] = ()) -> tuple[str, ...]:
    """The witnesses behind a verdict, one sentence each, for `explain`."""
    lines = [f"verdict {judged.verdict.kind}: {judged.verdict.sentence}"]
    lines.extend(_runtime_evidence(judged, world))
    lines.extend(_gpu_evidence(judged, gpus))
    lines.extend(_probe_evidence(judged, world.now))
    lines.extend(_traffic_evidence(judged.traffic, world.now))
    record = judged.record
    lines.append("in rotation" if record.in_rotation else "not in rotation")
    if record.leaving is not None:
        lines.append(f"on its way out for {world.now - record.leaving.since:.1f} s: {record.leaving.why}")
    if record.failures:
        lines.append(
            f"{len(record.failures)} of {world.policy.attempts} failures within {world.policy.window:.0f} s of serving"
        )
    return tuple(lines)


def _runtime_evidence(judged: Judged, world: World) -> list[str]:
    fact = judged.fact
    age = "" if world.runtime.trouble is None else f" (old: {world.runtime.trouble})"
    if fact is None:
        return [f"the runtime does not list it{age}"]
    lines = [f"the runtime says {fact.phase}{age}, reached at {fact.address}"]
    if fact.phase is Phase.RUNNING and fact.started_at is not None:
        lines[0] += f", started {world.now - fact.started_at:.0f} s ago"
    return lines


def _gpu_evidence(judged: Judged, gpus: Sequence[CardJudged]) -> list[str]:
    fact = judged.fact
    if fact is None or not gpus:
        return []
    if not fact.gpus:
        return ["was started without a GPU of its own"]
    cards = {card.view.uuid: card for card in gpus}
    lines = [_card_line(uuid, cards.get(uuid)) for uuid in fact.gpus]
    poisoned = judged.record.poisoned
    return [*lines, f"its CUDA context is lost: {poisoned.why}"] if poisoned is not None else lines


def _card_line(uuid: str, card: CardJudged | None) -> str:
    if card is None:
        return f"on {uuid}, which NVML does not list"
    return f"on GPU {card.view.index} ({uuid}), which is {card.state}{f': {card.reason}' if card.reason else ''}"


def _probe_evidence(judged: Judged, now: float) -> list[str]:
    probe = judged.probe
    if probe is None:
        return ["has not been asked"]
    lines: list[str] = []
    if probe.answered_at is not None and probe.said is not None:
        lines.append(f"last answered {now - probe.answered_at:.1f} s ago: {probe.said} ({probe.successes} in a row)")
    if probe.failures:
        lines.append(f"missed {probe.failures} probes in a row: {probe.error}")
    if probe.progress is not None:
        p = probe.progress
        lines.append(f"reports {p.in_flight} in flight, {p.queued} queued, {p.steps} steps, {p.tokens} tokens")
    if probe.prompted_at is not None:
        outcome = "answered" if probe.prompt_ok else f"not answered: {probe.prompt_error}"
        lines.append(f"its last synthetic prompt, {now - probe.prompted_at:.0f} s ago, was {outcome}")
    return lines


def _traffic_evidence(traffic: TrafficView, now: float) -> list[str]:
    known = f"{traffic.in_flight} connections of users" if traffic.in_flight_known else "connections cannot be counted"
    lines = [known]
    if traffic.completed_at is not None:
        lines.append(f"last answered a user {now - traffic.completed_at:.1f} s ago")
    if traffic.idle_since is not None:
        lines.append(f"its processes have used no CPU for {now - traffic.idle_since:.1f} s")
    if traffic.errors_in_row:
        lines.append(f"its last {traffic.errors_in_row} answers to users were errors")
    return lines

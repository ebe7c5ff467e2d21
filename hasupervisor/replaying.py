"""Replays recorded or given traffic through a policy, for people who choose settings before touching production."""

from __future__ import annotations

import asyncio
import difflib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hasupervisor.autoscaler import Autoscaler
from hasupervisor.decide.autoscale.facts import Rules, Sample
from hasupervisor.decide.autoscale.replay import Host, Row, Total, Traffic, recorded, replay
from hasupervisor.memory import MemoryTrouble, Scribe
from hasupervisor.report.desk import Invalid, NoSuch, ReplayAsked, Unavailable

SEED = 1
"""Two replays that differ in a setting meet the same chance."""

LONGEST = 7 * 86_400.0
USUAL_LOAD_S = 60.0
USUAL_SLOTS = 4
_HOST = ("start", "load_s")
_WHOLE = ("min", "max", "up_samples", "down_samples", "slots", "start")


@dataclass(frozen=True)
class Course:
    """What is played."""

    trace: Sequence[Traffic]
    seconds: float
    rules: Rules
    host: Host


async def play(
    asked: ReplayAsked, autoscaler: Autoscaler, scribe: Scribe, now_wall: float
) -> AsyncIterator[Row | Total]:
    """Rows, the total at the end. Raises Invalid, NoSuch, Unavailable; others have their turn after each row."""
    course = await _course(asked, autoscaler, scribe, now_wall)
    for row in replay(course.trace, course.seconds, course.rules, course.host, random.Random(SEED)):
        yield row
        await asyncio.sleep(0)


async def _course(asked: ReplayAsked, autoscaler: Autoscaler, scribe: Scribe, now_wall: float) -> Course:
    rules, changes = _rules(asked, autoscaler.judge.rules)
    start = int(changes.get("start", rules.min))
    if asked.trace is not None:
        trace = [Traffic(at, qps, work_s) for at, qps, work_s in asked.trace]
        # The last entry goes on for as long as the one before it did.
        tail = trace[-1].at - trace[-2].at if len(trace) > 1 else 600.0
        seconds = trace[-1].at + tail
    else:
        since = asked.since if asked.since is not None else now_wall - 3600.0
        samples = await _samples(scribe, since)
        trace, seconds = list(recorded(samples)), samples[-1].at - samples[0].at
        start = int(changes.get("start", min(max(samples[0].desired, rules.min), rules.max)))
    if seconds > LONGEST:
        raise Invalid(
            f"{seconds / 86_400:.0f} days are too long to be replayed; at most 7",
            "chatglm-hactl autoscale replay --since 1d",
        )
    slots = rules.slots or autoscaler.judge.told or USUAL_SLOTS
    load_s = changes.get("load_s", autoscaler.load_seconds or USUAL_LOAD_S)
    return Course(trace, seconds, rules, Host(start=start, slots=slots, load_s=load_s))


async def _samples(scribe: Scribe, since: float) -> list[Sample]:
    try:
        found = await scribe.samples(since)
    except MemoryTrouble as trouble:
        raise Unavailable(f"the samples cannot be read: {trouble}", trouble.hint) from trouble
    if len(found) < 2:
        raise NoSuch("nothing has been sampled since then", "chatglm-hactl autoscale replay --trace FILE")
    return found


def _rules(asked: ReplayAsked, rules: Rules) -> tuple[Rules, Mapping[str, float]]:
    """The rules in force with what was asked; and what is no rule, but how the host is."""
    known = [field.name for field in fields(Rules) if field.name not in ("enabled", "policy")]
    wrong = [_unknown(key, [*known, *_HOST]) for key in asked.changes if key not in known and key not in _HOST]
    wrong += [f"{key}: should be a whole number" for key, value in asked.changes.items() if key in _WHOLE and value % 1]
    wrong += [f"{key}: should not be below 0" for key, value in asked.changes.items() if value < 0]
    if wrong:
        raise Invalid("; ".join(wrong), "chatglm-hactl autoscale replay -h", wrong if len(wrong) > 1 else ())
    whole = {key: int(value) if key in _WHOLE else value for key, value in asked.changes.items()}
    values: dict[str, Any] = {key: value for key, value in whole.items() if key in known}
    changed = replace(rules, policy=asked.policy or rules.policy, **values)
    wrong = _impossible(changed, whole)
    if wrong:
        raise Invalid("; ".join(wrong), "chatglm-hactl autoscale replay -h", wrong if len(wrong) > 1 else ())
    return changed, {key: value for key, value in whole.items() if key in _HOST}


def _impossible(rules: Rules, changes: Mapping[str, float]) -> list[str]:
    found = []
    if rules.max < max(1, rules.min):
        found.append(f"max: {rules.max} is below min = {rules.min}, or is none")
    if rules.sample < 1 or rules.evaluate < rules.sample:
        found.append(f"evaluate: {rules.evaluate:g} is below sample = {rules.sample:g}, or that is below 1")
    if min(rules.up_samples, rules.down_samples) < 1:
        found.append("up_samples, down_samples: at least 1")
    if changes.get("start", 1) < 1:
        found.append("start: at least 1")
    return found


def _unknown(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"{key}: unknown; " + (f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}")

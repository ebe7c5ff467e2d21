"""The documents of the autoscaler: opinions side by side, the latest sample, the rows of a replay."""

from __future__ import annotations

import math
from dataclasses import fields

from hasupervisor.decide.autoscale.facts import Opinion, Sample
from hasupervisor.decide.autoscale.replay import Row, Total
from hasupervisor.report.document import Document, autoscale
from hasupervisor.report.snapshot import Snapshot

ROW_DIGITS = 3


def whole(snapshot: Snapshot) -> Document:
    """The `autoscale` object of the status document, the mode, and what each policy makes of which numbers."""
    view = snapshot.autoscale
    slots = {"count": _number(view.slots), "how": view.slots_how} if view.slots is not None else None
    return {
        **autoscale(snapshot),
        "mode": snapshot.wants.mode,
        "bounds": {"min": snapshot.policy.min, "max": snapshot.policy.max},
        "slots": slots,
        "windows": {name: _number(value) for name, value in view.windows.items()},
        "samples": view.samples,
        "latest": _sample(view.latest, view.age_s) if view.latest is not None else None,
        "opinions": {policy: _opinion(opinion) for policy, opinion in view.opinions.items()},
    }


def replay_line(line: Row | Total) -> Document:
    """One line of a replay; the last one is the total."""
    shown = {field.name: _plain(getattr(line, field.name)) for field in fields(line)}
    return {"total": shown} if isinstance(line, Total) else shown


def _opinion(opinion: Opinion) -> Document:
    return {
        "desired": opinion.desired,
        "sentence": opinion.sentence,
        "held_back_by": opinion.held_back_by,
        "inputs": {name: _number(value) for name, value in opinion.inputs.items()},
    }


def _sample(sample: Sample, age_s: float | None) -> Document:
    values = {field.name: _plain(getattr(sample, field.name)) for field in fields(sample) if field.name != "at"}
    return {"age_s": _number(age_s), **values}


def _plain(value: object) -> object:
    return _number(value) if isinstance(value, float) else value


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, ROW_DIGITS)

"""The kinds of values that commands take: durations, moments in time, names of instances."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
from click.shell_completion import CompletionItem

from hasupervisor.ctl.client import Client
from hasupervisor.ctl.commandline import Settings
from hasupervisor.ctl.errors import Failure

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_COMPLETION_S = 0.5  # a TAB that takes longer is worse than one that offers nothing
_EARLIEST_UNIX = 1_000_000_000  # September 2001; a smaller bare number is so many seconds ago


def duration_in(text: str) -> float | None:
    """Seconds in `90`, `90s`, `10m`, `2h` or `1d`; None where it is none of these."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    return float(found[1]) * _SECONDS[found[2]] if found else None


class Duration(click.ParamType[float]):
    """Seconds, more than none."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = value if isinstance(value, float) else duration_in(str(value))
        if not seconds:
            self.fail(f"{value!r} is not a duration such as 90, 90s, 10m, 2h or 1d", param, ctx)
        return seconds


class Since(click.ParamType[int]):
    """Unix seconds: a duration ago, a local time, or Unix seconds themselves."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        seconds = duration_in(text)
        if seconds is not None and text.replace(".", "").isdigit() and seconds >= _EARLIEST_UNIX:
            return int(seconds)
        if seconds is not None:
            return int(time.time() - seconds)
        try:
            return int(datetime.fromisoformat(text).timestamp())
        except ValueError:
            self.fail(f"{text!r} is neither a duration (1h, 30m) nor a time (2026-11-24T03:00)", param, ctx)


def _instances(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The daemon's instances for a TAB."""
    try:
        status = Client(Settings.of(ctx).socket, patience=_COMPLETION_S).get("/v1/status")
        found = [(instance.text("name"), instance.text("state")) for instance in status.parts("instances")]
    except Failure:  # a message in the middle of a command line would be in the way
        return []
    return [CompletionItem(name, help=state) for name, state in found if name.startswith(incomplete)]


def _gpus(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The daemon's cards for a TAB."""
    try:
        found = Client(Settings.of(ctx).socket, patience=_COMPLETION_S).get("/v1/gpus").parts("gpus")
        cards = [(card.text("uuid"), f"GPU {card.number('index'):g}, {card.text('state')}") for card in found]
    except Failure:
        return []
    return [CompletionItem(uuid, help=words) for uuid, words in cards if uuid.startswith(incomplete)]


def gpu_argument() -> Callable[[Any], Any]:
    """UUID, the beginning of one or an index, completed with what the daemon has."""
    return click.argument("gpu", metavar="UUID", shell_complete=_gpus)


def instance_argument(*, required: bool = True) -> Callable[[Any], Any]:
    """NAME, completed with what the daemon has."""
    return click.argument("name", required=required, shell_complete=_instances)

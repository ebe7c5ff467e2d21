"""What the control socket asks of the daemon: every question and every command, and how each can be refused."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hasupervisor.decide.autoscale.replay import Row, Total
from hasupervisor.model import Operation, Pause
from hasupervisor.report.snapshot import Snapshot


class Declined(Exception):
    """A command that is not carried out. The text is a whole sentence, `hint` the next command."""

    def __init__(self, detail: str, hint: str | None = None, problems: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.problems = tuple(problems)


class Refused(Declined):
    """409: paused, out of bounds, nothing would be left serving, or another operation is at work on it."""


class NoSuch(Declined):
    """404: no such instance or operation."""


class Invalid(Declined):
    """422: a configuration that is not valid; `problems` has a sentence for each line."""


class Unavailable(Declined):
    """503: what is needed cannot be asked now (dockerd, a daemon that is still starting)."""


class Failed(Declined):
    """500: it was tried and did not work (nginx would not reload); no defect of the daemon."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What `scale` would do."""

    desired: int  # now
    wanted: int  # then
    steps: tuple[str, ...]  # "start chatglm-03"
    refused: str | None = None  # why it would be refused


@dataclass(frozen=True, slots=True)
class ReplayAsked:
    """Traffic to be played through a policy: what was recorded since then, or a trace of (second, requests/s, work)."""

    since: float | None = None  # Unix seconds; None without a trace: the last hour
    trace: Sequence[tuple[float, float, float]] | None = None
    policy: str | None = None  # None: the one in force
    changes: Mapping[str, float] = field(default_factory=dict)  # rules that differ from those in force


@dataclass(frozen=True, slots=True)
class NginxFiles:
    """The daemon's files for nginx as they are on disk."""

    mode: str  # nginx.mode
    dir: str
    files: Mapping[str, str]  # name -> content


@dataclass(frozen=True, slots=True)
class NginxTest:
    ok: bool
    output: str  # nginx's own words


@dataclass(frozen=True, slots=True)
class NginxReload:
    """A reload that has been seen answering; one that failed is raised as Failed."""

    generation: int
    output: str = ""


@dataclass(frozen=True, slots=True)
class ConfigView:
    """The configuration that is in force, secrets masked."""

    path: str
    config: Mapping[str, Mapping[str, Any]]  # section -> key -> what JSON can show


@dataclass(frozen=True, slots=True)
class DrillAsked:
    """A fault that a person wants made on purpose."""

    fault: str  # kill | hang | sick | slow | spike | daemon | gateway
    name: str | None  # of an instance; None: the daemon chooses one, where the fault is an instance's
    rate: float  # prompts a second
    seconds: float | None  # of load at most; None: as long as the fault usually needs
    force: bool  # even if it could hurt


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """What a drill would do."""

    fault: str
    name: str | None
    rate: float
    seconds: float
    what: str  # one sentence
    objections: tuple[str, ...]  # why it could hurt now, a sentence each


class Entry(Protocol):
    """One line of the history."""

    @property
    def id(self) -> int: ...
    @property
    def at_wall(self) -> float: ...
    @property
    def subject(self) -> str: ...
    @property
    def event(self) -> str: ...
    @property
    def sentence(self) -> str: ...
    @property
    def by(self) -> str: ...


class Desk(Protocol):
    """The daemon as its reports see it. `by` is who asked: "alice (uid 1000)".

    Any method may raise Declined's children; what else it raises is a defect, logged as BUG and answered 500. Names of
    instances need not be checked: the API knows them from `status`. No method blocks the event loop.
    """

    def status(self) -> Snapshot:
        """The picture of now. Raises Unavailable until the first cycle has ended."""

    async def looked(self) -> None:
        """Waits, some seconds at most, until a daemon that was just started has seen what it judges commands by."""

    async def moved(self) -> None:
        """Waits for the end of the next cycle."""

    async def scale(self, n: int, *, force: bool, dry_run: bool, by: str) -> Operation | DryRun:
        """A DryRun if and only if `dry_run`."""

    async def restart(self, name: str | None, *, force: bool, by: str) -> Operation:
        """None: all, one after another."""

    async def drain(self, name: str, *, force: bool, by: str) -> Operation: ...

    async def undrain(self, name: str, *, by: str) -> Operation: ...

    async def cancel(self, operation_id: str, *, by: str) -> Operation:
        """What is done already stays done. Raises NoSuch, and Refused when it has ended already."""

    async def set_autoscale(self, enabled: bool, *, by: str) -> None: ...

    def replay(self, asked: ReplayAsked) -> AsyncIterator[Row | Total]:
        """A row for each sample period, then the total. Raises Invalid, NoSuch and Unavailable when iterated."""

    async def pause(self, for_s: float | None, reason: str, *, by: str) -> Pause: ...

    async def resume(self, *, by: str) -> bool:
        """Whether it was paused."""

    async def quarantine_gpu(self, uuid: str, reason: str, *, by: str) -> None:
        """Nothing new is placed on that card; what runs there goes on. Raises Refused. The next status shows it."""

    async def clear_gpu(self, uuid: str, *, by: str) -> None:
        """Forgets all that is held against that card. Raises Refused. The next status shows what is still wrong."""

    async def plan_drill(self, asked: DrillAsked) -> DrillPlan:
        """Raises NoSuch, and Refused for what cannot be done, forced or not."""

    async def begin_drill(self, asked: DrillAsked, *, by: str) -> Mapping[str, Any]:
        """The drill's document, as the others below (docs/control-api.md)."""

    async def drills(self) -> Sequence[Mapping[str, Any]]:
        """The newest first."""

    async def drill(self, drill_id: str) -> Mapping[str, Any]: ...

    def watch_drill(self, drill_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """Now, and each time that it has moved, until it has ended."""

    async def call_off_drill(self, drill_id: str, *, by: str) -> Mapping[str, Any]:
        """Ends it and undoes its fault. Raises NoSuch, and Refused when it has ended already."""

    async def history(self, *, n: int, since_wall: float | None, subject: str | None = None) -> Sequence[Entry]:
        """The newest `n` lines, oldest first. Raises Unavailable."""

    def follow(self, *, n: int, since_wall: float | None) -> AsyncIterator[Entry]:
        """The same, then each new line as it comes, without end."""

    def logs(self, name: str, n: int, follow: bool) -> AsyncIterator[str]:
        """An instance's output, line by line without line ends. Raises NoSuch and Unavailable, also when iterated."""

    async def nginx_files(self) -> NginxFiles: ...

    async def nginx_test(self) -> NginxTest: ...

    async def nginx_reload(self, *, by: str) -> NginxReload: ...

    async def config(self) -> ConfigView: ...

    async def reload_config(self, *, by: str) -> Sequence[str]:
        """What has changed, a sentence each: "health.interval: 2.0 -> 1.0". Raises Invalid."""


def no_such_instance(name: str, known: Iterable[str]) -> NoSuch:
    """With the one of the same number, which was probably meant, or with all there are."""
    names = sorted(known)
    number = _number(name)
    meant = [one for one in names if number is not None and _number(one) == number]
    if meant:
        return NoSuch(f"there is no instance {name}; did you mean {meant[0]}?", "chatglm-hactl status")
    some = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    there_are = f"there are {some}" if names else "there are none at all"
    return NoSuch(f"there is no instance {name}; {there_are}", "chatglm-hactl status")


def _number(name: str) -> int | None:
    digits = re.search(r"([0-9]{1,9})$", name)
    return int(digits[1]) if digits else None


def no_such_operation(operation_id: str) -> NoSuch:
    return NoSuch(f"there is no operation {operation_id}", "chatglm-hactl operations")

"""A desk over a picture that the test holds in its hand: it answers at once, and remembers what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hasupervisor.decide.autoscale.replay import Row, Total
from hasupervisor.model import Operation, OperationKind, OperationState, Pause, Wants
from hasupervisor.report.desk import (
    ConfigView,
    DrillAsked,
    DrillPlan,
    DryRun,
    NginxFiles,
    NginxReload,
    NginxTest,
    Refused,
    ReplayAsked,
)
from hasupervisor.report.snapshot import Snapshot
from tests.ctl import drills
from tests.report.example import NOW, SNAPSHOT, WALL


@dataclass(frozen=True)
class Line:
    id: int
    at_wall: float
    subject: str
    event: str
    sentence: str
    by: str


@dataclass
class Clerk:
    """`told` has every command with its arguments; `fail` is raised by whatever is asked next, and again."""

    snapshot: Snapshot = SNAPSHOT
    told: list[tuple[Any, ...]] = field(default_factory=list)
    fail: Exception | None = None
    lines: list[Line] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    following: int = 0  # how many follow the history or a log now
    slow: float = 0.0  # seconds that `nginx_test` takes
    looks: int = 0  # how often a command has waited until the daemon has looked
    testing: int = 0  # how many wait for it now
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def move(self, change: Callable[[Snapshot], Snapshot] = lambda s: s) -> None:
        """A cycle ends."""
        self.snapshot = change(self.snapshot)
        self._moved.set()
        self._moved = asyncio.Event()

    def add(self, sentence: str, subject: str = "chatglm-02") -> None:
        line = Line(len(self.lines) + 1, WALL + len(self.lines), subject, "state", sentence, "chatglm-ha")
        self.lines.append(line)
        self.move()

    def status(self) -> Snapshot:
        self._maybe_fail()
        return self.snapshot

    async def looked(self) -> None:
        self.looks += 1

    async def moved(self) -> None:
        await self._moved.wait()

    async def scale(self, n: int, *, force: bool, dry_run: bool, by: str) -> Operation | DryRun:
        self._tell("scale", n, force, by)
        if dry_run:
            return DryRun(self.snapshot.wants.desired, n, tuple(f"start chatglm-{k:02d}" for k in range(4, n + 1)))
        if n > self.snapshot.policy.max and not force:
            raise Refused(f"{n} is above service.max = {self.snapshot.policy.max}", f"chatglm-hactl scale {n} --force")
        return self._begin(OperationKind.SCALE, by)

    async def restart(self, name: str | None, *, force: bool, by: str) -> Operation:
        self._tell("restart", name, force, by)
        return self._begin(OperationKind.RESTART, by)

    async def drain(self, name: str, *, force: bool, by: str) -> Operation:
        self._tell("drain", name, force, by)
        return self._begin(OperationKind.DRAIN, by)

    async def undrain(self, name: str, *, by: str) -> Operation:
        self._tell("undrain", name, by)
        return self._begin(OperationKind.UNDRAIN, by)

    async def cancel(self, operation_id: str, *, by: str) -> Operation:
        self._tell("cancel", operation_id, by)
        return self.end(operation_id, OperationState.CANCELLED)

    def end(self, operation_id: str, state: OperationState) -> Operation:
        found = next(o for o in self.snapshot.operations if o.id == operation_id)
        ended = replace(found, state=state, ended_wall=WALL, targets=(), sentence=f"it is {state}")
        others = tuple(ended if o.id == operation_id else o for o in self.snapshot.operations)
        self.move(lambda snapshot: replace(snapshot, operations=others))
        return ended

    async def set_autoscale(self, enabled: bool, *, by: str) -> None:
        self._tell("autoscale", enabled, by)
        self._want(replace(self.snapshot.wants, mode="auto" if enabled else "manual"))

    async def replay(self, asked: ReplayAsked) -> AsyncIterator[Row | Total]:
        self._tell("replay", asked)
        yield Row(10.0, 1.5, 2.0, 2, 2, 0.0, 500.0)
        yield Total(10.0, 15, 0, 0, 2, None, 0.0, 0.0, 0.333)

    async def pause(self, for_s: float | None, reason: str, *, by: str) -> Pause:
        self._tell("pause", for_s, reason, by)
        pause = Pause(by, WALL, reason, WALL + for_s if for_s is not None else None)
        self._want(replace(self.snapshot.wants, pause=pause))
        return pause

    async def resume(self, *, by: str) -> bool:
        self._tell("resume", by)
        was = self.snapshot.wants.pause is not None
        self._want(replace(self.snapshot.wants, pause=None))
        return was

    async def quarantine_gpu(self, uuid: str, reason: str, *, by: str) -> None:
        self._tell("quarantine", uuid, reason, by)

    async def clear_gpu(self, uuid: str, *, by: str) -> None:
        self._tell("clear", uuid, by)

    async def history(self, *, n: int, since_wall: float | None, subject: str | None = None) -> Sequence[Line]:
        self._maybe_fail()
        found = [
            line
            for line in self.lines
            if (since_wall is None or line.at_wall >= since_wall) and (subject is None or line.subject == subject)
        ]
        return found[max(0, len(found) - n) :]

    async def follow(self, *, n: int, since_wall: float | None) -> AsyncIterator[Line]:
        self.following += 1
        try:
            shown = len(self.lines)
            for line in await self.history(n=n, since_wall=since_wall):
                yield line
            while True:
                self._maybe_fail()
                moved = self._moved
                for line in self.lines[shown:]:
                    shown += 1
                    yield line
                if len(self.lines) == shown:
                    await moved.wait()
        finally:
            self.following -= 1

    async def logs(self, name: str, n: int, follow: bool) -> AsyncIterator[str]:
        self.following += 1
        try:
            self._maybe_fail()
            shown = max(0, len(self.output) - n)
            while True:
                for line in self.output[shown:]:
                    shown += 1
                    yield line
                if not follow:
                    return
                await self._moved.wait()
                self._maybe_fail()
        finally:
            self.following -= 1

    async def plan_drill(self, asked: DrillAsked) -> DrillPlan:
        self._maybe_fail()
        return DrillPlan(asked.fault, asked.name, asked.rate, 60.0, "SIGKILL to chatglm-02 (pid 4712)", ())

    async def begin_drill(self, asked: DrillAsked, *, by: str) -> dict[str, Any]:
        self._tell("drill", asked, by)
        return drills.drill("begins")

    async def drills(self) -> Sequence[dict[str, Any]]:
        self._maybe_fail()
        return [await self.drill("drill-3")]

    async def drill(self, drill_id: str) -> dict[str, Any]:
        self._maybe_fail()
        return drills.drill("33 sent, 0 failed", "done")

    async def watch_drill(self, drill_id: str) -> AsyncIterator[dict[str, Any]]:
        yield await self.drill(drill_id)

    async def call_off_drill(self, drill_id: str, *, by: str) -> dict[str, Any]:
        self._tell("call off", drill_id, by)
        return drills.drill("it was called off", "cancelled")

    async def nginx_files(self) -> NginxFiles:
        self._maybe_fail()
        return NginxFiles("own", "/var/lib/chatglm-ha/nginx", {"upstream.conf": "# 负载\n", "gateway.conf": ""})

    async def nginx_test(self) -> NginxTest:
        self._maybe_fail()
        self.testing += 1
        try:
            await asyncio.sleep(self.slow)
        finally:
            self.testing -= 1
        return NginxTest(True, "nginx: configuration file test is successful")

    async def nginx_reload(self, *, by: str) -> NginxReload:
        self._tell("reload", by)
        return NginxReload(42)

    async def config(self) -> ConfigView:
        self._maybe_fail()
        return ConfigView("/etc/chatglm-ha/config.toml", {"health": {"interval": 2.0}})

    async def reload_config(self, *, by: str) -> Sequence[str]:
        self._tell("config reload", by)
        return ["health.interval: 2.0 -> 1.0"]

    def _want(self, wants: Wants) -> None:
        self.move(lambda snapshot: replace(snapshot, wants=wants))

    def _begin(self, kind: OperationKind, by: str) -> Operation:
        operation = Operation(f"op-{len(self.snapshot.operations) + 8}", kind, by, NOW, WALL, total=3, sentence="begun")
        self.move(lambda snapshot: replace(snapshot, operations=(*snapshot.operations, operation)))
        return operation

    def _tell(self, *what: Any) -> None:
        self._maybe_fail()
        self.told.append(what)

    def _maybe_fail(self) -> None:
        if self.fail is not None:
            raise self.fail

"""What a person may ask of the daemon: each command is checked, written down, and turned into wants and operations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hasupervisor import replaying
from hasupervisor.act.nginx.gateway import Gateway
from hasupervisor.autoscaler import Autoscaler
from hasupervisor.command_checks import CommandChecks
from hasupervisor.config import Config, ConfigError
from hasupervisor.decide import scaling
from hasupervisor.decide.autoscale.replay import Row, Total
from hasupervisor.drill.drills import Drills
from hasupervisor.loop import Loop, next_operation_id, running_operations
from hasupervisor.memory import Entry, MemoryTrouble, Scribe
from hasupervisor.model import (
    Judged,
    Note,
    Operation,
    OperationKind,
    OperationState,
    Pause,
    Plan,
    Wants,
    World,
)
from hasupervisor.report.desk import (
    ConfigView,
    DrillAsked,
    DrillPlan,
    DryRun,
    Failed,
    Invalid,
    NginxFiles,
    NginxReload,
    NginxTest,
    NoSuch,
    Refused,
    ReplayAsked,
    Unavailable,
    no_such_operation,
)
from hasupervisor.report.snapshot import Snapshot
from hasupervisor.runtimes.base import Runtime, RuntimeTrouble

DURABLE = 1.0
"""Seconds that a command waits for the disk at most: a disk that hangs is shown in `status`, and holds nobody up."""


FIRST_LOOK = 8.0
"""Seconds that a command waits at most for what a new daemon has not seen yet; chatglm-hactl waits ten."""


@dataclass(frozen=True)
class Behind:
    """What the desk has behind it."""

    loop: Loop
    gateway: Gateway
    runtime: Runtime
    scribe: Scribe
    drills: Drills
    autoscaler: Autoscaler
    snapshot: Callable[[], Snapshot]
    config: Callable[[], Config]
    config_path: str
    reload: Callable[[], Sequence[str]]  # reads and applies the configuration anew; raises ConfigError
    clock: Callable[[], float]
    wall: Callable[[], float]


class OperatorDesk:
    """The daemon's side of the control socket (report/desk.py says what is promised)."""

    def __init__(self, behind: Behind) -> None:
        self._behind = behind
        self._loop = behind.loop
        self._why_not = CommandChecks(behind.loop, behind.config)

    # --- questions ----------------------------------------------------------------------------------------------------

    def status(self) -> Snapshot:
        if self._loop.latest is None:
            raise Unavailable(
                "the daemon is still starting: it has not finished its first cycle", "chatglm-hactl check"
            )
        return self._behind.snapshot()

    async def looked(self) -> None:
        """What has not been seen yet is no reason to refuse; what cannot be seen is one, and says so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK):
                while not self._why_not.has_looked():
                    await self._loop.moved()

    async def moved(self) -> None:
        await self._loop.moved()

    async def history(self, *, n: int, since_wall: float | None, subject: str | None = None) -> Sequence[Entry]:
        try:
            return await self._behind.scribe.history(n=n, since_wall=since_wall, subject=subject)
        except MemoryTrouble as trouble:
            raise Unavailable(f"the history cannot be read: {trouble}", trouble.hint) from trouble

    async def follow(self, *, n: int, since_wall: float | None) -> AsyncIterator[Entry]:
        try:
            async for entry in self._behind.scribe.follow(n=n, since_wall=since_wall):
                yield entry
        except MemoryTrouble as trouble:
            raise Unavailable(f"the history cannot be read: {trouble}", trouble.hint) from trouble

    async def logs(self, name: str, n: int, follow: bool) -> AsyncIterator[str]:
        try:
            async for line in self._behind.runtime.logs(name, n, follow):
                yield line
        except KeyError:
            last = f"chatglm-hactl logs {name} --last-failure"
            raise NoSuch(f"{name} does not exist in the runtime now, so it has no output", last) from None
        except RuntimeTrouble as trouble:
            raise Unavailable(str(trouble), "chatglm-hactl status") from trouble

    async def config(self) -> ConfigView:
        return ConfigView(self._behind.config_path, self._behind.config().describe())

    async def nginx_files(self) -> NginxFiles:
        nginx = self._behind.config().nginx
        return NginxFiles(nginx.mode, str(nginx.dir), self._behind.gateway.files())

    async def nginx_test(self) -> NginxTest:
        ok, output = await self._behind.gateway.test()
        return NginxTest(ok, output)

    # --- commands on the gateway and the configuration ----------------------------------------------------------------

    async def nginx_reload(self, *, by: str) -> NginxReload:
        ok, output = await self._behind.gateway.reload()
        if not ok:
            raise Failed(f"nginx did not take it: {output}", "chatglm-hactl nginx test")
        generation = self._behind.gateway.view().generation
        self._loop.record_note(Note("nginx", "reload", f"reloaded by hand: generation {generation}", by))
        return NginxReload(generation, output)

    async def reload_config(self, *, by: str) -> Sequence[str]:
        try:
            changed = self._behind.reload()
        except ConfigError as error:
            lines = [str(problem) for problem in error.problems]
            raise Invalid(
                "the configuration is not valid; nothing was changed", "chatglm-hactl config check", lines
            ) from None
        words = ", ".join(changed) if changed else "nothing has changed"
        self._loop.record_note(Note("config", "reload", words, by))
        return changed

    # --- commands on instances ----------------------------------------------------------------------------------------

    async def scale(self, n: int, *, force: bool, dry_run: bool, by: str) -> Operation | DryRun:
        refusal = self._why_not.why_not_scale(n, force)
        if dry_run:
            return self._dry_run(n, refusal)
        if refusal is not None:
            raise refusal
        before = self._loop.wants.desired
        operation = self._operation(OperationKind.SCALE, by, (), total=n, before=(("desired", before),))
        for other in running_operations(self._loop.operations):
            if other.kind is OperationKind.SCALE:
                self._end(other, f"superseded by {operation.id}: {n} are wanted now")
        note = Note("service", "scale", f"{before} -> {n} wanted, mode manual", by)
        self._loop.want(replace(self._loop.wants, desired=n, mode="manual"), note)
        return await self._begin(operation)

    async def restart(self, name: str | None, *, force: bool, by: str) -> Operation:
        judged = self._why_not.judged()
        targets = [name] if name is not None else sorted(j.record.name for j in judged if _is_wanted(j))
        command = "restart --all" if name is None else f"restart {name}"
        for target in targets:
            self._why_not.refuse_if_busy(target)
            self._why_not.refuse_if_stuck(target)
        if not force:
            self._why_not.refuse_if_last(targets[0] if targets else None, command)
            self._why_not.refuse_if_homeless(targets, command)
        before = tuple((j.record.name, j.record.restarts) for j in judged if j.record.name in targets)
        operation = self._operation(OperationKind.RESTART, by, tuple(targets), total=len(targets), before=before)
        self._loop.record_note(Note(name or "service", "restart", f"restart of {', '.join(targets)} begun", by))
        return await self._begin(operation)

    async def drain(self, name: str, *, force: bool, by: str) -> Operation:
        self._why_not.known(name)
        self._why_not.refuse_if_busy(name)
        self._why_not.refuse_if_stuck(name)
        if not force:
            self._why_not.refuse_if_last(name, f"drain {name}")
        wants = self._loop.wants
        self._loop.want(replace(wants, drained=wants.drained | {name}), Note(name, "drain", "drained by hand", by))
        return await self._begin(self._operation(OperationKind.DRAIN, by, (name,), total=1))

    async def undrain(self, name: str, *, by: str) -> Operation:
        self._why_not.known(name)
        for other in running_operations(self._loop.operations):
            if other.kind is OperationKind.DRAIN and name in other.targets:
                self._end(other, f"called off by {by}: undrain")
        self._why_not.refuse_if_busy(name)
        wants = self._loop.wants
        self._loop.want(replace(wants, drained=wants.drained - {name}), Note(name, "undrain", "wanted again", by))
        return await self._begin(self._operation(OperationKind.UNDRAIN, by, (name,), total=1))

    async def cancel(self, operation_id: str, *, by: str) -> Operation:
        operation = next((o for o in self._loop.operations if o.id == operation_id), None)
        if operation is None:
            raise no_such_operation(operation_id)
        if operation.state is not OperationState.RUNNING:
            raise Refused(
                f"{operation_id} has ended already: {operation.sentence}", f"chatglm-hactl operations {operation_id}"
            )
        wants, note = self._loop.wants, Note(operation_id, "cancel", f"{operation.kind} cancelled", by)
        match operation.kind:
            case OperationKind.SCALE:
                self._loop.want(replace(wants, desired=dict(operation.before).get("desired", wants.desired)), note)
            case OperationKind.DRAIN:
                self._loop.want(replace(wants, drained=wants.drained - set(operation.targets)), note)
            case OperationKind.UNDRAIN:
                self._loop.want(replace(wants, drained=wants.drained | set(operation.targets)), note)
            case OperationKind.RESTART:
                self._loop.record_note(note)
        return self._end(operation, f"cancelled by {by}; what is done already stays done")

    async def set_autoscale(self, enabled: bool, *, by: str) -> None:
        mode = "auto" if enabled else "manual"
        await self._want(replace(self._loop.wants, mode=mode), Note("autoscale", "mode", f"mode {mode}", by))

    async def replay(self, asked: ReplayAsked) -> AsyncIterator[Row | Total]:
        behind = self._behind
        async for row in replaying.play(asked, behind.autoscaler, behind.scribe, behind.wall()):
            yield row

    async def pause(self, for_s: float | None, reason: str, *, by: str) -> Pause:
        now = self._behind.wall()
        pause = Pause(by=by, since_wall=now, reason=reason, until_wall=now + for_s if for_s is not None else None)
        until = f" for {for_s:.0f} s" if for_s is not None else ""
        words = f"healing and scaling are held{until}" + (f": {reason}" if reason else "")
        await self._want(replace(self._loop.wants, pause=pause), Note("service", "pause", words, by))
        return pause

    async def resume(self, *, by: str) -> bool:
        if self._loop.wants.pause is None:
            return False
        await self._want(
            replace(self._loop.wants, pause=None), Note("service", "resume", "healing and scaling go on", by)
        )
        return True

    # --- GPUs ---------------------------------------------------------------------------------------------------------

    async def quarantine_gpu(self, uuid: str, reason: str, *, by: str) -> None:
        self._known_card(uuid)
        before = self._loop.latest
        self._loop.cards.quarantine(uuid, reason or "no reason given", by, self._behind.wall())
        await self._judged_anew(before)

    async def clear_gpu(self, uuid: str, *, by: str) -> None:
        self._known_card(uuid)
        before = self._loop.latest
        self._loop.cards.clear(uuid, by)
        await self._judged_anew(before)

    def _known_card(self, uuid: str) -> None:
        if self._loop.cards.view(uuid) is None:
            words = f"{uuid} has not said its UUID yet, so nothing is placed on it anyway"
            raise Refused(words, "chatglm-hactl gpu list")

    async def _judged_anew(self, before: Plan | None) -> None:
        """Until a cycle has seen what was said, and it is on the disk."""
        await self._behind.scribe.flush(DURABLE)
        with contextlib.suppress(TimeoutError):  # a loop that stands still is said elsewhere
            async with asyncio.timeout(DURABLE):
                while self._loop.latest is before:
                    await self._loop.moved()

    # --- drills -------------------------------------------------------------------------------------------------------

    async def plan_drill(self, asked: DrillAsked) -> DrillPlan:
        return await self._behind.drills.plan(asked, self.status())

    async def begin_drill(self, asked: DrillAsked, *, by: str) -> dict[str, Any]:
        return (await self._behind.drills.begin(asked, self.status(), by)).document()

    async def drills(self) -> list[dict[str, Any]]:
        return [sheet.document() for sheet in await self._behind.drills.all()]

    async def drill(self, drill_id: str) -> dict[str, Any]:
        return (await self._behind.drills.one(drill_id)).document()

    async def watch_drill(self, drill_id: str) -> AsyncIterator[dict[str, Any]]:
        async for sheet in self._behind.drills.watch(drill_id):
            yield sheet.document()

    async def call_off_drill(self, drill_id: str, *, by: str) -> dict[str, Any]:
        return (await self._behind.drills.call_off(drill_id, by)).document()

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _card_ranks(self) -> scaling.Ranks:
        return scaling.card_ranks(self._loop.latest.cards) if self._loop.latest is not None else scaling.NO_CARDS

    def _dry_run(self, n: int, refusal: Refused | None) -> DryRun:
        world = self._loop.world
        if world is None:
            raise Unavailable("the daemon is still starting", "chatglm-hactl check")
        wanted = replace(world, wants=replace(world.wants, desired=n))
        steps = _differences(wanted, scaling.membership(wanted, self._card_ranks())) if refusal is None else ()
        return DryRun(world.wants.desired, n, steps, refusal.detail if refusal is not None else None)

    def _operation(
        self,
        kind: OperationKind,
        by: str,
        targets: tuple[str, ...],
        *,
        total: int,
        before: tuple[tuple[str, int], ...] = (),
    ) -> Operation:
        return Operation(
            id=next_operation_id(self._loop.operations),
            kind=kind,
            by=by,
            started=self._behind.clock(),
            started_wall=self._behind.wall(),
            targets=targets,
            total=total,
            sentence="begun",
            before=before,
        )

    async def _begin(self, operation: Operation) -> Operation:
        self._loop.begin(operation)
        await self._behind.scribe.flush(DURABLE)
        return operation

    def _end(self, operation: Operation, sentence: str) -> Operation:
        ended = replace(operation, state=OperationState.CANCELLED, sentence=sentence, ended_wall=self._behind.wall())
        self._loop.replace_operation(ended)
        return ended

    async def _want(self, wants: Wants, note: Note) -> None:
        self._loop.want(wants, note)
        await self._behind.scribe.flush(DURABLE)


def _is_wanted(judged: Judged) -> bool:
    return judged.record.leaving is None and judged.record.stuck is None and judged.fact is not None


def _differences(world: World, after: scaling.Membership) -> tuple[str, ...]:
    """What a scale would do, a step each."""
    before = {seen.record.name: seen.record for seen in world.instances}
    steps: list[str] = []
    for seen in after.instances:
        old = before.get(seen.record.name)
        if old is None:
            steps.append(f"start {seen.record.name} on port {seen.record.port}")
        elif old.leaving is None and seen.record.leaving is not None:
            steps.append(f"drain and stop {seen.record.name}")
        elif old.leaving is not None and seen.record.leaving is None:
            steps.append(f"keep {seen.record.name}, which was on its way out")
    return tuple(steps)

"""Why a command is not carried out as things stand, in words, each with the next command."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hasupervisor.config import Config
from hasupervisor.decide.gpu.homes import crowded, homeless
from hasupervisor.loop import Loop, running_operations
from hasupervisor.model import Judged, State, World
from hasupervisor.model.gpu import DriverState
from hasupervisor.report.desk import Refused, Unavailable, no_such_instance


class CommandChecks:
    """Asked by the desk before it does what a person wants."""

    def __init__(self, loop: Loop, config: Callable[[], Config]) -> None:
        self._loop = loop
        self._config = config

    def has_looked(self) -> bool:
        world = self._loop.world
        if world is None or world.runtime.trouble is not None:
            return world is not None
        return world.settled and not _are_gpus_unknown(world)

    def judged(self) -> tuple[Judged, ...]:
        return self._loop.latest.instances if self._loop.latest is not None else ()

    def why_not_scale(self, n: int, force: bool) -> Refused | None:
        service = self._config().service
        room = len(service.ports)
        if n > room:
            return Refused(f"{n} instances need {n} ports; service.ports has {room}", "chatglm-hactl config show")
        if force:
            return None
        if service.min <= n <= service.max:
            return self._why_no_room(n)
        bound = f"below service.min = {service.min}" if n < service.min else f"above service.max = {service.max}"
        return Refused(f"{n} is {bound}", f"chatglm-hactl scale {n} --force")

    def _refuse_if_unknown(self) -> None:
        """Whether the GPUs have room is not known, and may not be guessed."""
        world = self._loop.world
        if world is not None and _are_gpus_unknown(world):
            raise Unavailable(
                "it is not known whether the GPUs have room: they have not answered since the daemon was started",
                "chatglm-hactl gpu list, or the same command with --force",
            )

    def _why_no_room(self, n: int) -> Refused | None:
        """More than the GPUs have room for would begin, and wait for ever."""
        if n > self._loop.wants.desired:
            self._refuse_if_unknown()
        plan = self._loop.latest
        why = crowded(plan, n) if plan is not None and n > self._loop.wants.desired else None
        return Refused(why, f"chatglm-hactl gpu list, or chatglm-hactl scale {n} --force") if why is not None else None

    def refuse_if_last(self, name: str | None, command: str) -> None:
        """A command by hand must not end the service by mistake."""
        serving = [j.record.name for j in self.judged() if j.state is State.SERVING]
        if name is not None and serving == [name]:
            raise Refused(
                f"{name} is the only one that serves: nobody would be answered meanwhile",
                f"chatglm-hactl scale {self._loop.wants.desired + 1}, or chatglm-hactl {command} --force",
            )

    def refuse_if_homeless(self, names: Sequence[str], command: str) -> None:
        self._refuse_if_unknown()
        plan, world = self._loop.latest, self._loop.world
        if plan is None or world is None or world.gpus is None:
            return
        why = homeless(plan, world.gpus.driver.state, names)
        if why is not None:
            raise Refused(why, f"chatglm-hactl gpu list, or chatglm-hactl {command} --force")

    def refuse_if_busy(self, name: str) -> None:
        for operation in running_operations(self._loop.operations):
            if name in operation.targets:
                raise Refused(
                    f"{operation.id} is at work on {name}: {operation.kind} by {operation.by}",
                    f"chatglm-hactl operations {operation.id}",
                )

    def refuse_if_stuck(self, name: str) -> None:
        judged = self._loop.judged(name)
        if judged is not None and judged.record.stuck is not None:
            raise Refused(f"{name} {judged.record.stuck}", f"chatglm-hactl explain {name}")

    def known(self, name: str) -> Judged:
        judged = self._loop.judged(name)
        if judged is None:
            raise no_such_instance(name, (j.record.name for j in self.judged()))
        return judged


def _are_gpus_unknown(world: World) -> bool:
    return world.gpus is not None and world.gpus.driver.state is DriverState.UNKNOWN

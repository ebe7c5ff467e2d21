"""The operator's commands, put into the loop as the control socket's handler puts them; and what people want, kept."""

from __future__ import annotations

from dataclasses import replace

from hasupervisor.loop import Loop
from hasupervisor.model import Note, Operation, OperationKind, OperationState, Pause, State, Wants

WHO = "operator (uid 1000)"


class Desk:
    """Takes commands while a daemon lives. `wants` is the truth about what people last asked for."""

    def __init__(self, wants: Wants) -> None:
        self.wants = wants
        self._count = 0

    def scale(self, loop: Loop, count: int, now: float, wall: float) -> None:
        before = loop.wants.desired
        wants = replace(loop.wants, desired=count, mode="manual")
        self._want(loop, wants, f"{count} wanted")
        self._supersede(loop, OperationKind.SCALE, wall)
        self._begin(loop, OperationKind.SCALE, (), count, now, wall, (("desired", before),))

    def busy(self, loop: Loop, names: tuple[str, ...]) -> bool:
        """Whether a command is at work on one of them: then another one is refused."""
        running = [o for o in loop.operations if o.state is OperationState.RUNNING]
        return any(name in o.targets for o in running for name in names)

    def last(self, loop: Loop, name: str) -> bool:
        """Whether it is the only one that serves: then it is not taken away without `--force`."""
        serving = [r.name for r in loop.records().values() if r.state is State.SERVING]
        return serving == [name]

    def restart(self, loop: Loop, names: tuple[str, ...], now: float, wall: float) -> None:
        records = loop.records()
        before = tuple((name, records[name].restarts) for name in names if name in records)
        self._begin(loop, OperationKind.RESTART, names, len(names), now, wall, before)

    def drain(self, loop: Loop, name: str, now: float, wall: float) -> None:
        wants = replace(loop.wants, drained=loop.wants.drained | {name})
        self._want(loop, wants, f"{name} is to be drained")
        self._begin(loop, OperationKind.DRAIN, (name,), 1, now, wall)

    def undrain(self, loop: Loop, name: str, now: float, wall: float) -> None:
        self._supersede(loop, OperationKind.DRAIN, wall, name)
        wants = replace(loop.wants, drained=loop.wants.drained - {name})
        self._want(loop, wants, f"{name} is to serve again")
        self._begin(loop, OperationKind.UNDRAIN, (name,), 1, now, wall)

    def pause(self, loop: Loop, seconds: float | None, wall: float) -> None:
        pause = Pause(WHO, wall, "maintenance", None if seconds is None else wall + seconds)
        self._want(loop, replace(loop.wants, pause=pause), "paused")

    def resume(self, loop: Loop) -> None:
        self._want(loop, replace(loop.wants, pause=None), "resumed")

    def cancel(self, loop: Loop, wall: float) -> None:
        """Cancels whatever runs and gives back what was wanted before; what is done already stays done."""
        for operation in loop.operations:
            if operation.state is not OperationState.RUNNING:
                continue
            wants, targets = loop.wants, frozenset(operation.targets)
            match operation.kind:
                case OperationKind.SCALE:
                    self._want(loop, replace(wants, desired=dict(operation.before)["desired"]), "scale is called off")
                case OperationKind.DRAIN:
                    self._want(loop, replace(wants, drained=wants.drained - targets), "drain is called off")
                case OperationKind.UNDRAIN:
                    self._want(loop, replace(wants, drained=wants.drained | targets), "undrain is called off")
                case OperationKind.RESTART:
                    pass
            self._stop(loop, operation, f"cancelled by {WHO}; what is done already stays done", wall)

    def forget(self, names: frozenset[str]) -> None:
        """Instances that were scaled away: whoever bears the name later is another one."""
        self.wants = replace(self.wants, drained=self.wants.drained - names)

    def time_passes(self, wall: float) -> None:
        """A pause may have run out: the loop ends it by itself."""
        pause = self.wants.pause
        if pause is not None and pause.until_wall is not None and wall >= pause.until_wall:
            self.wants = replace(self.wants, pause=None)

    def _want(self, loop: Loop, wants: Wants, sentence: str) -> None:
        self.wants = wants
        loop.want(wants, Note("service", "command", sentence, by=WHO))

    def _supersede(self, loop: Loop, kind: OperationKind, wall: float, name: str | None = None) -> None:
        for operation in loop.operations:
            ours = operation.kind is kind and (name is None or name in operation.targets)
            if ours and operation.state is OperationState.RUNNING:
                self._stop(loop, operation, "superseded by a later command", wall)

    def _stop(self, loop: Loop, operation: Operation, sentence: str, wall: float) -> None:
        ended = replace(operation, state=OperationState.CANCELLED, sentence=sentence, ended_wall=wall)
        loop.replace_operation(ended)

    def _begin(
        self,
        loop: Loop,
        kind: OperationKind,
        targets: tuple[str, ...],
        total: int,
        now: float,
        wall: float,
        before: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self._count += 1
        name = f"op-{self._count}"
        loop.begin(Operation(name, kind, WHO, now, wall, targets, total, sentence="begun", before=before))

"""Carries out steps on instances in the background: one at a time for a name, each with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from hasupervisor.descriptors import is_exhausted
from hasupervisor.model import Outcome, Step, StepKind
from hasupervisor.runtimes.base import Launch, LaunchFailed, PortTaken, Runtime, RuntimeTrouble, Stuck

log = structlog.get_logger(__name__)

START_DEADLINE = 120.0
"""Seconds for creating and starting; loading the model is not part of it."""

END_DEADLINE = 60.0
"""Seconds beyond the grace for ending and removing. dockerd gives up on a process in D state after 12 to 15 s."""


class Runner:
    """Runs steps; every one ends in exactly one Outcome, whatever happens."""

    def __init__(self, runtime: Runtime, on_outcome: Callable[[Outcome], None], clock: Callable[[], float]) -> None:
        self._runtime = runtime
        self._on_outcome = on_outcome
        self._clock = clock
        self._tasks: dict[str, tuple[Step, asyncio.Task[None]]] = {}

    def acting(self) -> dict[str, str]:
        """The step under way for each name that has one."""
        return {name: step.kind.value for name, (step, _) in self._tasks.items()}

    def submit(self, step: Step) -> None:
        """Begins a step. A name that has one under way is left alone: the next cycle decides anew."""
        if step.name in self._tasks:
            return
        task = asyncio.create_task(self._run(step), name=f"{step.kind} {step.name}")
        self._tasks[step.name] = (step, task)

    async def close(self) -> None:
        """Gives up what is under way. The instances stay as they are; the next daemon finds them by their labels."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, step: Step) -> None:
        outcome: Outcome | None = None
        try:
            outcome = await self._outcome(step)
        finally:
            del self._tasks[step.name]
            if outcome is not None:
                self._on_outcome(outcome)

    async def _outcome(self, step: Step) -> Outcome:
        """Carries the step out and says how it ended; only being cancelled ends it without an outcome."""
        tail, error, stuck, trouble, port_taken = "", "", False, False, False
        deadline = START_DEADLINE if step.kind is StepKind.START else END_DEADLINE + step.grace
        try:
            async with asyncio.timeout(deadline):
                tail = await self._carry_out(step)
        except TimeoutError:
            error = f"no end of `{step.kind}` in {deadline:.0f} s"
            stuck, trouble = step.kind is not StepKind.START, step.kind is StepKind.START
        except Stuck as e:
            error, stuck = str(e), True
        except RuntimeTrouble as e:
            error, trouble = str(e), True
        except LaunchFailed as e:
            error, port_taken = str(e), isinstance(e, PortTaken)
        except Exception as e:
            error, trouble = f"{type(e).__name__}: {e}", True
            if is_exhausted(e):
                log.error(f"{step.kind} {step.name} was not possible: {e}; chatglm-hactl doctor")
            else:
                log.exception("BUG: a step ended unexpectedly", step=step.kind, instance=step.name)
        return Outcome(
            name=step.name,
            step=step.kind.value,
            ok=not error,
            at=self._clock(),
            error=error,
            tail=tail,
            stuck=stuck,
            trouble=trouble,
            port_taken=port_taken,
        )

    async def _carry_out(self, step: Step) -> str:
        match step.kind:
            case StepKind.START:
                await self._runtime.start(Launch(step.name, step.port, step.gpus))
                return ""
            case StepKind.STOP:
                return await self._runtime.stop(step.name, step.runtime_id, step.grace)
            case StepKind.KILL:
                return await self._runtime.kill(step.name, step.runtime_id)
            case StepKind.CLEAR:
                return await self._runtime.clear(step.name, step.runtime_id)

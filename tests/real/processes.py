"""Folders of a daemon with the process runtime, and what tests ask of its instances."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from hasupervisor.model import Fact, Phase
from hasupervisor.runtimes.base import Launch
from hasupervisor.runtimes.process import ProcessRuntime
from hasupervisor.runtimes.process_launch import ProcessSettings
from tests.real.asking import answers, the
from tests.real.waiting import eventually


class House:
    """Folders of one daemon, and adapters over them; what still runs is ended afterwards."""

    def __init__(self, folder: Path, command: tuple[str, ...]) -> None:
        self.run_dir, self.log_dir, self.command = folder / "run", folder / "logs", command
        self.adapters: list[ProcessRuntime] = []

    def adapter(self, *command: str, env: Mapping[str, str] | None = None) -> ProcessRuntime:
        settings = ProcessSettings(
            command=command or self.command, run_dir=self.run_dir, log_dir=self.log_dir, env=env or {}
        )
        self.adapters.append(ProcessRuntime(settings))
        return self.adapters[-1]

    def script(self, text: str, env: Mapping[str, str] | None = None) -> ProcessRuntime:
        """An adapter whose instances are this Python."""
        return self.adapter("{python}", "-c", text, "{name}", "{port}", env=env)

    def record(self, name: str = "chatglm-01") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir / f"{name}.json").read_text())
        return found

    def rewrite(self, **changes: Any) -> None:
        path = self.run_dir / "chatglm-01.json"
        path.write_text(json.dumps({**self.record(), **changes}))


async def serving(runtime: ProcessRuntime, name: str, port: int, *gpus: str) -> Fact:
    await runtime.start(Launch(name, port, gpus))
    fact = await the(runtime, name)
    await eventually(lambda: answers(fact))
    return fact


async def ended(runtime: ProcessRuntime, name: str = "chatglm-01") -> Fact | None:
    fact = await the(runtime, name)
    return fact if fact.phase is Phase.EXITED else None


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE

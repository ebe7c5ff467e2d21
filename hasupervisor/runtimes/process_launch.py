"""What a process of ours is made of: its environment, its command, and the keeper that is asked to start it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hasupervisor.config.values import PLACEHOLDERS
from hasupervisor.runtimes import keeper
from hasupervisor.runtimes.base import Launch, LaunchFailed, RuntimeTrouble

LAUNCH_DEADLINE = 15.0  # a keeper answers in 0.1 s; the rest is for a machine that is busy loading models

INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""What an instance gets of the daemon's own environment, and all that begins with LC_; the rest is [process].env."""


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How instances are run as processes. `command` may hold PLACEHOLDERS."""

    command: tuple[str, ...]
    run_dir: Path  # of this daemon alone: it holds a lock on its state
    log_dir: Path
    bind: str = "127.0.0.1"
    env: Mapping[str, str] = field(default_factory=dict)
    open_files: int | None = None  # the soft limit that instances get; None: the daemon's own


def environment(settings: ProcessSettings, launch: Launch) -> dict[str, str]:
    """The whole environment of an instance."""
    inherited = {key: value for key, value in os.environ.items() if key in INHERITED or key.startswith("LC_")}
    # Its output is a file, which Python would write to by the block: the last lines before a crash would be lost.
    own = {"PYTHONUNBUFFERED": "1", **settings.env, "HOST": settings.bind, "PORT": str(launch.port)}
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(launch.gpus)} if launch.gpus else {}
    return {**inherited, **own, **gpus}


def why_not(settings: ProcessSettings, launch: Launch, error: str) -> str:
    """Why a keeper could not start it, from its "reason: what": the program, or a file of ours."""
    program = filled_in(settings.command[0], launch)
    if error.endswith(f": {program}"):
        return f"cannot run {program}: {error}; chatglm-hactl config show"
    return f"cannot write down its start: {error}; df -h {settings.run_dir} {settings.log_dir}"


def filled_in(word: str, launch: Launch) -> str:
    # Not str.format: a command may hold JSON.
    for placeholder, value in zip(PLACEHOLDERS, (sys.executable, str(launch.port), launch.name), strict=True):
        word = word.replace(placeholder, value)
    return word


async def ask_keeper(name: str, spec: Mapping[str, object]) -> dict[str, object]:
    """Starts a keeper and returns its answer, {"pid", "start"} or {"error"}. Raises LaunchFailed when there is none.

    RuntimeTrouble when the host cannot start one now: no failure of the instance.
    """
    env = {"PATH": os.environ.get("PATH", os.defpath)}
    command = [sys.executable, "-I", "-S", keeper.__file__, name, str(spec["run_file"])]
    try:
        starter = await asyncio.create_subprocess_exec(*command, stdin=-1, stdout=-1, stderr=-1, env=env)
    except OSError as error:  # no descriptor, no memory, or an interpreter that is being upgraded
        raise RuntimeTrouble(f"cannot start a keeper: {error.strerror}: {sys.executable}; df -h, free -m") from error
    try:
        async with asyncio.timeout(LAUNCH_DEADLINE):
            said, complaint = await starter.communicate(json.dumps(spec).encode())
    except TimeoutError:
        starter.kill()
        await starter.wait()
        raise LaunchFailed(f"its keeper has not started it in {LAUNCH_DEADLINE:g} s; ps -ef | grep keeper.py") from None
    try:
        answer: dict[str, object] = json.loads(said)
    except ValueError:
        words = " ".join((complaint or said).decode(errors="replace").split()[-30:])
        raise LaunchFailed(f"its keeper failed: {words}; {sys.executable} -I -S {keeper.__file__}") from None
    return answer

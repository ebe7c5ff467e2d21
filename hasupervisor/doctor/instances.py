"""What the process runtime starts: is the program there, and for the model server of this project, torch?"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from hasupervisor.config import Config
from hasupervisor.doctor.finding import Finding, fail, ok

CHECK = "process"
MODEL_SERVER = ("-m", "model_api")


def examine(config: Config) -> list[Finding]:
    if config.service.runtime != "process":
        return []
    program, *arguments = (word.replace("{python}", sys.executable) for word in config.process.command)
    found = shutil.which(program)
    if found is None:
        return [fail(CHECK, f"process.command: there is no program {program}", "chatglm-hactl config check")]
    if Path(found) == Path(sys.executable) and tuple(arguments[:2]) == MODEL_SERVER:
        missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            return [
                fail(
                    CHECK,
                    f"process.command is this project's model server, and {found} has no {' and no '.join(missing)}",
                    "a virtual environment with 'chatglm-ha[model]', and its python in process.command",
                )
            ]
    return [ok(CHECK, f"process.command: {found} is here")]

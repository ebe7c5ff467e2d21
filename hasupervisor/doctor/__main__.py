"""`python -m hasupervisor.doctor`: examines this host and prints one JSON document; `chatglm-hactl doctor` shows it.

Exits 0 whatever is found; the document says it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from hasupervisor import assembly, config
from hasupervisor.config import Config, ConfigError
from hasupervisor.doctor import account, engine, gateway, gpus, host, instances, ports, unit
from hasupervisor.doctor.finding import Finding, fail, ok, warn


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is the document's
    path = options.config or Path(config.DEFAULT_PATH)
    try:
        settings = config.load(path, os.environ)
    except ConfigError as error:
        hint = f"chatglm-hactl config check {path}"
        findings = [*(fail("config", str(problem), hint) for problem in error.problems), *_whatever_is_configured()]
        valid = False
    else:
        findings, valid = asyncio.run(examine(settings, path, options.daemon)), True
    document = {"config": str(path), "config_valid": valid, "checks": [found.document() for found in findings]}
    json.dump(document, sys.stdout, ensure_ascii=False)
    return 0


async def examine(settings: Config, path: Path, daemon: int | None) -> list[Finding]:
    """Everything, in the order in which a person would look. Each part has its own deadlines."""
    nginx = assembly.nginx_settings(settings)
    async with asyncio.TaskGroup() as together:
        asking_engine = together.create_task(engine.examine(settings))
        asking_nginx = together.create_task(gateway.examine(nginx))
        asking_systemd = together.create_task(unit.ask())
        asking_nvml = together.create_task(gpus.ask(settings))
    of_engine, dockerd = asking_engine.result()
    shown, driver = asking_systemd.result(), asking_nvml.result()
    folders = [settings.state.dir, settings.log_dir, gateway.folder(nginx), dockerd.root if dockerd else None]
    return [
        *_configuration(settings, path),
        *unit.examine(shown),
        unit.group(settings),
        *account.examine(shown, settings, path),
        *of_engine,
        *instances.examine(settings),
        *gpus.examine(settings, dockerd, driver),
        *(gpus.kernel_log(driver, daemon) if not account.is_used(shown) else []),
        *asking_nginx.result(),
        *ports.examine(settings, daemon),
        *host.disks(folder for folder in folders if folder is not None),
        host.open_files(daemon, unit.files(shown), settings.nginx.hold_max),
        *_whatever_is_configured(),
    ]


def _configuration(settings: Config, path: Path) -> list[Finding]:
    unused = [
        warn("config", f"{key} is set, but this release does not use it yet", f"{settings.where(key)}: leave it out")
        for key in config.unused_keys(settings)
    ]
    retired = [warn("config", sentence, "chatglm-hactl config check") for sentence in config.retired_keys(settings)]
    return [ok("config", f"{path} is valid"), *unused, *retired]


def _whatever_is_configured() -> list[Finding]:
    return [host.clock(), *host.modules()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hasupervisor.doctor")
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--daemon", type=int, metavar="PID", help="of the daemon that runs, where one does")
    return parser


if __name__ == "__main__":
    sys.exit(main())

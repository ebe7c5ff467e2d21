"""What systemd says of the daemon's unit, and who may command the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import grp
from collections.abc import Mapping
from pathlib import Path

from hasupervisor.config import Config
from hasupervisor.doctor.finding import Finding, ok, warn

CHECK = "service"
UNIT = "chatglm-ha.service"
ASK_S = 10.0
PROPERTIES = (
    "LoadState",
    "ActiveState",
    "UnitFileState",
    "NeedDaemonReload",
    "LimitNOFILE",
    "User",
    "PrivateTmp",
    "MemoryDenyWriteExecute",
    "ProtectSystem",
    "ReadWritePaths",
)


async def ask() -> Mapping[str, str]:
    """The unit's properties; nothing where systemd does not run this host or gives no answer."""
    if not _booted_by_systemd():
        return {}
    command = ["systemctl", "show", "--property", ",".join(PROPERTIES), UNIT]
    try:
        asked = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return {}
    try:
        async with asyncio.timeout(ASK_S):
            output, _ = await asked.communicate()
    except TimeoutError:
        return {}
    finally:
        if asked.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                asked.kill()
    pairs = (line.partition("=") for line in output.decode(errors="replace").splitlines())
    return {name: value for name, _, value in pairs}


def _booted_by_systemd() -> bool:
    """As sd_booted(3) has it."""
    return Path("/run/systemd/system").is_dir()


def examine(shown: Mapping[str, str]) -> list[Finding]:
    """`shown`: the unit's properties, as `ask` has them."""
    if not shown:
        return [ok(CHECK, "no systemd answers here: whoever starts the daemon has to start it again")]
    if shown.get("LoadState") != "loaded":
        return [warn(CHECK, f"systemd has no {UNIT}: nobody starts the daemon again", "sudo make install")]
    findings = []
    if shown.get("NeedDaemonReload") == "yes":
        findings.append(
            warn(CHECK, "the unit has changed on disk, and systemd has not read it yet", "systemctl daemon-reload")
        )
    if shown.get("UnitFileState") not in ("enabled", "enabled-runtime"):
        findings.append(warn(CHECK, "the daemon is not started at boot", "systemctl enable chatglm-ha"))
    return findings or [ok(CHECK, f"{UNIT} is enabled: the daemon is started at boot, and again when it dies")]


def files(shown: Mapping[str, str]) -> int | None:
    """How many files the unit lets the daemon open; None: unknown."""
    limit = shown.get("LimitNOFILE", "")
    return int(limit) if limit.isdigit() and shown.get("LoadState") == "loaded" else None


def group(config: Config) -> Finding:
    name = config.control.group
    if not name:
        return ok("socket", "control.group is empty: only the daemon's own user may command it")
    try:
        members = grp.getgrnam(name).gr_mem
    except KeyError:
        return warn(
            "socket", f"there is no group {name}: only root may command the daemon", f"groupadd --system {name}"
        )
    who = ", ".join(members) if members else "nobody yet but root"
    return ok("socket", f"{name} may use {config.control.socket}: {who}")

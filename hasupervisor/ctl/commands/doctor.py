"""`doctor`: examine this host, whether the daemon runs or not, and say what to mend."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass

import click

from hasupervisor import __version__
from hasupervisor.ctl.client import Client
from hasupervisor.ctl.commandline import DEBUG_VARIABLE, Command, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.screen import emit, emit_json
from hasupervisor.ctl.text import Paint, clean

EXAMINE_S = 120.0  # its parts have deadlines of seconds; a name that does not resolve takes nginx longest
_COLOURS = {"fail": "red", "warn": "yellow", "ok": "green"}  # the worst first
_INDENT = " " * 4


Check = dict[str, str | None]  # check, level, sentence, hint


@dataclass(frozen=True, slots=True)
class _Daemon:
    """What the daemon said of itself, and what there is to say of that."""

    finding: Check
    pid: int | None = None
    config: str | None = None


@click.command(cls=Command)
@click.option("--config", type=click.Path(), metavar="FILE", help="Examine for this file; else for the daemon's own.")
@click.pass_context
def command(ctx: click.Context, config: str | None) -> int:
    """Examine this host, and say what to mend.

    Docker, nginx, ports, disks, limits, clock, GPUs, the unit and who may use the socket; no daemon is needed. As root
    it sees most. Exits 0 when nothing fails, 1 when something does, 2 when the configuration is not valid.

    \b
    chatglm-hactl doctor
    """
    settings = Settings.of(ctx)
    daemon = _ask(settings.client)
    answer = _examine(config, daemon)
    checks = [daemon.finding, *map(_check, answer.parts("checks"))]
    valid, levels = answer.flag("config_valid"), [check["level"] for check in checks]
    level = next(level for level in _COLOURS if level in levels)
    if settings.json:
        emit_json({"schema": 1, "level": level, "config": answer.text("config"), "checks": checks})
    else:
        emit(*_picture(checks, level, settings.paint))
    return Exit.USAGE if not valid else Exit.FAILED if level == "fail" else Exit.DONE


def _ask(client: Client) -> _Daemon:
    """What the daemon says, where it runs; that it does not is for a first start no fault yet."""
    try:
        version = client.get("/v1/version")
        config = client.get("/v1/config").maybe_text("path")
    except Failure as failure:
        hint = failure.hint or "systemctl enable --now chatglm-ha, or: systemctl status chatglm-ha"
        return _Daemon({"check": "daemon", "level": "warn", "sentence": failure.sentence, "hint": hint})
    pid, runs = version.maybe_number("pid"), version.text("version")
    found: Check = {
        "check": "daemon",
        "level": "ok",
        "sentence": f"chatglm-had {runs} answers on {client.path}",
        "hint": None,
    }
    if runs != __version__:
        differ = f"chatglm-had {runs} runs, {__version__} is installed"
        found |= {
            "level": "warn",
            "sentence": differ,
            "hint": "systemctl restart chatglm-ha (instances are not touched)",
        }
    return _Daemon(found, None if pid is None else int(pid), config)


def _examine(config: str | None, daemon: _Daemon) -> Document:
    """The daemon's part of the installation looks, in a process of its own: this tool knows nothing of the daemon."""
    import subprocess

    arguments = [sys.executable, "-P", "-m", "hasupervisor.doctor"]
    folder = None
    if config is None and daemon.config is not None:
        config, folder = daemon.config, _folder_of(daemon.pid)
    arguments += ["--config", config] if config is not None else []
    arguments += ["--daemon", str(daemon.pid)] if daemon.pid is not None else []
    # A variable of this tool is no setting.
    environment = {name: value for name, value in os.environ.items() if name != DEBUG_VARIABLE}
    try:
        done = subprocess.run(
            arguments, env=environment, cwd=folder, timeout=EXAMINE_S, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(Exit.FAILED, f"the examination did not end within {EXAMINE_S:g} s") from error
    try:
        return Document(json.loads(done.stdout), "the examination")
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Failure(Exit.FAILED, f"the examination ended with {done.returncode}: {last}") from error


def _check(one: Document) -> Check:
    return {key: one.text(key) for key in ("check", "level", "sentence")} | {"hint": one.maybe_text("hint")}


def _folder_of(pid: int | None) -> str | None:
    """Where the daemon runs, for the paths in its file that are relative to that; None where only root may see it."""
    folder = f"/proc/{pid}/cwd"
    return folder if pid is not None and os.access(folder, os.X_OK) else None


def _picture(checks: list[Check], level: str, paint: Paint) -> list[str]:
    """The verdict, then the worst first; under each what mends it."""
    counts = {one: sum(check["level"] == one for check in checks) for one in _COLOURS}
    words = {"fail": f"{counts['fail']} to mend", "warn": f"{counts['warn']} to look at", "ok": f"{counts['ok']} ok"}
    lines = [f"{paint(level.upper(), _COLOURS[level])} {', '.join(words[one] for one in _COLOURS if counts[one])}", ""]
    width = max(len(check["check"] or "") for check in checks)
    for one in _COLOURS:
        for check in checks:
            if check["level"] == one:
                name = f"{check['check']:<{width}}"
                lines.append(f"{paint(f'{one:<4}', _COLOURS[one])}  {name}  {clean(check['sentence'] or '')}")
                lines += [f"{_INDENT}{clean(check['hint'])}"] if check["hint"] else []
    return lines

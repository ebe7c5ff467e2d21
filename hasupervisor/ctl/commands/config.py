"""`config`: check a file, show what the daemon runs with, have it read the file again."""

from __future__ import annotations

import json
import math
import os
import sys

import click

from hasupervisor.ctl.client import SLOW_ANSWER_S
from hasupervisor.ctl.commandline import DEBUG_VARIABLE, Group, Settings
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.screen import emit, emit_json, say
from hasupervisor.ctl.text import clean

CHECK_S = 60.0


@click.group(cls=Group)
def command() -> None:
    """Check, show or reload the configuration.

    \b
    chatglm-hactl config check /etc/chatglm-ha/config.toml
    """


@command.command()
@click.argument("file", required=False, type=click.Path())
def check(file: str | None) -> int:
    """Validate FILE, or the one of this host; no daemon is needed.

    Prints every error with its line; exits 0 or 2. It is `chatglm-had --check`.

    \b
    chatglm-hactl config check ./config.toml
    """
    import subprocess

    # A variable of this tool is no setting, and the daemon would say so.
    environment = {name: value for name, value in os.environ.items() if name != DEBUG_VARIABLE}
    arguments = [*_daemon_program(), "--check", *(["--config", file] if file else [])]
    try:
        code = subprocess.run(arguments, env=environment, timeout=CHECK_S, check=False).returncode
    except OSError as error:
        raise Failure(Exit.FAILED, f"cannot run {arguments[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(Exit.FAILED, f"{arguments[0]} --check did not end within {CHECK_S:g} s") from error
    if code not in (Exit.DONE, Exit.USAGE):
        raise Failure(Exit.FAILED, f"{arguments[0]} --check ended with {code}: nothing is known of the file")
    return code


@command.command()
@click.pass_context
def show(ctx: click.Context) -> int:
    """Print what the daemon runs with, every default filled in and secrets masked.

    \b
    chatglm-hactl config show
    """
    settings = Settings.of(ctx)
    answer = settings.client.get("/v1/config")
    if settings.json:
        emit_json(answer.raw)
        return Exit.DONE
    emit(f"# {answer.maybe_text('path') or 'no file: defaults'}")
    sections = answer.part("config")
    for name in sections.raw:
        emit("", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in sections.part(name).raw.items()))
    return Exit.DONE


@command.command()
@click.pass_context
def reload(ctx: click.Context) -> int:
    """Have the daemon read its file again: all of it, or nothing where it has an error (exit 2).

    \b
    chatglm-hactl config reload
    """
    settings = Settings.of(ctx)
    answer = settings.client.post("/v1/config/reload", patience=SLOW_ANSWER_S)
    if settings.json:
        emit_json(answer.raw)
        return Exit.DONE
    changed = answer.texts("changed")
    if changed:
        emit(*map(clean, changed))
    say(f"{len(changed)} changed" if changed else "nothing has changed")
    return Exit.DONE


def _daemon_program() -> list[str]:
    """chatglm-had of the same installation as this tool."""
    from pathlib import Path

    beside = Path(sys.argv[0]).resolve().parent / "chatglm-had"
    return [str(beside)] if beside.is_file() else [sys.executable, "-m", "hasupervisor"]


def _toml(value: object) -> str:
    if value is None:
        return '""'  # as the file says that a key has no value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)

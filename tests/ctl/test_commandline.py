"""The command line itself: global options on either side, help, mistakes, what is imported."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hasupervisor.ctl.commandline import Program
from hasupervisor.ctl.main import COMMANDS, cli, main
from tests.ctl import documents
from tests.ctl.conftest import Run
from tests.ctl.stand_in import StandIn

HEAVY = {
    "asyncio",
    "dataclasses_json",
    "docker",
    "email",
    "http.client",
    "httpx",
    "jinja2",
    "pathlib",
    "prometheus_client",
    "psutil",
    "pydantic",
    "requests",
    "rich",
    "sqlite3",
    "ssl",
    "starlette",
    "structlog",
    "subprocess",
    "unicodedata",
    "urllib.parse",
    "uvicorn",
}
LATER = ("upgrade", "rollback", "top")


def _every_command() -> list[list[str]]:
    """Each command and each command below one, as one types it."""
    assert isinstance(cli, Program)
    found: list[list[str]] = []
    for name in COMMANDS:
        found.append([name])
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            found += [[name, below] for below in command.commands]
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "status"],
        ["status", "--json"],
        ["-o", "json", "status"],
        ["status", "-o", "json"],
        ["-o", "wide", "status", "--json"],
        ["status", "-o", "wide", "--json"],
        ["status", "--json", "-o", "table", "-o", "json"],
    ],
    ids=" ".join,
)
def test_global_options_stand_before_or_after_the_command_and_the_later_wins(
    hactl: Run, daemon: StandIn, arguments: list[str]
) -> None:
    result = hactl(*arguments)
    assert result.returncode == 0
    assert json.loads(result.stdout) == documents.status()


def test_global_options_go_with_the_commands_below_a_command(hactl: Run, daemon: StandIn) -> None:
    texts = {
        hactl(*arguments).stdout
        for arguments in (["--json", "nginx", "show"], ["nginx", "--json", "show"], ["nginx", "show", "--json"])
    }
    assert [json.loads(text) for text in texts] == [documents.NGINX]


@pytest.mark.parametrize("before", [True, False])
def test_the_socket_is_named_by_an_option_over_the_variable(
    hactl: Run, daemon: StandIn, folder: Path, before: bool
) -> None:
    named = ["--socket", str(daemon.path)]
    result = hactl(*(named if before else []), "version", *([] if before else named), CHATGLM_HA_SOCKET="/nowhere")
    assert result.returncode == 0


def test_without_option_or_variable_it_is_the_installed_daemons_socket(hactl: Run) -> None:
    result = hactl("status", CHATGLM_HA_SOCKET="")
    assert "/run/chatglm-ha/control.sock" in result.stderr


@pytest.mark.parametrize("arguments", [["-V"], ["status", "--version"]])
def test_the_version_of_the_tool_needs_no_daemon(hactl: Run, arguments: list[str]) -> None:
    result = hactl(*arguments)
    assert (result.stdout, result.stderr, result.returncode) == ("chatglm-hactl 0.1.0\n", "", 0)


@pytest.mark.parametrize("command", _every_command(), ids=" ".join)
def test_every_command_has_help_with_an_example_that_fits_80_columns(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "-h"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: chatglm-hactl {' '.join(command)} ")
    assert f"\n  chatglm-hactl {command[0]}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_first_page_lists_every_command_in_order(hactl: Run) -> None:
    result = hactl("-h")
    assert (result.returncode, result.stderr) == (0, "")
    listed = result.stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert not any("..." in line for line in listed)


@pytest.mark.parametrize("name", LATER)
def test_commands_that_are_not_built_yet_do_not_exist(hactl: Run, name: str) -> None:
    result = hactl(name)
    assert result.returncode == 2
    assert f"No such command '{name}'." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explian"], "Did you mean 'explain'?"),
        (["nginx", "relaod"], "Did you mean 'reload'?"),
        (["status", "--wach"], "Did you mean '--watch'?"),
        (["scale"], "Missing argument 'N'."),
        (["scale", "many"], "'many' is not a valid integer"),
        (["scale", "4", "--timeout", "soon"], "'soon' is not a duration such as 90, 90s, 10m, 2h or 1d"),
        (["scale", "4", "--timeout", "0"], "'0' is not a duration such as 90, 90s, 10m, 2h or 1d"),
        (["history", "--since", "lunch"], "'lunch' is neither a duration (1h, 30m) nor a time (2026-11-24T03:00)"),
        (["status", "-o", "yaml"], "'yaml' is not one of 'table', 'wide', 'json'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_exit_2_with_what_was_meant_and_where_help_is(
    hactl: Run, daemon: StandIn, arguments: list[str], words: str
) -> None:
    result = hactl(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr
    assert "Try 'chatglm-hactl" in result.stderr
    assert "--help' for help." in result.stderr
    assert not daemon.state.requests


def test_nothing_heavy_is_imported_for_status(daemon: StandIn, env: dict[str, str]) -> None:
    """Every module costs milliseconds, and an operator types this a hundred times a day."""
    ask = "import sys; from hasupervisor.ctl.main import main; main(['status']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    imported = set(result.stdout.splitlines()[-1].split())
    assert not {name for name in imported if name in HEAVY or name.split(".")[0] in HEAVY}
    ours = {name for name in imported if name.startswith("hasupervisor")}
    assert all(name == "hasupervisor" or name.startswith("hasupervisor.ctl") for name in ours)
    assert {name for name in ours if "commands." in name} == {"hasupervisor.ctl.commands.status"}


def test_each_command_is_in_a_file_of_its_own_name() -> None:
    folder = Path(importlib.import_module("hasupervisor.ctl.commands").__path__[0])
    assert sorted(path.stem for path in folder.glob("[!_]*.py")) == sorted(COMMANDS)

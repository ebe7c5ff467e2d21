"""How every command of chatglm-hactl is made: global options on either side of it, short help, loaded when used."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from hasupervisor import __version__
from hasupervisor.ctl.client import Client
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.screen import columns_of, is_terminal, painter
from hasupervisor.ctl.text import Paint

PROGRAM = "chatglm-hactl"
SOCKET = "/run/chatglm-ha/control.sock"
SOCKET_VARIABLE = "CHATGLM_HA_SOCKET"
DEBUG_VARIABLE = "CHATGLM_HA_DEBUG"  # "1": a traceback with every message


@dataclass(frozen=True, slots=True)
class Settings:
    """What the global options say, wherever on the command line they stood; of two that disagree the later one."""

    socket: str
    output: str  # "table" | "wide" | "json"
    color: bool

    @classmethod
    def of(cls, ctx: click.Context) -> Settings:
        meta: Mapping[str, Any] = ctx.meta
        no_color = meta.get("hactl.no_color") or os.environ.get("NO_COLOR") or not is_terminal(sys.stdout)
        return cls(
            socket=meta.get("hactl.socket") or os.environ.get(SOCKET_VARIABLE) or SOCKET,
            output=meta.get("hactl.output", "table"),
            color=not no_color,
        )

    @property
    def json(self) -> bool:
        return self.output == "json"

    @property
    def wide(self) -> bool:
        return self.output == "wide"

    @property
    def client(self) -> Client:
        return Client(self.socket)

    @property
    def paint(self) -> Paint:
        return painter(color=self.color)

    @property
    def columns(self) -> int | None:
        """The columns that a table has; None: as many as it wants."""
        return None if self.wide else columns_of(sys.stdout)


class GlobalOption(click.Option):
    """An option that stands before or after the command; it is kept for the whole call, not handed to one command."""


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value:
        ctx.meta[f"hactl.{param.name}"] = value


def _keep_json(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["hactl.output"] = "json"


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()


def _global_options() -> list[click.Parameter]:
    return [
        GlobalOption(
            ["--socket"],
            type=click.Path(),
            callback=_keep,
            expose_value=False,
            metavar="PATH",
            help=f"The daemon's control socket; else {SOCKET_VARIABLE}, else {SOCKET}.",
        ),
        GlobalOption(
            ["-o", "--output"],
            type=click.Choice(["table", "wide", "json"]),
            callback=_keep,
            expose_value=False,
            help="How to print: a table (narrow terminals leave columns out), all of it, or JSON.",
        ),
        GlobalOption(["--json"], is_flag=True, callback=_keep_json, expose_value=False, help="The same as -o json."),
        GlobalOption(
            ["--no-color"],
            is_flag=True,
            callback=_keep,
            expose_value=False,
            help="No colours (NO_COLOR says the same).",
        ),
        GlobalOption(
            ["-V", "--version"],
            is_flag=True,
            is_eager=True,
            callback=_print_version,
            expose_value=False,
            help="Print the version of this tool.",
        ),
    ]


def _format_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """The command's own options; the global ones in full only on the first page."""
    options = [param for param in command.get_params(ctx) if isinstance(param, click.Option)]
    everywhere = [param for param in options if isinstance(param, GlobalOption)]
    own = [param for param in options if not isinstance(param, GlobalOption)]
    shown = [param.get_help_record(ctx) for param in (everywhere + own if ctx.parent is None else own)]
    with formatter.section("Options"):
        formatter.write_dl(list(filter(None, shown)))
    if ctx.parent is not None:
        formatter.write_paragraph()
        formatter.write_text(f"Global options go anywhere: {PROGRAM} -h lists them.")


class Command(click.Command):
    """A command that takes the global options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _format_options(self, ctx, formatter)


class Group(click.Group):
    """A command with commands below it; they are listed in the order in which they were given."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


class Program(Group):
    """The program itself: the file of a command is imported when the command is named."""

    def __init__(self, *args: Any, names: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names = names

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._names:
            return None
        command = import_module(f"hasupervisor.ctl.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:  # click knows only the commands that have been imported
            raise click.NoSuchCommand(error.command_name, possibilities=self._names, ctx=ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError as error:  # click would make it a plain 1
            raise Failure(Exit.CLOSED, "nobody reads the output any more") from error

"""Writes the manual pages from the commands themselves: chatglm-hactl(1) and chatglm-had(8), compressed.

tools/manpages.py FOLDER writes FOLDER/man1 and FOLDER/man8, as /usr/share/man has them.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from pathlib import Path

import click

from hasupervisor import __version__
from hasupervisor.ctl.commandline import PROGRAM, GlobalOption
from hasupervisor.ctl.main import cli
from hasupervisor.daemon import _parser

HACTL = "operate the ChatGLM instances of this host"
HAD = "keep the ChatGLM instances of this host serving"
EXIT_CODES = (
    ("0", "done"),
    ("1", "the operation failed, or was cancelled"),
    ("2", "usage or configuration"),
    ("3", "the daemon does not answer"),
    ("4", "permission denied on the socket"),
    ("5", "refused: paused, no capacity, out of bounds"),
    ("6", "no such instance or operation"),
    ("7", "--timeout ran out; the operation goes on"),
)
FILES = (
    ("/etc/chatglm-ha/config.toml", "the configuration; every key with its default: /usr/share/chatglm-ha/config.toml"),
    ("/run/chatglm-ha/control.sock", "the daemon's socket, for root and the group chatglm-ha"),
    ("/var/lib/chatglm-ha/", "what the daemon remembers, and nginx's files"),
)


def hactl() -> str:
    """chatglm-hactl(1) in troff."""
    ctx = click.Context(cli, info_name=PROGRAM)
    options = [param for param in cli.params if isinstance(param, GlobalOption)]
    lines = [_head(PROGRAM, 1, HACTL), ".SH SYNOPSIS", f".B {_plain(PROGRAM)}", "[options] command [arguments]"]
    lines += [".SH DESCRIPTION", *_paragraphs(cli.help or ""), ".SH OPTIONS", *_options(options, ctx), ".SH COMMANDS"]
    for command, below in _commands(cli, ctx):
        usage = [below.command_path.removeprefix(f"{PROGRAM} "), *command.collect_usage_pieces(below)]
        own = [one for one in command.params if isinstance(one, click.Option) and not isinstance(one, GlobalOption)]
        lines += [f'.SS "{_plain(" ".join(usage))}"', *_paragraphs(command.help or ""), *_options(own, below)]
    lines += [".SH EXIT STATUS", *_pairs(EXIT_CODES), "", "check has those of Nagios.", *_ending("chatglm-had", 8)]
    return "\n".join(lines) + "\n"


def had() -> str:
    """chatglm-had(8) in troff."""
    parser = _parser()
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split()[1:])
    options = [
        (" ".join([", ".join(action.option_strings), *_value(action)]), action.help or "") for action in parser._actions
    ]
    lines = [_head("chatglm-had", 8, HAD), ".SH SYNOPSIS", ".B chatglm\\-had", _plain(usage), ".SH DESCRIPTION"]
    lines += [
        _plain("One daemon for a host: it starts the instances, asks how they are, takes those that cannot serve out"),
        _plain("of nginx and starts them again. systemd runs it as chatglm-ha.service; what it started outlives it."),
        ".SH OPTIONS",
        *_pairs(options),
        ".SH SIGNALS",
        *_pairs([("SIGTERM, SIGINT", "end; instances and nginx go on"), ("SIGHUP", "read the configuration again")]),
        ".SH EXIT STATUS",
        *_pairs([("0", "done"), ("1", "it cannot run here, or has failed"), ("2", "usage or configuration")]),
        *_ending(PROGRAM, 1),
    ]
    return "\n".join(lines) + "\n"


def _head(name: str, section: int, purpose: str) -> str:
    title = f'.TH {name.upper()} {section} "" "chatglm-ha {__version__}" "chatglm-ha"'
    return f"{title}\n.SH NAME\n{_plain(name)} \\- {_plain(purpose)}"


def _ending(other: str, section: int) -> list[str]:
    return [".SH FILES", *_pairs(FILES), ".SH SEE ALSO", f".BR {_plain(other)} ({section})"]


def _commands(group: click.Group, ctx: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None, name
        below = click.Context(command, info_name=name, parent=ctx)
        if isinstance(command, click.Group):
            yield from _commands(command, below)
        else:
            yield command, below


def _paragraphs(help_text: str) -> Iterator[str]:
    """Paragraphs, with examples (which click marks) as they stand."""
    for paragraph in cleandoc(help_text).split("\n\n"):
        example = paragraph.startswith("\b\n")
        lines = [_plain(line) for line in paragraph.removeprefix("\b\n").splitlines()]
        yield from [".PP", ".nf", ".RS 4", *lines, ".RE", ".fi"] if example else [".PP", *lines]


def _options(options: Iterable[click.Option], ctx: click.Context) -> list[str]:
    return _pairs(record for option in options if (record := option.get_help_record(ctx)))


def _value(action: argparse.Action) -> list[str]:
    if action.nargs == 0:
        return []
    return ["|".join(action.choices) if action.choices else str(action.metavar or action.dest.upper())]


def _pairs(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [line for name, words in pairs for line in (".TP", f".B {_plain(name)}", _plain(words))]


def _plain(text: str) -> str:
    """Text that troff takes as it stands: backslashes, hyphens that are typed, a line that begins like a request."""
    safe = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{safe}" if safe.startswith((".", "'")) else safe


def main(folder: Path) -> None:
    for name, section, text in (("chatglm-hactl", 1, hactl()), ("chatglm-had", 8, had())):
        path = folder / f"man{section}" / f"{name}.{section}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

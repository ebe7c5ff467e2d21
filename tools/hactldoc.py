"""Writes docs/hactl.md anew from the commands themselves; a test holds the page to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import cleandoc
from pathlib import Path

import click

from hasupervisor.ctl.commandline import PROGRAM, GlobalOption
from hasupervisor.ctl.main import cli

ROOT = Path(__file__).resolve().parent.parent

INTRODUCTION = """\
# chatglm-hactl

<!-- Written by tools/hactldoc.py from hasupervisor/ctl/commands/: change it there, then `make docs`. -->

The operator's tool. It talks to the daemon of this host over its Unix socket, and to nothing else
([the control socket](control-api.md)); whoever is in the socket's group may use it, and what they do is in the history
under their name. Data goes to stdout, words about it to stderr.

    $ chatglm-hactl status
    YELLOW chatglm on gpu-07: 1 of 2 serving

    chatglm-02: backing off: exited 1, try 4 of 5 in 40 s
        chatglm-hactl logs chatglm-02 --last-failure

    NAME        STATE    AGE    ENDPOINT        IN-FLIGHT  QPS   P95  ERRORS  RESTARTS  REASON
    chatglm-02  backoff  12s    127.0.0.1:8001          0  0.0     -      0%         3  exited 1, try 4 of 5 in 40 s
    chatglm-01  serving  3m12s  127.0.0.1:8000          3  4.2  1.8s      0%         1  answers, 3 in flight

    nginx      ok, 1 server, runs generation 41
    autoscale  manual, holding 2: set by hand (mode manual); `chatglm-hactl autoscale on` gives it back
    traffic    8.1/s, p50 790ms, p95 1.9s, 0% errors, 5 in flight

AGE is the time in that state. QPS, P95 and ERRORS are those of the last minute at the gateway. A dash is a number that
nobody knows. Under a problem stands the next command to type.

"""

CODES = """\
## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | the operation failed, or was cancelled |
| 2 | usage or configuration |
| 3 | the daemon does not answer; the message says how to see what still serves |
| 4 | permission denied on the socket; the message says which group may |
| 5 | refused: paused, no capacity, out of bounds |
| 6 | no such instance, operation or GPU; the message names those there are |
| 7 | `--timeout` ran out; the operation goes on |
| 130 | Ctrl-C on a command that waits; the operation goes on |
| 141 | whoever read the output has gone (`chatglm-hactl history \\| head -1`) |

Ctrl-C is not 7: a script that meets 7 has waited as long as it was told to and may watch on, 130 says that a person
broke off. What follows until one stops it (`status -w`, `history -f`, `logs -f`) ends by Ctrl-C with 0. `check` has the
codes of Nagios; only a mistake on its command line is 2 there as everywhere.

## Waiting

`scale`, `restart`, `drain`, `undrain` and `operations ID` wait until the operation has ended. On a terminal one line is
rewritten; elsewhere each change is a line on stderr. A daemon that restarts meanwhile is waited for, for a minute. The
operation belongs to the daemon: Ctrl-C, `--timeout` and a lost connection leave it running, and the message says how to
watch it and how to call it off. With `--json` the operation as it ended is printed; with `--no-wait` its id, at once.

Durations are `90`, `90s`, `10m`, `2h` or `1d`.

## JSON

`--json` prints the daemon's own document as [the control socket](control-api.md) describes it. What goes on
(`status -w`, `history`, `logs`) is one document a line. `CHATGLM_HA_DEBUG=1` adds the traceback to a message that does
not say enough.

## Completion

`chatglm-hactl completion bash|zsh|fish` prints the script for a shell; names of instances and UUIDs of GPUs are
completed too. For one session: `source <(chatglm-hactl completion bash)`.

"""


def page() -> str:
    """The whole page, in Markdown."""
    ctx = click.Context(cli, info_name=PROGRAM, **cli.context_settings)  # click keeps what it was asked first
    options = [param for param in cli.params if isinstance(param, GlobalOption)]
    parts = [INTRODUCTION, "## Global options\n\nThey stand before or after the command.\n\n", _options(options, ctx)]
    parts += [CODES, "## Commands\n\n"]
    parts += [_section(command, below) for command, below in _commands(cli, ctx)]
    return "".join(parts).rstrip() + "\n"


def _commands(group: click.Group, ctx: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None, name
        below = click.Context(command, info_name=name, parent=ctx)
        yield command, below
        if isinstance(command, click.Group):
            yield from _commands(command, below)


def _section(command: click.Command, ctx: click.Context) -> str:
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    own = [param for param in command.params if isinstance(param, click.Option) and not isinstance(param, GlobalOption)]
    title = ctx.command_path.removeprefix(f"{PROGRAM} ")
    return f"### {title}\n\n    {usage}\n\n{_text(command.help or '')}{_options(own, ctx)}"


def _text(help_text: str) -> str:
    """Paragraphs, with examples (which click marks) as code."""
    parts = []
    for paragraph in cleandoc(help_text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            parts.append("\n".join(f"    {line}" for line in paragraph.removeprefix("\b\n").splitlines()))
        else:
            parts.append(paragraph)
    return "\n\n".join(parts) + "\n\n"


def _options(options: Sequence[click.Option], ctx: click.Context) -> str:
    records = [record for option in options if (record := option.get_help_record(ctx))]
    if not records:
        return ""
    rows = [f"| `{names.replace('|', chr(92) + '|')}` | {words} |" for names, words in records]
    return "\n".join(["| option | |", "| --- | --- |", *rows]) + "\n\n"


def main() -> None:
    (ROOT / "docs" / "hactl.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""`logs`: what an instance has written."""

from __future__ import annotations

import json
import sys

import click

from hasupervisor.ctl.client import segment
from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.errors import Exit
from hasupervisor.ctl.parameters import instance_argument

LAST = 100


@click.command(cls=Command)
@instance_argument()
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes now.")
@click.option("-n", "n", type=click.IntRange(min=0), default=LAST, metavar="N", help=f"The last N lines ({LAST}).")
@click.option("--last-failure", is_flag=True, help="What it wrote last before it failed.")
@click.pass_context
def command(ctx: click.Context, name: str, follow: bool, n: int, last_failure: bool) -> int:
    """Print an instance's output as it is.

    \b
    chatglm-hactl logs chatglm-02 --last-failure
    """
    if follow and last_failure:
        raise click.UsageError("what has failed writes no more: leave -f or --last-failure", ctx=ctx)
    settings = Settings.of(ctx)
    query = {"n": str(n)} | ({"follow": "1"} if follow else {}) | ({"last_failure": "1"} if last_failure else {})
    try:
        with settings.client.stream(f"/v1/instances/{segment(name)}/logs", query) as stream:
            if settings.json:
                for line in stream.lines():
                    _write(json.dumps({"name": name, "line": line.decode("utf-8", "replace")}).encode() + b"\n")
            else:
                for piece in stream.pieces():
                    _write(piece)
    except KeyboardInterrupt:
        if not follow:
            raise
    return Exit.DONE


def _write(output: bytes) -> None:
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()

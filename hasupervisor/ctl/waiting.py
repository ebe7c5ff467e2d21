"""Waits for an operation of the daemon, through restarts of the daemon, and leaves it running on Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import click

from hasupervisor.ctl.client import Client, decode, segment
from hasupervisor.ctl.commandline import Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.parameters import Duration
from hasupervisor.ctl.screen import Progress, emit, emit_json, say
from hasupervisor.ctl.text import age, clean

TICK_S = 0.5  # how often the time spent is redrawn and the deadline looked at
QUIET_S = 15.0  # a watch without news for so long is opened again: it may be the daemon that is stuck
PATIENCE_S = 2.0  # for one attempt to open the watch; others follow
AWAY_S = 60.0  # how long the daemon may be gone; its upgrade takes seconds
RETRY_S = 0.5


def waiting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--no-wait` and `--timeout`, for every command that begins something long."""
    timeout = click.option("--timeout", type=Duration(), metavar="S", help="Wait so long at most, then exit 7.")
    no_wait = click.option("--no-wait", is_flag=True, help="Print the operation's id and come back at once.")
    return no_wait(timeout(command))


def carry_out(settings: Settings, operation: Document, *, wait: bool, timeout: float | None) -> int:
    """Follow an operation that the daemon has begun to its end, or for `timeout` seconds; returns the exit code."""
    name = operation.text("id")
    if not wait:
        if settings.json:
            emit_json(operation.raw)
        else:
            emit(name)
            say(f"to watch it: chatglm-hactl operations {name}")
        return Exit.DONE
    began = time.monotonic()
    progress = Progress()
    try:
        operation = _follow(settings.socket, operation, timeout, progress)
    except KeyboardInterrupt:
        progress.clear()
        say(f"{_title(operation)} goes on.", *_what_can_be_done(name))
        return Exit.INTERRUPTED
    finally:
        progress.clear()
    if settings.json:
        emit_json(operation.raw)
    return tell_end(operation, age(time.monotonic() - began))


def tell_end(operation: Document, spent: str) -> int:
    """Say how an operation ended, and give the exit code for it."""
    state = operation.text("state")
    sentence = f"{_title(operation)} {state} after {spent}: {clean(operation.text('sentence'))}"
    if state != "done":
        raise Failure(Exit.FAILED, sentence, hint="chatglm-hactl status")
    say(sentence)
    return Exit.DONE


def _follow(socket: str, operation: Document, timeout: float | None, progress: Progress) -> Document:
    """The operation as it ended."""
    name = operation.text("id")
    began = time.monotonic()
    away_since: float | None = None
    for heard in chain([operation], news(socket, f"/v1/operations/{segment(name)}")):
        now = time.monotonic()
        if isinstance(heard, Failure):
            away_since = now if away_since is None else away_since
            if now - away_since >= AWAY_S:
                raise Failure(heard.code, f"{heard.sentence}; {name} may go on without it", details=heard.details)
        else:
            operation, away_since = heard or operation, None
            if operation.text("state") != "running":
                return operation
        if timeout is not None and now - began >= timeout:
            sentence = f"{_title(operation)} still goes on after {age(timeout)}: {clean(operation.text('sentence'))}"
            raise Failure(Exit.STILL_GOING, sentence, details=_what_can_be_done(name))
        progress.show(f"{_title(operation)}: {_where(heard, operation)}", age(now - began))
    raise AssertionError("news of an operation never end")


def _where(heard: Document | Failure | None, operation: Document) -> str:
    return why_away(heard) if isinstance(heard, Failure) else clean(operation.text("sentence"))


def why_away(failure: Failure) -> str:
    """What is shown while the daemon gives no news."""
    why = "the daemon does not answer" if failure.code is Exit.NO_ANSWER else clean(failure.sentence)
    return f"{why}, trying again"


def news(socket: str, target: str) -> Iterator[Document | Failure | None]:
    """What is heard of something long at `target`, without end: where it stands, None for a tick without a change, and
    a failure for each time that the daemon does not answer."""
    client = Client(socket, patience=PATIENCE_S)
    while True:
        quiet = 0.0
        try:
            with client.stream(target, {"watch": "1"}) as stream:
                for line in stream.lines(TICK_S):
                    quiet = 0.0 if line else quiet + TICK_S
                    yield decode(line, f"what the daemon says of {target}") if line else None
                    if quiet >= QUIET_S:
                        break
        except Failure as failure:
            if not failure.passes:
                raise
            yield failure
        time.sleep(RETRY_S)


def _title(operation: Document) -> str:
    return f"{operation.text('id')} {operation.text('kind')}"


def _what_can_be_done(name: str) -> list[str]:
    watch = f"chatglm-hactl operations {name}"
    return [f"to watch it:     {watch}", f"to call it off:  {watch} --cancel"]

"""`history`: what was seen, decided and done, and by whom."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import click

from hasupervisor.ctl.client import ANSWER_S, Client, decode
from hasupervisor.ctl.commandline import Command, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.parameters import Since
from hasupervisor.ctl.screen import emit, emit_json, say
from hasupervisor.ctl.text import clean, clock, moment

LAST = 50  # entries where neither -n nor --since says how many
ALL_SINCE = 10_000  # entries with --since alone
RETRY_S = 1.0
OURSELVES = "chatglm-ha"  # who did it, where nobody asked for it


@click.command(cls=Command)
@click.option("--since", type=Since(), metavar="S", help="1h, 30m, a local time 2026-11-24T03:00, or Unix seconds.")
@click.option("-n", "n", type=click.IntRange(min=1), metavar="N", help=f"The last N entries ({LAST}; --since: all).")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens now.")
@click.pass_context
def command(ctx: click.Context, since: int | None, n: int | None, follow: bool) -> int:
    """Show what happened, the oldest first, in local time.

    \b
    chatglm-hactl history --since 1h
    """
    settings = Settings.of(ctx)
    query = {"n": str(n or (LAST if since is None else ALL_SINCE))}
    if since is not None:
        query["since"] = str(since)
    try:
        for entry in _followed(settings.client, query) if follow else _entries(settings.client, query):
            if settings.json:
                emit_json(entry.raw, compact=True)
            else:
                emit(entry_line(entry))
    except KeyboardInterrupt:
        if not follow:
            raise
    return Exit.DONE


def entry_line(entry: Document) -> str:
    """When, about whom, what kind of thing, and a sentence; by whom, where somebody asked for it."""
    by = entry.maybe_text("by")
    actor = f"  ({clean(by)})" if by and by != OURSELVES else ""
    subject, event = clean(entry.text("subject")), clean(entry.text("event"))
    return f"{clock(entry.text('at'))}  {subject:<12} {event:<10} {clean(entry.text('sentence'))}{actor}"


def _entries(client: Client, query: dict[str, str]) -> Iterator[Document]:
    with client.stream("/v1/history", query) as stream:
        for line in stream.lines(ANSWER_S):
            if not line:
                raise Failure(Exit.NO_ANSWER, f"the daemon has sent no more of its history for {ANSWER_S:g} s")
            yield _entry(line)


def _entry(line: bytes) -> Document:
    return decode(line, "an entry of the history")


def _followed(client: Client, query: dict[str, str]) -> Iterator[Document]:
    """Entries without end, through restarts of the daemon; none comes twice."""
    query = {**query, "follow": "1"}
    seen: deque[tuple[object, object]] = deque(maxlen=ALL_SINCE)
    answered = away = False
    while True:
        try:
            with client.stream("/v1/history", query) as stream:
                if away:
                    say("the daemon answers again")
                answered, away = True, False
                for entry in map(_entry, stream.lines()):
                    key = (entry.raw.get("id"), entry.raw.get("at"))
                    if key not in seen:
                        seen.append(key)
                        yield entry
                    query = _from(entry, query)
        except Failure as failure:
            if not failure.passes or not answered:
                raise
            if not away:
                say(f"{failure.sentence}; waiting for it")
            away = True
        time.sleep(RETRY_S)


def _from(entry: Document, query: dict[str, str]) -> dict[str, str]:
    """What to ask for when the connection breaks after this entry; the last second comes again, to miss nothing."""
    last = moment(entry.text("at"))
    return {**query, "since": str(int(last.timestamp())), "n": str(ALL_SINCE)} if last else query

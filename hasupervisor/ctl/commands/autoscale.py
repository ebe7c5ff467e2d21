"""`autoscale`: whether the daemon or a person sets the count, what the policies want, and what they would have done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from hasupervisor.ctl.client import ANSWER_S, decode
from hasupervisor.ctl.commandline import Group, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.parameters import Since
from hasupervisor.ctl.render import banners
from hasupervisor.ctl.screen import emit, emit_json, say
from hasupervisor.ctl.text import age, clean, number

POLICIES = ("thresholds", "concurrency")


@click.group(cls=Group)
def command() -> None:
    """Let the daemon set the count, or keep it as it is.

    \b
    chatglm-hactl autoscale status
    """


@command.command()
@click.pass_context
def status(ctx: click.Context) -> int:
    """Say what the autoscaler wants, from which numbers, and what each policy would do.

    \b
    chatglm-hactl autoscale status
    """
    settings = Settings.of(ctx)
    autoscale = settings.client.get("/v1/autoscale")
    if settings.json:
        emit_json(autoscale.raw)
        return Exit.DONE
    emit(_sentence(autoscale), *banners(settings.client.get("/v1/status"), settings.paint))
    opinions = autoscale.maybe_part("opinions")
    if opinions is None:
        emit(*_inputs(autoscale))
        return Exit.DONE
    for policy in POLICIES:
        emit(*_opinion(policy, opinions.part(policy), counts=policy == autoscale.maybe_text("policy")))
    emit("", *_seen(autoscale))
    return Exit.DONE


@command.command()
@click.pass_context
def on(ctx: click.Context) -> int:
    """Give the count to the autoscaler (mode auto).

    \b
    chatglm-hactl autoscale on
    """
    return _switch(Settings.of(ctx), enabled=True)


@command.command()
@click.pass_context
def off(ctx: click.Context) -> int:
    """Keep the count as it is (mode manual).

    \b
    chatglm-hactl autoscale off
    """
    return _switch(Settings.of(ctx), enabled=False)


@command.command()
@click.option(
    "--since", type=Since(), metavar="S", help="What was recorded since then: 1h, 2d, a time (the last hour)."
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Traffic of a file instead: lines of SECOND REQUESTS_PER_SECOND [SECONDS_OF_WORK].",
)
@click.option("--policy", type=click.Choice(POLICIES), help="Instead of the one in force.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of [autoscale], min or max; start (instances at first) or load_s (seconds that a start takes).",
)
@click.pass_context
def replay(
    ctx: click.Context, since: int | None, trace: Path | None, policy: str | None, changes: tuple[str, ...]
) -> int:
    """Play traffic through a policy and a model of the queue: nothing real is touched.

    Shows instances over time, how long requests would have waited, and what it would have cost.

    \b
    chatglm-hactl autoscale replay --since 1d --policy concurrency --set slots=8
    """
    from hasupervisor.ctl.replay import picture, trace_of

    if since is not None and trace is not None:
        raise click.UsageError("--since and --trace exclude each other")
    settings = Settings.of(ctx)
    asked: dict[str, object] = {"set": _changes(changes)}
    if policy is not None:
        asked["policy"] = policy
    if since is not None:
        asked["since"] = since
    if trace is not None:
        asked["trace"] = trace_of(trace)
    rows: list[Document] = []
    total: Document | None = None
    for row in _replayed(settings, asked):
        if settings.json:
            emit_json(row.raw, compact=True)
        total = row.maybe_part("total")
        if total is None:
            rows.append(row)
    if total is None:
        raise Failure(Exit.NO_ANSWER, "the daemon broke the replay off before its end")
    if not settings.json:
        emit(*picture(rows, total, settings.paint, settings.columns))
    return Exit.DONE


def _replayed(settings: Settings, asked: dict[str, object]) -> Iterator[Document]:
    with settings.client.stream("/v1/autoscale/replay", body=asked) as stream:
        for line in stream.lines(ANSWER_S):
            if not line:
                raise Failure(Exit.NO_ANSWER, f"the daemon has sent no more of the replay for {ANSWER_S:g} s")
            yield decode(line, "a line of the replay")


def _changes(texts: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            found[name.strip().removeprefix("autoscale.").removeprefix("service.")] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise click.BadParameter(f"{text!r} is not KEY=NUMBER", param_hint="--set")
    return found


def _switch(settings: Settings, *, enabled: bool) -> int:
    autoscale = settings.client.post("/v1/autoscale", {"enabled": enabled})
    if settings.json:
        emit_json(autoscale.raw)
    else:
        say(_sentence(autoscale))
    return Exit.DONE


def _sentence(autoscale: Document) -> str:
    wanted = number(autoscale.maybe_number("desired"))
    policy = f"policy {autoscale.maybe_text('policy') or '-'}"
    return f"mode {autoscale.text('mode')}, {policy}, wanted {wanted}: {clean(autoscale.maybe_text('sentence') or '-')}"


def _opinion(policy: str, opinion: Document, *, counts: bool) -> list[str]:
    head = f"{policy}{' (counts)' if counts else ''}"
    lines = ["", f"{head:<22} wants {number(opinion.maybe_number('desired'))}: {clean(opinion.text('sentence'))}"]
    held = opinion.maybe_text("held_back_by")
    if held:
        lines.append(f"  held back by           {clean(held)}")
    return lines + _inputs(opinion)


def _inputs(document: Document) -> list[str]:
    inputs = document.maybe_part("inputs")
    found = inputs.raw if inputs else {}
    return [f"  {clean(key):<24} {'-' if value is None else clean(str(value))}" for key, value in found.items()]


def _seen(autoscale: Document) -> list[str]:
    """The latest sample, the windows, and what one instance carries."""
    bounds, windows, slots = autoscale.part("bounds"), autoscale.part("windows"), autoscale.maybe_part("slots")
    lines = [f"bounds     {number(bounds.number('min'))} to {number(bounds.number('max'))}"]
    spans = ", ".join(f"{name} {age(windows.number(name))}" for name in ("sample", "evaluate", "up", "down"))
    lines.append(f"windows    {spans}; {number(autoscale.maybe_number('samples'))} samples are remembered")
    if slots is not None:
        lines.append(f"slots      {number(slots.maybe_number('count'))} an instance, {clean(slots.text('how'))}")
    latest = autoscale.maybe_part("latest")
    if latest is None:
        return [*lines, "latest     nothing has been sampled yet"]
    lines.append(f"latest     {age(latest.maybe_number('age_s') or 0.0)} ago")
    values = {key: value for key, value in latest.raw.items() if key != "age_s"}
    return lines + [
        f"  {clean(key):<24} {'-' if value is None else clean(str(value))}" for key, value in values.items()
    ]

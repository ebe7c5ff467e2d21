"""`gpu`: the cards of this host, what is wrong with them, and which of them instances may be placed on."""

from __future__ import annotations

import click

from hasupervisor.ctl.client import segment
from hasupervisor.ctl.commandline import Group, Settings
from hasupervisor.ctl.document import Document
from hasupervisor.ctl.errors import Exit, Failure
from hasupervisor.ctl.parameters import gpu_argument
from hasupervisor.ctl.render import gpu_table
from hasupervisor.ctl.screen import emit, emit_json, say
from hasupervisor.ctl.text import clean


@click.group(cls=Group)
def command() -> None:
    """Look at the GPUs; take one out, or give it back.

    \b
    chatglm-hactl gpu list
    """


@command.command("list")
@click.pass_context
def list_(ctx: click.Context) -> int:
    """List the GPUs, what is on them and what is wrong with them.

    STATE is ok, suspect (no newcomers), quarantined (nothing is placed on it) or lost. MEMORY-GB is used and there,
    FREE-GB what newcomers may have; a dash: it takes none. -o wide adds what others hold, and what nobody admits to.

    \b
    chatglm-hactl gpu list
    """
    settings = Settings.of(ctx)
    found = settings.client.get("/v1/gpus")
    if settings.json:
        emit_json(found.raw)
        return Exit.DONE
    emit(*gpu_table(found, settings.paint, settings.columns, wide=settings.wide, uuids=True))
    say(*_words(found))
    return Exit.DONE


@command.command()
@gpu_argument()
@click.option("--reason", help="Why; everybody who asks for the status reads it.")
@click.pass_context
def quarantine(ctx: click.Context, gpu: str, reason: str | None) -> int:
    """Place nothing on a GPU any more; what runs there goes on.

    UUID may be the beginning of one, or the card's index. It holds, over restarts and reboots too, until `gpu clear`.

    \b
    chatglm-hactl gpu quarantine GPU-6a1f --reason "loud fan"
    """
    settings = Settings.of(ctx)
    asked = {"reason": reason} if reason is not None else {}
    card = settings.client.post(f"/v1/gpus/{segment(gpu)}/quarantine", asked)
    if settings.json:
        emit_json(card.raw)
        return Exit.DONE
    held, back = card.maybe_part("quarantine"), f"to give it back: chatglm-hactl gpu clear {card.text('uuid')}"
    if held is not None and held.text("needs") != "word":
        reason = clean(card.maybe_text("reason") or held.text("reason"))
        say(f"{_named(card)} was given up already: {reason}", "your quarantine holds on when that has ended", back)
        return Exit.DONE
    staying = _staying(card, settings.client.get("/v1/gpus").maybe_part("room"))
    say(f"{_named(card)} is quarantined: no instance is placed on it", *staying, back)
    return Exit.DONE


@command.command()
@gpu_argument()
@click.pass_context
def clear(ctx: click.Context, gpu: str) -> int:
    """Forget what is held against a GPU, and place instances on it again.

    UUID may be the beginning of one, or the card's index. What is still wrong with it is seen again at once: then this
    ends with exit code 1.

    \b
    chatglm-hactl gpu clear GPU-6a1f
    """
    settings = Settings.of(ctx)
    card = settings.client.post(f"/v1/gpus/{segment(gpu)}/clear")
    state, reason = card.text("state"), clean(card.maybe_text("reason") or "no reason is known")
    if settings.json:
        emit_json(card.raw)
    if state in ("quarantined", "lost"):
        raise Failure(Exit.FAILED, f"{_named(card)} is {state} all the same: {reason}", hint="chatglm-hactl status")
    if settings.json:
        return Exit.DONE
    if state == "suspect":
        say(f"{_named(card)} is cleared, and takes no newcomers yet: {reason}")
    elif card.flag("excluded", absent=False):
        say(f"{_named(card)} is cleared; gpu.exclude leaves it to others")
    else:
        say(f"{_named(card)} is cleared: instances may be placed on it")
    return Exit.DONE


def _named(card: Document) -> str:
    return f"GPU {card.number('index'):g} ({clean(card.text('uuid'))})"


def _staying(card: Document, room: Document | None) -> list[str]:
    """What becomes of those that are on it."""
    names = card.texts("instances")
    if not names:
        return ["no instance is on it"]
    verb, goes = ("are", "go") if len(names) > 1 else ("is", "goes")
    left = room.maybe_number("instances") if room is not None else None
    if left == 0:
        why = clean((room.maybe_text("reason") if room is not None else None) or "no other GPU has room")
        how = [f"none could start elsewhere now: {why}"]
    else:
        how = [f"to move {'one' if len(names) > 1 else 'it'} to another card: chatglm-hactl restart {names[0]}"]
    return [f"{', '.join(names)} {verb} on it and {goes} on", *how]


def _words(found: Document) -> list[str]:
    """The driver where it is not well, or there is no card; and a kernel log that cannot be read."""
    driver = found.maybe_part("driver")
    if driver is None:
        return ['the daemon does not look at GPUs: gpu.mode = "off"']
    words = [clean(driver.text("sentence"))]
    log = driver.maybe_part("kernel_log")
    if log is not None and not log.flag("readable", absent=True):
        words.append(clean(log.maybe_text("sentence") or "the kernel log cannot be read"))
    room = found.maybe_part("room")
    left = room.maybe_number("instances") if room is not None else None
    if room is not None and left is not None and found.parts("gpus"):
        why = room.maybe_text("reason")
        words.append(clean(why) if left == 0 and why else f"room for {left:g} more instance{'' if left == 1 else 's'}")
    return words

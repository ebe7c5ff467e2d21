"""Draws the status document: the verdict first, then what is wrong with the next command, then the tables."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from hasupervisor.ctl.document import Document
from hasupervisor.ctl.text import (
    Cell,
    Paint,
    age,
    clean,
    clock,
    gigabytes,
    milliseconds,
    moment,
    number,
    rate,
    share,
    since,
    table,
)

_WORST_FIRST = {"red": 0, "yellow": 1, "green": 2}
_GPU_COLOURS = {"ok": "green", "suspect": "yellow"}
_SPARE = ("ENDPOINT", "ERRORS", "P95", "QPS")  # left out on a narrow terminal, in this order
_SHORT_ID = 12  # characters of a runtime id, as docker shows it


def picture(status: Document, paint: Paint, *, columns: int | None, wide: bool) -> list[str]:
    """The whole status, line by line, at most `columns` wide where that can be (None: no limit)."""
    now = moment_of(status)
    lines = [verdict(status, paint), *banners(status, paint), *_problems(status, paint)]
    instances = _instances(status, now, paint, columns, wide=wide)
    gpus = gpu_table(status, paint, columns, wide=wide, uuids=False)
    for block in (instances, gpus, [_nginx(status, paint), *_autoscale(status), *_traffic(status)]):
        lines += ["", *block] if block else []
    return lines


def moment_of(status: Document) -> datetime:
    """The daemon's own time when it took the picture, so that ages need no second clock."""
    return moment(status.text("now")) or datetime.now(UTC)


def verdict(status: Document, paint: Paint) -> str:
    """`GREEN chatglm on gpu-07: 2 of 2 serving`."""
    health = status.text("health")
    settling = "" if status.flag("settled", absent=True) else " (the daemon has just started, and still asks around)"
    words = f"{status.text('service')} on {status.text('host')}: {clean(status.text('summary'))}{settling}"
    return f"{paint(health.upper(), health)} {words}"


def banners(status: Document, paint: Paint) -> list[str]:
    """What limits the picture or the daemon as a whole: a pause, a part that is old."""
    lines = []
    paused = status.maybe_part("paused")
    if paused:
        lines.append(paint(pause_sentence(paused, moment_of(status)), "yellow"))
        lines.append("    chatglm-hactl resume")
    stale = status.maybe_part("stale")
    if stale:
        lines.append(paint(f"STALE {clean(stale_sentence(stale))}", "yellow"))
    return lines


def stale_sentence(stale: Document) -> str:
    """`dockerd: no answer in 5 s (3rd time); what it knows is 12s old`."""
    old = stale.maybe_number("age_s")
    how_old = f"; what it knows is {age(old)} old" if old is not None else ""
    return f"{stale.text('what')}: {stale.text('sentence')}{how_old}"


def complaints(status: Document) -> list[tuple[str, str, str | None]]:
    """(subject, sentence, next command) of each problem. What is said of the part that is old is not said again."""
    stale = status.maybe_part("stale")
    found = [(one.text("subject"), one.text("sentence"), one.maybe_text("hint")) for one in status.parts("problems")]
    if stale is None:
        return found
    said, what = stale.text("sentence"), stale.text("what")
    return [
        (subject, sentence.replace(f"waits: {said}", f"waits for {what}"), hint)
        for subject, sentence, hint in found
        if not sentence.startswith(said)
    ]


def pause_sentence(paused: Document, now: datetime) -> str:
    """`PAUSED for 3m12s by alice (uid 1000), 6m48s to go: new driver`."""
    until = moment(paused.maybe_text("until") or "")
    to_go = f", {age((until - now).total_seconds())} to go" if until else ""
    reason = clean(paused.maybe_text("reason") or "no reason given")
    return f"PAUSED for {since(paused.text('since'), now)} by {clean(paused.text('by'))}{to_go}: {reason}"


def detail(status: Document, instance: Document, paint: Paint) -> list[str]:
    """One instance, a line for each thing there is to know of it."""
    now, colour = moment_of(status), instance.text("colour")
    name = f"{instance.text('name')} on {status.text('host')}"
    head = f"{paint(colour.upper(), colour)} {name}: {instance.text('state')} for {since(instance.text('since'), now)}"
    problems = _problems(status, paint, of=instance.text("name"))
    lines = [head, clean(instance.text("reason")), *banners(status, paint), *problems, ""]
    return lines + [f"{key:<13} {value}" for key, value in _facts(status, instance, now)]


def _facts(status: Document, instance: Document, now: datetime) -> list[tuple[str, str]]:
    attempts, failure = instance.maybe_part("attempts"), instance.maybe_part("last_failure")
    retry, routed = instance.maybe_number("retry_in_s"), instance.flag("routed")
    facts = [
        ("verdict", instance.maybe_text("verdict") or "-"),
        ("endpoint", f"{instance.maybe_text('endpoint') or '-'}, {'routed' if routed else 'gets no requests'}"),
        ("address", instance.maybe_text("address") or "-"),
        ("runtime id", instance.maybe_text("runtime_id") or "-"),
        ("pid", number(instance.maybe_number("pid"))),
        ("image", instance.maybe_text("image") or "-"),
        ("gpus", ", ".join(_card_words(status, uuid) for uuid in instance.texts("gpus")) or "-"),
        (
            "in flight",
            f"{number(instance.maybe_number('in_flight'))}, {number(instance.maybe_number('queued'))} queued",
        ),
        ("traffic", _flow(instance)),
        ("restarts", number(instance.maybe_number("restarts"))),
    ]
    if attempts:
        next_try = f", the next try in {age(retry)}" if retry is not None else ""
        facts.append(("failed", f"{attempts.number('failed'):g} of {attempts.number('of'):g} times{next_try}"))
    if failure:
        at = failure.text("at")
        facts.append(("last failure", f"{failure.text('reason')}, {since(at, now)} ago ({clock(at)})"))
    return [(key, clean(value)) for key, value in facts]


def _card_words(status: Document, uuid: str) -> str:
    """`0, ok (GPU-6a1f…)`; the UUID alone of a card that is not listed."""
    card = next((one for one in status.parts("gpus") if one.text("uuid") == uuid), None)
    return uuid if card is None else f"{number(card.maybe_number('index'))}, {card.text('state')} ({uuid})"


def _problems(status: Document, paint: Paint, *, of: str | None = None) -> list[str]:
    lines = []
    for subject, sentence, hint in complaints(status):
        if of is not None and subject != of:
            continue
        lines.append(f"{paint(clean(subject), 'bold')}: {clean(sentence)}")
        lines += [f"    {clean(hint)}"] if hint else []
    return ["", *lines] if lines else []


def worst_first(status: Document) -> list[Document]:
    """The instances, those that have failed before those on their way, and these before those that serve."""
    return sorted(
        status.parts("instances"), key=lambda one: (_WORST_FIRST.get(one.text("colour"), 0), one.text("name"))
    )


def _instances(status: Document, now: datetime, paint: Paint, columns: int | None, *, wide: bool) -> list[str]:
    extra = ["QUEUED", "PID", "RUNTIME-ID", "ADDRESS", "GPUS", "IMAGE"] if wide else []
    head = ["NAME", "STATE", "AGE", "ENDPOINT", "IN-FLIGHT", "QPS", "P95", "ERRORS", "RESTARTS", *extra, "REASON"]
    rows = []
    for one in worst_first(status):
        latency = one.maybe_part("latency_ms")
        row = [
            Cell(clean(one.text("name"))),
            Cell(one.text("state"), one.text("colour")),
            Cell(since(one.text("since"), now)),
            Cell(clean(one.maybe_text("endpoint") or "-")),
            Cell(number(one.maybe_number("in_flight")), right=True),
            Cell(rate(one.maybe_number("qps")), right=True),
            Cell(milliseconds(latency.maybe_number("p95") if latency else None), right=True),
            Cell(share(one.maybe_number("error_rate")), right=True),
            Cell(number(one.maybe_number("restarts")), right=True),
        ]
        rows.append([*row, *(_more(one) if wide else []), Cell(clean(one.text("reason")))])
    return table(head, rows, paint, columns=columns, spare=_SPARE)


def _more(one: Document) -> list[Cell]:
    return [
        Cell(number(one.maybe_number("queued")), right=True),
        Cell(number(one.maybe_number("pid")), right=True),
        Cell(clean((one.maybe_text("runtime_id") or "-")[:_SHORT_ID])),
        Cell(clean(one.maybe_text("address") or "-")),
        Cell(clean(",".join(one.texts("gpus")) or "-")),
        Cell(clean(one.maybe_text("image") or "-")),
    ]


def gpu_table(found: Document, paint: Paint, columns: int | None, *, wide: bool, uuids: bool) -> list[str]:
    """The GPUs of a document that has `gpus`; nothing where there are none. `uuids`: as many as fit are shown."""
    uuids = uuids or wide
    more = ["FREE-GB", *(["OTHERS-GB", "LEAKED-GB"] if wide else [])] if uuids else []
    head = ["GPU", *(["UUID"] if uuids else []), "NAME", "STATE", "MEMORY-GB", *more, "UTIL", "TEMP"]
    rows = [_gpu_row(gpu, wide=wide, uuids=uuids) for gpu in found.parts("gpus")]
    spare = ("NAME", "UTIL", "TEMP", "UUID") if uuids else ("NAME",)
    return table([*head, "INSTANCES", "REASON"], rows, paint, columns=columns, spare=spare)


def _gpu_row(gpu: Document, *, wide: bool, uuids: bool) -> list[Cell]:
    state, heat = gpu.text("state"), gpu.maybe_number("temperature_c")
    used, total = gpu.maybe_number("memory_used_bytes"), gpu.maybe_number("memory_total_bytes")
    load = gpu.maybe_number("utilization")
    sizes = ["available", *(["foreign", "leaked"] if wide else [])] if uuids else []
    return [
        Cell(number(gpu.maybe_number("index"))),
        *([Cell(clean(gpu.text("uuid")))] if uuids else []),
        Cell(clean(gpu.maybe_text("name") or "-")),
        Cell(state, _GPU_COLOURS.get(state, "red")),
        Cell(f"{gigabytes(used)}/{gigabytes(total)}", right=True),
        *(Cell(gigabytes(gpu.maybe_number(f"memory_{size}_bytes")), right=True) for size in sizes),
        Cell("-" if load is None else f"{load * 100:.0f}%", right=True),
        Cell("-" if heat is None else f"{heat:.0f}C", right=True),
        Cell(clean(",".join(gpu.texts("instances"))) or "-"),
        Cell(clean(gpu.maybe_text("reason") or "-")),
    ]


def _nginx(status: Document, paint: Paint) -> str:
    nginx = status.maybe_part("nginx")
    if nginx is None:
        return "nginx      off"
    generation, live = nginx.maybe_number("generation"), nginx.maybe_number("live_generation")
    state = paint("ok", "green") if nginx.flag("ok") else paint("NOT OK", "red")
    running = number(live) if live == generation else f"{number(live)} (on disk: {number(generation)})"
    reason = nginx.maybe_text("reason")
    servers = nginx.maybe_number("servers")
    words = f"{number(servers)} server{'' if servers == 1 else 's'}, runs generation {running}"
    held = nginx.maybe_number("held")
    waiting = f", {held:.0f} requests wait for somebody who serves" if held else ""
    return f"nginx      {state}, {words}{waiting}{f': {clean(reason)}' if reason else ''}"


def _autoscale(status: Document) -> list[str]:
    autoscale = status.maybe_part("autoscale")
    if autoscale is None:
        return []
    return [f"autoscale  {status.text('mode')}, {clean(autoscale.maybe_text('sentence') or 'no decision yet')}"]


def _traffic(status: Document) -> list[str]:
    traffic = status.maybe_part("traffic")
    if traffic is None:
        return []
    return [f"traffic    {_flow(traffic)}, {number(traffic.maybe_number('in_flight'))} in flight"]


def _flow(of: Document) -> str:
    latency = of.maybe_part("latency_ms")
    times = [f"{name} {milliseconds(latency.maybe_number(name) if latency else None)}" for name in ("p50", "p95")]
    return f"{rate(of.maybe_number('qps'))}/s, {', '.join(times)}, {share(of.maybe_number('error_rate'))} errors"


def local_now() -> datetime:
    """For answers that do not carry the daemon's time; it runs on this host, so the clock is the same."""
    return datetime.fromtimestamp(time.time(), UTC)

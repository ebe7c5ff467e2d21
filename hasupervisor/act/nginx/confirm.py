"""Proves that a reload has happened: the new generation answers, and no old worker takes requests any more.

`nginx -s reload` returning 0 proves nothing, and `nginx -T` shows the disk. For about 100 ms after SIGHUP old and new
workers both accept: an instance that has left the list may be stopped only after the confirmed end of the old ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from hasupervisor.act.nginx import process
from hasupervisor.act.nginx.program import words
from hasupervisor.act.nginx.settings import Listen, NginxTrouble

ANSWER_DEADLINE_S = 1.0
# A port that is taken is tried 5 times, 500 ms apart, before nginx gives a reload up; a loaded host needs some more.
CONFIRM_DEADLINE_S = 6.0
WITHIN = f"within {CONFIRM_DEADLINE_S:.0f} s"
POLL_S = 0.01
# Where the workers are hidden from us (ProtectProc), a time without one old answer stands for their end: ten times
# the 100 ms that the master lets them live.
SETTLE_S = 1.0
NGINX_TIME = "%Y/%m/%d %H:%M:%S"


class Refused(NginxTrouble):
    """The master has refused the configuration: it goes on with the old one, and no worker was made."""


class OldWorkersStay(NginxTrouble):
    """The new generation answers, but workers that were told to retire still take requests: no reload helps."""

    def __init__(self, generation: int, late: frozenset[int]) -> None:
        super().__init__(
            f"generation {generation} answers, but old workers still take requests {WITHIN}: "
            f"kill {sorted(late)}, or wait until they go on"
        )
        self.late = late


@dataclass(frozen=True, slots=True)
class Answer:
    """What answered GET /ha/generation: a generation, or why there is none, in words."""

    generation: int | None
    words: str = ""
    refused: bool = False  # nobody listens there
    sees_daemon: bool = False  # the worker sees the daemon's sign of life


async def ask_generation(listen: Listen, host: str, deadline: float = ANSWER_DEADLINE_S) -> Answer:
    """Asks the gateway on a fresh connection, so that any worker may answer."""
    where = f"{listen.host}:{listen.port}"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(deadline):
            local = (listen.source, 0) if listen.source else None
            reader, writer = await asyncio.open_connection(listen.host, listen.port, local_addr=local)
            writer.write(f"GET /ha/generation HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            reply = (await reader.read(4096)).decode(errors="replace")
    except TimeoutError:
        return Answer(None, f"{where} does not answer within {deadline:.0f} s")
    except ConnectionRefusedError:
        return Answer(None, f"nobody listens on {where}", refused=True)
    except OSError as error:
        return Answer(None, f"{where}: {error.strerror or error}")
    finally:
        if writer is not None:
            writer.close()
    head, _, body = reply.partition("\r\n\r\n")
    status = head.split(" ")[1] if head.startswith("HTTP/") and " " in head else ""
    if status == "200" and body.strip().isdigit():
        return Answer(int(body), sees_daemon="\r\nx-ha-daemon: 1" in head.lower())
    return Answer(
        None,
        f"{where} answers, but not as this gateway (status {status or 'unknown'} to GET /ha/generation): "
        "another server block or program has that address",
    )


@dataclass(slots=True)
class EmergencyLog:
    """nginx's error.log from now on, for the [emerg] by which the master refuses a configuration."""

    path: Path | None
    offset: int = 0
    since: str = ""  # as nginx writes the time: local, to the second

    @classmethod
    def from_now(cls, path: Path | None) -> EmergencyLog:
        size = 0
        if path is not None:
            with contextlib.suppress(OSError):
                size = path.stat().st_size
        return cls(path, size, time.strftime(NGINX_TIME))

    def words(self, master: int) -> str:
        """What the master has refused since; "" when nothing, or when the log cannot be read."""
        if self.path is None:
            return ""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                text = file.read(1 << 16).decode(errors="replace")
        except OSError:
            return ""
        return words("\n".join(_own(text, master)))

    def among(self, lines: str, master: int) -> str:
        """The same of lines that somebody else has read, old ones among them."""
        return words("\n".join(line for line in _own(lines, master) if line[: len(self.since)] >= self.since))


def _own(text: str, master: int) -> list[str]:
    """`nginx -t` of anybody writes there too: only the master's own lines count."""
    return [line for line in text.splitlines() if f"[emerg] {master}#" in line]


async def confirm(
    generation: int,
    master: int,
    noted: frozenset[int] | None,
    ask: Callable[[], Awaitable[Answer]],
    emergencies: EmergencyLog,
) -> None:
    """Returns when only `generation` takes requests. Raises NginxTrouble with the reason at the deadline, or at once
    when the master has refused. `noted`: the workers that took requests before; None: they could not be seen.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CONFIRM_DEADLINE_S
    since: float | None = None  # the new generation has answered without a break since
    answer = Answer(None)
    while True:
        if since is None or noted is None:
            answer = await ask()
            if answer.generation != generation:
                since = None
            elif since is None:
                since = loop.time()
        if since is not None and _old_ones_gone(noted, loop.time() - since):
            return
        if refusal := emergencies.words(master) if since is None else "":
            raise Refused(f"nginx refused generation {generation}: {refusal}")
        if process.title(master) == "":
            raise NginxTrouble(f"nginx's master (pid {master}) ended before generation {generation} was proven")
        if loop.time() >= deadline:
            late = frozenset(pid for pid in noted or () if not process.retired(pid))
            if since is not None and late:
                raise OldWorkersStay(generation, late)
            raise NginxTrouble(_too_late(generation, answer, since is not None))
        await asyncio.sleep(POLL_S)


def _old_ones_gone(noted: frozenset[int] | None, answering_for: float) -> bool:
    if noted is None:
        return answering_for >= SETTLE_S
    return all(process.retired(pid) for pid in noted)


def _too_late(generation: int, answer: Answer, seen: bool) -> str:
    if seen:
        return f"generation {generation} answers, but an older one did too {WITHIN}"
    if answer.generation is not None:
        return f"nginx still runs generation {answer.generation}, not {generation}, {WITHIN} of the reload"
    return f"generation {generation} was not seen {WITHIN} of the reload: {answer.words}"

"""What the tests of this folder do with a host and see of it: status, instances, users all the while."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from tests.real.load import LoadResult, post_load
from tests.system.machine import Machine

T = TypeVar("T")

CHECKOUT, WHEELS, STANDIN = "/srv/chatglm-ha", "/srv/wheels", "/srv/standin"
UNIT = "chatglm-ha"
CONFIG = "/etc/chatglm-ha/config.toml"
SETTINGS = f"""\
[service]
runtime = "process"
instances = 2

[process]
command = ["/bin/sh", "-c", "exec python3 {STANDIN}/server.py instance-$PORT"]

[health]
interval = 0.5
"""
RATE = 20.0  # requests a second, each 0.05 s of work
PATIENCE = 60.0
PROCESSES = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"


def until(condition: Callable[[], T], what: str) -> T:
    """Asks until it says something true, and returns that."""
    deadline = time.monotonic() + PATIENCE
    while not (said := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.1)
    return said


def until_green(host: Machine) -> dict[str, Any]:
    """The status, once it is green."""

    def green() -> dict[str, Any] | None:
        ran = host.ask("chatglm-hactl", "status", "--json")
        status: dict[str, Any] = json.loads(ran.output) if ran.code == 0 else {}
        return status if status.get("health") == "green" and status.get("settled") else None

    status = until(green, "a green status")
    assert status is not None
    return status


def until_another_daemon(host: Machine, pid: int) -> None:
    until(lambda: host.main_pid(UNIT) not in (0, pid), "another daemon")


def lives(host: Machine) -> list[tuple[str, int, int]]:
    """What must not change: of every instance its name, its process and how often it was restarted."""
    return [(i["name"], i["pid"], i["restarts"]) for i in host.document("status")["instances"]]


@contextmanager
def users(host: Machine, port: int = 80) -> Iterator[LoadResult]:
    """Users all the while, from a thread of their own. What became of them is in the result afterwards."""
    result = LoadResult()
    loop, over = asyncio.new_event_loop(), asyncio.Event()
    load = post_load(f"http://{host.address}:{port}/", RATE, 300.0, until=over)
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(loop.run_until_complete, load)
        try:
            yield result
        finally:
            loop.call_soon_threadsafe(over.set)
            done = sending.result()
            loop.close()
            result.sent, result.outcomes, result.failures = done.sent, done.outcomes, done.failures


def told(host: Machine, since: str) -> list[str]:
    """What the unit, and systemd of it, have said since the last line that holds `since`."""
    host.run("journalctl", "--sync")
    words = [str(line["MESSAGE"]) for line in host.journal(UNIT)]
    begin = max((index for index, line in enumerate(words) if since in line), default=0)
    return words[begin:]

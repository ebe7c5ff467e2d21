"""What instances do not depend on may fail: told in the log once and in status, and the cycle goes on."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

from structlog.testing import capture_logs

from hasupervisor.components import OptionalComponents
from tests.autoscale.hosting import Host
from tests.real.waiting import eventually


def failing(error: Exception) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def test_a_step_that_fails_is_a_problem_until_it_goes_well_again_and_a_line_once_in_a_while() -> None:
    components = OptionalComponents()
    with capture_logs() as logged:
        for _ in range(100):
            components.run("autoscaler", failing(ZeroDivisionError("oh")))
    (problem,) = components.problems()
    assert (problem.subject, problem.hint) == ("autoscaler", "chatglm-hactl doctor")
    assert problem.sentence == "the autoscaler failed: ZeroDivisionError: oh; instances are looked after all the same"
    assert [line["event"] for line in logged] == [f"BUG: {problem.sentence}"]
    components.run("autoscaler", lambda: None)
    assert components.problems() == []


def test_a_want_of_descriptors_is_no_defect_of_ours() -> None:
    components = OptionalComponents()
    with capture_logs() as logged:
        components.run("metrics", failing(OSError(errno.EMFILE, "Too many open files")))
    assert [line["event"] for line in logged] == [
        "the metrics failed: Too many open files; instances are looked after all the same"
    ]


async def test_a_part_that_ends_by_itself_does_not_end_the_daemon() -> None:
    components, stopping = OptionalComponents(), asyncio.Event()

    async def pages() -> None:
        raise RuntimeError("no more")

    with capture_logs():
        kept = asyncio.create_task(components.keep("pages", pages(), stopping))
        await eventually(components.problems)
    assert not kept.done()
    assert "systemctl restart chatglm-ha" in components.problems()[0].sentence
    stopping.set()
    await kept


async def test_the_cycle_goes_on_whatever_is_raised_by_what_follows_it() -> None:
    host = Host()
    host.begin()
    followed = []

    def fed(*_: object) -> None:
        followed.append(host.loop.cycles)
        raise OSError(errno.EMFILE, "Too many open files")

    with capture_logs() as logged:
        running = asyncio.create_task(host.loop.run(fed))
        for wanted in range(2, 6):
            host.loop.wake()
            await eventually(lambda wanted=wanted: len(followed) >= wanted)  # type: ignore[misc]
    assert not running.done()
    words = [line["event"] for line in logged if line["log_level"] == "error"]
    assert words == [
        "what follows a cycle failed; instances are looked after all the same: Too many open files; "
        "chatglm-hactl doctor"
    ]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

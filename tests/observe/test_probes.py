"""The health questions against real servers: how soon, how often, and what is made of the answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import structlog.testing

from hasupervisor.model import Address, Fact, Miss, Phase, ProbeView, Said
from hasupervisor.observe.probes import Probes, ProbeSettings
from tests.observe.servers import answering, free_address, http, saying, serving, silent_after
from tests.observe.standin import standin
from tests.real.waiting import eventually

QUICK = ProbeSettings(interval=0.1, timeout=0.5, inference_interval=600.0, inference_timeout=2.0)


@dataclass
class Watched:
    """Probes, and how often they told of a change."""

    probes: Probes
    changes: list[float] = field(default_factory=list)

    def view(self, name: str = "chatglm-01") -> ProbeView:
        return self.probes.views()[name]

    async def until(self, holds: Callable[[ProbeView], object], within: float = 5.0) -> ProbeView:
        await eventually(lambda: holds(self.view()), within=within, every=0.005)
        return self.view()


@contextlib.asynccontextmanager
async def watching(
    facts: Sequence[Fact], settings: ProbeSettings = QUICK, idle: Callable[[str], bool | None] = lambda name: True
) -> AsyncIterator[Watched]:
    changes: list[float] = []
    probes = Probes(settings, lambda: changes.append(time.monotonic()), idle=idle)
    probes.follow(facts)
    try:
        yield Watched(probes, changes)
    finally:
        await probes.close()


def running(address: Address, runtime_id: str = "r1", name: str = "chatglm-01") -> Fact:
    return Fact(name, runtime_id, Phase.RUNNING, address, address)


async def test_an_instance_that_answers_is_healthy_and_reports_its_progress() -> None:
    async with standin() as server, watching([server.fact]) as watched:
        view = await watched.until(lambda v: v.successes >= 3)
        assert (view.said, view.failures, view.miss) == (Said.HEALTHY, 0, None)
        assert view.progress is not None
        assert view.progressed_at is not None
        assert time.monotonic() - view.progressed_at < 1.0


async def test_loading_sick_and_healthy_are_told_apart() -> None:
    async with standin() as server, watching([server.fact]) as watched:
        await server.tell(mode="loading")
        await watched.until(lambda v: v.said is Said.LOADING and v.successes == 0)
        await server.tell(mode="sick", reason="GPU memory low")
        view = await watched.until(lambda v: v.unhealthies >= 2)
        assert (view.said, view.reason, view.failures) == (Said.UNHEALTHY, "GPU memory low", 0)
        await server.tell(mode="ok")
        view = await watched.until(lambda v: v.successes)
        assert (view.said, view.unhealthies, view.reason) == (Said.HEALTHY, 0, "")


@pytest.mark.parametrize(
    ("mode", "miss"),
    [("mute", Miss.SILENT), ("reset", Miss.BROKEN), ("health500", Miss.ERROR_STATUS), ("refuse", Miss.REFUSED)],
)
async def test_each_way_to_fail_has_its_name_and_ends_with_the_first_answer(mode: str, miss: Miss) -> None:
    async with standin() as server, watching([server.fact]) as watched:
        await watched.until(lambda v: v.successes)
        await server.tell(mode=mode, for_s=1.2)
        view = await watched.until(lambda v: v.failures >= 2)
        assert view.miss is miss
        assert view.error
        assert view.said is Said.HEALTHY  # the last answer stands
        view = await watched.until(lambda v: v.successes)
        assert (view.failures, view.first_failure_at) == (0, None)


async def test_a_stopped_process_has_two_failures_within_two_and_a_half_seconds() -> None:
    settings = replace(QUICK, interval=1.0, timeout=1.0)
    async with standin() as server, watching([server.fact], settings) as watched:
        seen = (await watched.until(lambda v: v.successes)).successes
        await watched.until(lambda v: v.successes > seen)  # stopped right after an answer: the longest wait there is
        stopped_at = time.monotonic()
        server.stop()
        view = await watched.until(lambda v: v.failures >= 2)
        assert time.monotonic() - stopped_at < 2.45
        assert view.miss is Miss.SILENT
        server.go_on()
        went_on_at = time.monotonic()
        await watched.until(lambda v: v.successes)
        assert time.monotonic() - went_on_at < 1.0


async def test_a_killed_process_has_two_failures_in_less_than_an_interval_and_a_half() -> None:
    settings = replace(QUICK, interval=1.0, timeout=1.0)
    async with standin() as server, watching([server.fact], settings) as watched:
        await watched.until(lambda v: v.successes)
        server.kill()
        killed_at = time.monotonic()
        view = await watched.until(lambda v: v.failures >= 2)
        assert time.monotonic() - killed_at < 1.5
        assert view.miss is Miss.REFUSED


async def test_an_answer_that_is_late_is_told_long_before_it_counts_as_missed() -> None:
    settings = replace(QUICK, interval=0.5, timeout=5.0)
    async with standin() as server, watching([server.fact], settings) as watched:
        await watched.until(lambda v: v.successes)
        server.stop()
        view = await watched.until(lambda v: v.late_since is not None)
        assert (view.failures, view.said) == (0, Said.HEALTHY)
        server.go_on()
        view = await watched.until(lambda v: v.late_since is None)
        assert view.failures == 0


async def test_one_lost_connection_is_no_failure_when_another_is_answered() -> None:
    connections = 0

    async def every_other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections % 2:
            await silent_after()(reader, writer)
        await answering(200, {"status": "healthy"})(reader, writer)

    async with serving(every_other) as address, watching([running(address)]) as watched:
        view = await watched.until(lambda v: v.successes >= 3)
        assert (view.failures, view.miss) == (0, None)


async def test_a_suspect_instance_is_asked_one_question_at_a_time() -> None:
    waiting, most = 0, 0
    asked = 0

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting, most, asked
        asked += 1
        waiting += 1
        if asked > 2:
            most = max(most, waiting)
        await reader.read()  # until the asker leaves
        await reader.read()
        waiting -= 1

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await never(reader, writer)

    async with serving(swallow) as address, watching([running(address)]) as watched:
        await watched.until(lambda v: v.failures >= 5, within=10.0)
    assert most == 1


async def test_until_the_first_answer_and_while_it_loads_an_instance_is_asked_twice_a_second() -> None:
    settings = replace(QUICK, interval=10.0)
    address = free_address()
    async with watching([running(address)], settings) as watched:
        await watched.until(lambda v: v.failures >= 5)  # 10 s apart they would take a minute
    async with standin(LOAD_S="1.2") as server, watching([server.fact], settings) as watched:
        await watched.until(lambda v: v.said is Said.LOADING)
        await watched.until(lambda v: v.said is Said.HEALTHY)


async def test_a_healthy_instance_is_asked_once_an_interval() -> None:
    asked: list[float] = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /health "):
            asked.append(time.monotonic())
        writer.write(http(200, b""))

    async with serving(count) as address, watching([running(address)], replace(QUICK, interval=0.3)):
        await eventually(lambda: len(asked) >= 5)
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert min(gaps) > 0.28


async def test_a_new_incarnation_starts_from_nothing_and_a_gone_one_is_forgotten() -> None:
    async with standin() as server, watching([server.fact]) as watched:
        await watched.until(lambda v: v.successes and v.prompt_ok)
        watched.probes.follow([replace(server.fact, runtime_id="another")])
        assert watched.view() == ProbeView("another")
        await watched.until(lambda v: v.successes and v.prompt_ok)
        watched.probes.follow([replace(server.fact, runtime_id="another", phase=Phase.EXITED)])
        assert watched.probes.views() == {}
        watched.probes.follow([])
        assert watched.probes.views() == {}


async def test_an_instance_that_moved_is_asked_at_its_new_address_and_what_is_known_stays() -> None:
    async with standin() as server, watching([running(free_address())]) as watched:
        view = await watched.until(lambda v: v.failures)
        watched.probes.follow([running(server.address)])
        assert watched.view().failures >= view.failures
        await watched.until(lambda v: v.successes)


async def test_other_settings_take_effect_at_once_and_what_is_known_stays() -> None:
    async with standin() as server, watching([server.fact], replace(QUICK, interval=60.0)) as watched:
        view = await watched.until(lambda v: v.successes and v.prompt_ok)
        watched.probes.reconfigure(replace(QUICK, path="/nowhere"))
        assert watched.view() == view
        view = await watched.until(lambda v: v.failures)
        assert view.miss is Miss.ERROR_STATUS
        assert view.prompt_ok
        assert view.error.startswith("answered 404")


async def test_many_instances_are_asked_beside_each_other() -> None:
    async with serving(answering(200, {"status": "healthy"})) as good, serving(silent_after()) as mute:
        facts = [running(mute, name=f"mute-{i}") for i in range(30)]
        began = time.monotonic()
        async with watching([*facts, running(good)], replace(QUICK, timeout=2.0)) as watched:
            await watched.until(lambda v: v.successes)
            assert time.monotonic() - began < 1.0
            await eventually(lambda: all(watched.view(f"mute-{i}").failures for i in range(30)))


async def test_a_change_is_told_and_a_steady_instance_wakes_nobody() -> None:
    settings = replace(QUICK, interval=0.05)
    async with standin() as server, watching([server.fact], settings) as watched:
        await watched.until(lambda v: v.successes >= 8 and v.prompt_ok)
        told = len(watched.changes)
        seen = watched.view().successes
        await watched.until(lambda v: v.successes > seen + 10)
        assert len(watched.changes) == told
        await server.tell(mode="sick")
        await watched.until(lambda v: v.said is Said.UNHEALTHY)
        assert len(watched.changes) > told


async def test_what_we_were_too_late_for_is_thrown_away_counted_and_told() -> None:
    async with serving(silent_after()) as address, watching([running(address)]) as watched:
        await asyncio.sleep(0.05)
        time.sleep(0.7)  # noqa: ASYNC251, the lateness is what is tested
        await eventually(lambda: watched.probes.discarded)
        assert watched.view().failures == 0
        trouble = watched.probes.trouble()
        assert trouble is not None
        assert "chatglm-01 could not be asked: the daemon itself was 0." in trouble
        await watched.until(lambda v: v.failures)  # on time again, silence counts


async def test_closing_ends_every_task_and_connection() -> None:
    before = asyncio.all_tasks()
    async with serving(silent_after()) as address:
        async with watching([running(address)]) as watched:
            await watched.until(lambda v: v.failures)
        await eventually(lambda: asyncio.all_tasks() == before)


async def test_a_progress_counter_of_the_instances_metrics_moves_progress() -> None:
    settings = replace(QUICK, progress_metric="standin_tokens_total")
    async with standin(HEALTH="opaque") as server, watching([server.fact], settings) as watched:
        still = await watched.until(lambda v: v.prompt_ok and v.successes >= 3)
        assert still.progress is None
        working = asyncio.ensure_future(server.prompt("sleep 30"))
        await watched.until(lambda v: v.progressed_at > still.progressed_at + 1.0)
        await server.tell(mode="stall")
        stalled = await watched.until(lambda v: time.monotonic() - v.progressed_at > 1.0)
        seen = stalled.successes
        await watched.until(lambda v: v.successes > seen + 2)
        assert watched.view().progressed_at == stalled.progressed_at
        working.cancel()


async def test_a_progress_counter_that_is_not_there_is_told_once() -> None:
    settings = replace(QUICK, interval=0.05, progress_metric="no_such_total")
    pages = saying(http(200, b"other_total 1\n"))
    with structlog.testing.capture_logs() as logs:
        async with serving(pages) as address, watching([running(address)], settings) as watched:
            await watched.until(lambda v: v.successes >= 8)
            assert watched.view().progressed_at is None
    assert len([line for line in logs if "has no no_such_total" in line["event"]]) == 1


# --- questions that cannot be put -------------------------------------------------------------------------------------

NO_SUCH_HOST = Address("no-such-host.invalid", 80)
UNSPEAKABLE = replace(QUICK, path="/健康")
"""A path that cannot be written into a request: whoever tries raises an exception that nobody expects."""


async def test_an_answer_grows_old_in_sight_while_questions_cannot_be_put() -> None:
    async with standin() as server, watching([server.fact]) as watched:
        await watched.until(lambda v: v.prompt_ok)
        moved = replace(server.fact, address=NO_SUCH_HOST)
        watched.probes.follow([moved])
        blind = await watched.until(lambda v: v.unasked)
        assert "its host name cannot be resolved" in blind.unasked
        assert blind.unasked_since is not None
        later = await watched.until(lambda v: watched.probes.discarded >= 3 and v)
        assert (later.said, later.failures) == (Said.HEALTHY, 0), "our trouble says nothing of the instance"
        assert (later.answered_at, later.asked_at) == (blind.answered_at, blind.asked_at), "and nothing new"
        assert later.unasked_since == blind.unasked_since
        watched.probes.follow([server.fact])
        view = await watched.until(lambda v: not v.unasked)
        assert view.unasked_since is None
        assert view.answered_at > later.answered_at


async def test_without_descriptors_an_answer_grows_old_and_the_first_one_after_that_is_new() -> None:
    async with standin() as server, watching([server.fact]) as watched:
        await watched.until(lambda v: v.prompt_ok)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        told = len(watched.changes)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            blind = await watched.until(lambda v: v.unasked)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert blind.unasked == "cannot connect: too many open files"
        assert len(watched.changes) > told, "whoever decides is told at once"
        await watched.until(lambda v: not v.unasked and v.answered_at > blind.unasked_since)


async def test_a_question_that_breaks_is_told_once_and_leaves_nothing_known_but_since_when() -> None:
    with structlog.testing.capture_logs() as logs:
        async with standin() as server, watching([server.fact]) as watched:
            await watched.until(lambda v: v.prompt_ok)
            watched.probes.reconfigure(UNSPEAKABLE)
            blind = await watched.until(lambda v: v.said is None)
            discarded = watched.probes.discarded
            await server.tell(mode="hang", for_s=1.0)
            later = await watched.until(lambda v: watched.probes.discarded >= discarded + 2 and v)
            assert (later.said, later.answered_at, later.prompt_ok, later.failures) == (None, None, None, 0)
            assert "the health question broke" in later.unasked
            assert later.unasked_since == blind.unasked_since
            trouble = watched.probes.trouble()
            assert trouble is not None
            assert "the health question broke" in trouble
            watched.probes.reconfigure(QUICK)
            view = await watched.until(lambda v: v.said is Said.HEALTHY and v.prompt_ok)
            assert (view.unasked, view.unasked_since) == ("", None)
    broken = [line for line in logs if "BUG" in line["event"]]
    assert [line["subject"] for line in broken] == ["chatglm-01"]
    assert broken[0]["exc_info"]


async def test_prompts_that_break_take_nothing_but_themselves_along() -> None:
    unspeakable = replace(QUICK, prompt="\ud800")  # half of a character: no encoding has it
    with structlog.testing.capture_logs() as logs:
        async with standin() as server, watching([server.fact], unspeakable) as watched:
            await watched.until(lambda v: watched.probes.discarded >= 2 and v.successes > 3)
            assert (watched.view().prompt_ok, watched.view().unasked) == (None, "")
    assert len([line for line in logs if "BUG: the prompt of chatglm-01 broke" in line["event"]]) == 1

"""The NVML sense against the double: figures, troubles, and calls that never return."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing

from hasupervisor.model.gpu import CardView, DriverState, GpuFact, GpuProcess, Source
from hasupervisor.observe.gpus import GpuSense, Pace
from tests.doubles.nvml.cards import EVERY, LIBRARY, LOST, MISMATCH, NOT_LOADED, UNKNOWN, Card, NvmlDouble
from tests.doubles.nvml.never import mount_that_never_answers
from tests.real.waiting import eventually

QUICK = Pace(
    period=0.05, processes=0.1, driver=4.0, first=3.0, card=2.0, again=0.1, again_max=0.2, again_absent=0.2, retry=0.3
)
WITHIN = 20.0
GB = 10**9


class Changes:
    """Counts how often the sense said that something happened."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@asynccontextmanager
async def sensing(
    environment: Mapping[str, str], on_change: Callable[[], None] = lambda: None
) -> AsyncIterator[GpuSense]:
    sense = GpuSense(on_change, QUICK, environment)
    sense.start()
    try:
        yield sense
    finally:
        await sense.close()


def fact(sense: GpuSense, card: Card) -> GpuFact | None:
    return view(sense, card).fact if any(seen.uuid == card.uuid for seen in sense.view().cards) else None


def view(sense: GpuSense, card: Card) -> CardView:
    return next(seen for seen in sense.view().cards if seen.uuid == card.uuid)


async def all_seen(sense: GpuSense, nvml: NvmlDouble) -> None:
    await eventually(
        lambda: sense.view().state is DriverState.OK and len(sense.view().cards) == len(nvml.cards), "seen", WITHIN
    )


async def renewed(sense: GpuSense, card: Card) -> GpuFact:
    """Its figures as of now or later."""
    since = time.monotonic()

    def fresh() -> GpuFact | None:
        found = fact(sense, card)
        return found if found is not None and found.seen_at > since else None

    return await eventually(fresh, f"figures of {card.uuid}", WITHIN)


async def test_every_figure_of_every_card_arrives_under_its_uuid(nvml: NvmlDouble) -> None:
    card = nvml.cards[1]
    card.name, card.bus = "Tesla T4", "00000000:3B:00.0"
    card.numbers = {
        "memory_total": 16 * GB,
        "memory_reserved": GB // 2,
        "utilization": 71,
        "temperature": 61,
        "power": 55_500,
        "throttle": 0x48,
        "ecc_uncorrected": 7,
        "remap_pending": 1,
        "remap_failed": 1,
        "retired_pending": 1,
        "recovery": 2,
        "mig": 1,
        "persistence": 0,
    }
    card.processes = {4711: 6 * GB, 4712: -1}
    nvml.tell()
    async with sensing(nvml.environment) as sense:
        await all_seen(sense, nvml)
        seen = fact(sense, card)
        assert seen is not None
        assert seen == GpuFact(
            uuid=card.uuid,
            index=1,
            name="Tesla T4",
            bus="00000000:3B:00.0",
            seen_at=seen.seen_at,
            memory_total_bytes=16 * GB,
            memory_free_bytes=16 * GB - 6 * GB - GB // 2,
            memory_reserved_bytes=GB // 2,
            utilization=0.71,
            temperature_c=61,
            power_w=55.5,
            throttle=0x48,
            ecc_uncorrected=7,
            remap_pending=True,
            remap_failed=True,
            retirement_pending=True,
            recovery=2,
            mig=True,
            persistence=False,
            processes=(GpuProcess(4711, 6 * GB), GpuProcess(4712, None)),
            processes_at=seen.processes_at,
        )
        assert [other.uuid for other in sense.view().cards] == list(nvml.uuids)
        assert sense.view().version == "550.163.01"
        assert sense.view().sentence == "driver 550.163.01, 2 GPUs"


async def test_what_a_card_does_not_have_is_not_known_instead_of_zero(nvml: NvmlDouble) -> None:
    card = nvml.cards[0]
    figures = ("utilization", "temperature", "power", "throttle", "ecc_uncorrected", "remap_pending", "recovery")
    card.numbers = dict.fromkeys((*figures, "persistence", "events"), -1)
    card.failing = {"nvmlDeviceGetMemoryInfo_v2": 13}  # a driver before 510
    nvml.tell()
    async with sensing(nvml.environment) as sense:
        seen = await renewed(sense, card)
    unknown = (seen.utilization, seen.temperature_c, seen.power_w, seen.throttle, seen.ecc_uncorrected)
    assert unknown == (None,) * 5
    assert (seen.remap_pending, seen.remap_failed, seen.recovery, seen.memory_reserved_bytes) == (None,) * 4
    assert seen.memory_total_bytes > seen.memory_free_bytes > 0


async def test_new_figures_and_processes_are_seen_and_are_no_news(nvml: NvmlDouble) -> None:
    changes = Changes()
    async with sensing(nvml.environment, on_change=changes) as sense:
        await all_seen(sense, nvml)
        before = changes.count
        nvml.cards[0].numbers = {"temperature": 88}
        nvml.cards[0].processes = {99: 20 * GB}
        nvml.tell()

        def both() -> bool:
            seen = fact(sense, nvml.cards[0])
            return seen is not None and seen.temperature_c == 88 and seen.processes == (GpuProcess(99, 20 * GB),)

        await eventually(both, "the new figures", WITHIN)
        assert changes.count == before


async def test_an_xid_comes_once_with_its_card(nvml: NvmlDouble) -> None:
    changes = Changes()
    async with sensing(nvml.environment, on_change=changes) as sense:
        await all_seen(sense, nvml)
        before = changes.count
        nvml.xid(nvml.cards[1], 94)
        await eventually(lambda: changes.count > before, "news of it", WITHIN)
        (xid,) = sense.take_xids()
        assert (xid.code, xid.uuid, xid.source) == (94, nvml.cards[1].uuid, Source.NVML)
        assert sense.take_xids() == ()


async def test_the_xid_of_a_card_that_is_lost_at_once_is_heard_and_the_other_cards_go_on_hearing(
    nvml: NvmlDouble,
) -> None:
    first, second = nvml.cards
    async with sensing(nvml.environment) as sense:
        await all_seen(sense, nvml)
        nvml.xid(first, 79)
        first.failing = {EVERY: LOST}
        nvml.tell()
        lost = await eventually(lambda: view(sense, first).refusal, "refused", WITHIN)
        assert (lost.code, lost.words) == (LOST, "GPU is lost")
        assert [(xid.code, xid.uuid) for xid in sense.take_xids()] == [(79, first.uuid)]
        assert view(sense, first).fact is not None, "the last figures stay"
        nvml.xid(second, 31)
        await renewed(sense, second)
        await renewed(sense, second)
        assert [(xid.code, xid.uuid) for xid in sense.take_xids()] == [(31, second.uuid)]
        first.failing = {}
        nvml.tell()
        await renewed(sense, first)
        assert view(sense, first).refusal is None


async def test_an_unknown_error_tells_whether_even_a_handle_was_refused(nvml: NvmlDouble) -> None:
    figures, everything = nvml.cards
    async with sensing(nvml.environment) as sense:
        await all_seen(sense, nvml)
        figures.failing = {"nvmlDeviceGetMemoryInfo_v2": UNKNOWN}
        everything.failing = {EVERY: UNKNOWN}
        nvml.tell()

        def refused() -> bool:
            first, second = view(sense, figures).refusal, view(sense, everything).refusal
            return first is not None and second is not None and second.handle

        await eventually(refused, "refused", WITHIN)
        refusal = view(sense, figures).refusal
        assert refusal is not None
        assert (refusal.code, refusal.handle) == (UNKNOWN, False)


async def test_silence_names_the_card_the_others_are_seen_on_and_it_comes_back_when_it_answers(
    nvml: NvmlDouble,
) -> None:
    hangs, answers = nvml.cards
    changes = Changes()
    async with sensing(nvml.environment, on_change=changes) as sense:
        await all_seen(sense, nvml)
        pid, before = sense.child_pid(), changes.count
        hangs.hanging = {"nvmlDeviceGetMemoryInfo_v2"}
        nvml.tell()
        await eventually(lambda: view(sense, hangs).silent_since is not None, "suspected", WITHIN)
        assert changes.count > before
        await renewed(sense, answers)
        assert sense.child_pid() != pid
        assert view(sense, answers).silent_since is None
        assert sense.view().state is DriverState.OK
        hangs.hanging = set()
        nvml.tell()
        await renewed(sense, hangs)
        assert view(sense, hangs).silent_since is None


async def test_a_card_that_hangs_from_the_start_is_named_by_its_index(nvml: NvmlDouble) -> None:
    nvml.cards[1].hanging = {EVERY}
    nvml.tell()
    async with sensing(nvml.environment) as sense:
        await eventually(lambda: len(sense.view().cards) == 2, "named", WITHIN)
        unnamed = sense.view().cards[1]
        assert (unnamed.uuid, unnamed.index, unnamed.fact) == (None, 1, None)
        assert unnamed.silent_since is not None
        await renewed(sense, nvml.cards[0])


async def test_when_every_card_hangs_the_driver_is_wedged_and_the_cards_stay_known(nvml: NvmlDouble) -> None:
    async with sensing(nvml.environment) as sense:
        await all_seen(sense, nvml)
        nvml.hanging = {"nvmlDeviceGetUtilizationRates"}
        nvml.tell()
        await eventually(lambda: sense.view().state is DriverState.WEDGED, "wedged", WITHIN)
        assert "reboot the host" in sense.view().sentence
        assert [card.uuid for card in sense.view().cards] == list(nvml.uuids)


async def test_a_driver_that_does_not_even_start_is_wedged_until_it_does(nvml: NvmlDouble) -> None:
    nvml.hanging = {"nvmlInitWithFlags"}
    nvml.tell()
    async with sensing(nvml.environment) as sense:
        await eventually(lambda: sense.view().state is DriverState.WEDGED, "wedged", WITHIN)
        assert "NVML has given no answer in 4 s" in sense.view().sentence
        nvml.hanging = set()
        nvml.tell()
        await all_seen(sense, nvml)


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        (NOT_LOADED, DriverState.FAILED, "modprobe nvidia"),
        (MISMATCH, DriverState.MISMATCHED, "not of the version of the loaded driver"),
        (UNKNOWN, DriverState.FAILED, "NVML does not start: Unknown Error (error 999); nvidia-smi"),
    ],
)
async def test_an_nvml_that_does_not_start_says_why_and_is_tried_again(
    nvml: NvmlDouble, code: int, state: DriverState, words: str
) -> None:
    nvml.init = code
    nvml.tell()
    async with sensing(nvml.environment) as sense:
        await eventually(lambda: sense.view().state is state, state, WITHIN)
        assert words in sense.view().sentence
        assert sense.view().cards == ()
        nvml.init = 0
        nvml.tell()
        await all_seen(sense, nvml)


async def test_a_machine_without_the_library_has_no_gpus(tmp_path: Path) -> None:
    (tmp_path / LIBRARY).touch()  # nobody finds a real one behind it
    async with sensing({"LD_LIBRARY_PATH": str(tmp_path)}) as sense:
        await eventually(lambda: sense.view().state is DriverState.ABSENT, "absent", WITHIN)
        assert sense.view().sentence == "no NVIDIA driver is installed: libnvidia-ml.so.1 is not there"


async def test_a_driver_that_is_unloaded_leaves_the_cards_known_with_their_age(nvml: NvmlDouble) -> None:
    async with sensing(nvml.environment) as sense:
        await all_seen(sense, nvml)
        nvml.init = NOT_LOADED
        nvml.tell()
        pid = sense.child_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: sense.view().state is DriverState.FAILED, "failed", WITHIN)
        assert [card.uuid for card in sense.view().cards] == list(nvml.uuids)


@pytest.mark.parametrize("anew", [False, True], ids=["to the same child", "to a new child"])
async def test_a_card_that_is_not_listed_any_more_is_missing_whatever_took_its_index(
    nvml: NvmlDouble, anew: bool
) -> None:
    gone, stays = nvml.cards
    async with sensing(nvml.environment) as sense:
        await all_seen(sense, nvml)
        nvml.cards = [stays]
        nvml.tell()
        pid = sense.child_pid()
        assert pid is not None
        if anew:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: view(sense, gone).missing_since is not None, "missing", WITHIN)
        seen = await renewed(sense, stays)
        assert (seen.index, view(sense, stays).missing_since) == (0, None)


async def test_a_child_that_is_killed_is_replaced_and_nobody_is_told(nvml: NvmlDouble) -> None:
    changes = Changes()
    async with sensing(nvml.environment, on_change=changes) as sense:
        await all_seen(sense, nvml)
        before, pid = changes.count, sense.child_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: sense.child_pid() not in (None, pid), "another child", WITHIN)
        await renewed(sense, nvml.cards[0])
        assert sense.view().state is DriverState.OK
        assert changes.count == before


async def test_a_call_in_d_state_costs_no_cycle_and_no_second_call_and_is_left_behind(
    nvml: NvmlDouble, tmp_path: Path
) -> None:
    hangs, answers = nvml.cards
    late: list[float] = []

    async def cycles() -> None:
        while True:
            due = time.monotonic() + 0.02
            await asyncio.sleep(0.02)
            late.append(time.monotonic() - due)

    with mount_that_never_answers(tmp_path / "never") as never:
        async with sensing(nvml.environment) as sense:
            await all_seen(sense, nvml)
            cycling = asyncio.create_task(cycles())
            stuck = sense.child_pid()
            assert stuck is not None
            hangs.block = never
            nvml.tell()
            await eventually(lambda: view(sense, hangs).silent_since is not None, "suspected", WITHIN)
            await renewed(sense, answers)
            assert state_of(stuck) == "D", "it is killed, and does not end"
            since = time.monotonic()
            await eventually(lambda: time.monotonic() > since + 4 * QUICK.retry, "past the time of a retry", WITHIN)
            assert view(sense, hangs).silent_since is not None
            child = sense.child_pid()
            assert child is not None
            assert state_of(child) != "D", "while one hangs nobody else is sent there"
            cycling.cancel()
            begun = time.monotonic()
        assert time.monotonic() - begun < 1.0, "closing waits for nobody"
        assert state_of(stuck) == "D"
    late.sort()
    assert late[int(len(late) * 0.99)] < 0.1
    await eventually(lambda: not Path(f"/proc/{stuck}").exists() or state_of(stuck) == "Z", "it is gone", WITHIN)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


DAEMON = """
import asyncio, sys
from hasupervisor.observe.gpus import GpuSense, Pace
async def main():
    sense = GpuSense(lambda: None, Pace(period=0.05, card=0.5, first=0.5, driver=0.5, retry=600))
    sense.start()
    while not any(card.silent_since for card in sense.view().cards):
        await asyncio.sleep(0.01)
    print(sense.child_pid(), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await sense.close()
asyncio.run(main())
"""


def start_daemon(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DAEMON],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_daemon_ends_at_once_while_a_call_hangs_in_d_state(nvml: NvmlDouble, tmp_path: Path, how: str) -> None:
    with mount_that_never_answers(tmp_path / "never") as never:
        nvml.cards[1].block = never
        nvml.tell()
        daemon = start_daemon(nvml.environment)
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        said = await asyncio.wait_for(asyncio.to_thread(daemon.stdout.readline), WITHIN)
        begun = time.monotonic()
        if how == "stopped":
            daemon.stdin.close()
        else:
            daemon.kill()
        await asyncio.wait_for(asyncio.to_thread(daemon.wait), WITHIN)
        assert time.monotonic() - begun < 3.0
        daemon.stdout.close()
        daemon.stdin.close()
        if child := int(said) if said.strip().isdigit() else None:
            await eventually(lambda: not Path(f"/proc/{child}").exists(), "the child that answers ends too", WITHIN)


async def test_whoever_is_told_may_break_and_the_sense_goes_on(nvml: NvmlDouble) -> None:
    def on_change() -> None:
        raise RuntimeError("whoever is told breaks")

    with structlog.testing.capture_logs() as lines:
        async with sensing(nvml.environment, on_change) as sense:
            await all_seen(sense, nvml)
            nvml.init = NOT_LOADED
            nvml.cards[0].failing[EVERY] = UNKNOWN
            nvml.tell()
            await eventually(lambda: view(sense, nvml.cards[0]).refusal is not None, "it is seen", WITHIN)
    assert len([line for line in lines if "BUG" in line["event"]]) == 1

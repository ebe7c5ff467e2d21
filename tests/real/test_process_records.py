"""Records of the process runtime that are damaged, foreign, or another release's: one is never the others' problem."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hasupervisor.model import Fact, Phase
from hasupervisor.runtimes.base import Launch, LaunchFailed
from hasupervisor.runtimes.process import ProcessRuntime
from hasupervisor.runtimes.process_launch import ProcessSettings
from tests.real.asking import answers, the
from tests.real.processes import House, ended, lives, serving
from tests.real.waiting import eventually

HIDES_ITS_OUTPUT = """
import os, time
null = os.open("/dev/null", os.O_WRONLY)
os.dup2(null, 1), os.dup2(null, 2)
time.sleep(600)
"""


@pytest.fixture
async def house(tmp_path: Path, standin_server: Path) -> AsyncIterator[House]:
    house = House(tmp_path, ("{python}", str(standin_server), "{name}"))
    yield house
    last = house.adapter()
    for fact in await last.list():
        await last.kill(fact.name, fact.runtime_id)
    for adapter in house.adapters:
        await adapter.close()


def telling(house: House, told: list[tuple[str, str]], **changes: object) -> ProcessRuntime:
    """An adapter that writes down what it tells."""
    fields = {"command": house.command, "run_dir": house.run_dir, "log_dir": house.log_dir, **changes}
    runtime = ProcessRuntime(ProcessSettings(**fields), lambda name, words: told.append((name, words)))  # type: ignore[arg-type]
    house.adapters.append(runtime)
    return runtime


def timeless(facts: list[Fact]) -> list[Fact]:
    """Without the start, which two adapters reckon to the microsecond."""
    return [replace(fact, started_at=None) for fact in facts]


# --- damaged ----------------------------------------------------------------------------------------------------------


async def test_a_damaged_record_of_one_that_lives_is_written_anew_from_its_process(
    house: House, port_range: Callable[[int], range]
) -> None:
    first, second = port_range(2)
    told: list[tuple[str, str]] = []
    runtime = telling(house, told)
    one = await serving(runtime, "chatglm-01", first, "GPU-aaaa", "GPU-bbbb")
    other = await serving(runtime, "chatglm-02", second)
    before, path = house.record(), house.run_dir / "chatglm-01.json"
    path.write_text(json.dumps(before)[:60])

    assert await runtime.list() == [one, other]

    ((name, words),) = told
    aside = path.with_name("chatglm-01.json.damaged")
    assert name == "chatglm-01"
    assert f"written anew from its process, pid {one.pid}" in words
    assert str(aside) in words
    assert aside.read_text() == json.dumps(before)[:60]
    assert runtime.problems() == ()
    same = ("name", "bind", "port", "gpus", "command", "pid", "start", "boot", "keeper", "log_file")
    assert {key: house.record()[key] for key in same} == {key: before[key] for key in same}
    await runtime.stop("chatglm-01", one.runtime_id, 10.0)
    assert [fact.name for fact in await runtime.list()] == ["chatglm-02"]


async def test_a_damaged_record_of_one_whose_keeper_was_killed_is_written_anew_too(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    os.kill(house.record()["keeper"]["pid"], signal.SIGKILL)
    (house.run_dir / "chatglm-01.json").write_text("")
    assert await runtime.list() == [fact]
    await runtime.kill("chatglm-01", fact.runtime_id)
    assert await runtime.list() == []


async def test_a_damaged_record_of_one_that_has_ended_is_set_aside_and_its_name_is_free(
    house: House, port: int
) -> None:
    told: list[tuple[str, str]] = []
    runtime = telling(house, told)
    house.run_dir.mkdir(parents=True)
    path = house.run_dir / "chatglm-01.json"
    path.write_text('{"pid": ')
    assert await runtime.list() == []
    assert "no process of it lives" in told[0][1]
    assert path.with_name("chatglm-01.json.damaged").exists()
    await serving(runtime, "chatglm-01", port)


@contextmanager
def writer(log_file: Path) -> Iterator[int]:
    """The pid of somebody's process that writes to that log too, in a session of its own."""
    with (
        log_file.open("a") as log,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log, start_new_session=True) as process,
    ):
        yield process.pid
        process.communicate()


async def hidden(house: House, port: int) -> tuple[ProcessRuntime, Fact]:
    """An instance that does not write to its log."""
    runtime = house.script(HIDES_ITS_OUTPUT)
    await runtime.start(Launch("chatglm-01", port))
    (fact,) = await runtime.list()
    errors = Path(f"/proc/{fact.pid}/fd/2")
    await eventually(lambda: errors.readlink() == Path("/dev/null"))
    return runtime, fact


async def test_one_that_does_not_write_to_its_log_is_known_by_its_keeper(house: House, port: int) -> None:
    runtime, fact = await hidden(house, port)
    (house.run_dir / "chatglm-01.json").write_text("")
    assert await runtime.list() == [fact]


async def test_where_the_process_is_not_certain_its_name_stays_taken_and_a_person_is_told(
    house: House, port: int
) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    path = house.run_dir / "chatglm-01.json"
    good, kept = path.read_text(), house.record()["keeper"]["pid"]
    os.kill(kept, signal.SIGKILL)
    await eventually(lambda: not lives(kept))
    with writer(house.log_dir / "chatglm-01.log") as stranger:
        path.write_text(good[:40])
        assert await runtime.list() == []
        (problem,) = runtime.problems()
        assert problem.subject == "chatglm-01"
        assert str(path) in problem.sentence
        assert str(fact.pid) in problem.hint
        assert str(stranger) in problem.hint
        with pytest.raises(LaunchFailed, match="cannot understand the record"):
            await runtime.start(Launch("chatglm-01", port))
        assert fact.pid is not None
        assert lives(fact.pid)
    assert timeless(await runtime.list()) == timeless([fact])
    assert runtime.problems() == ()


async def test_a_keeper_writes_a_damaged_record_anew_when_its_instance_ends(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    (house.run_dir / "chatglm-01.json").write_text('{"pid": ')
    assert fact.pid is not None
    os.kill(fact.pid, signal.SIGKILL)
    await eventually(lambda: (house.run_dir / "chatglm-01.json").read_text().endswith("}"))
    gone = await eventually(lambda: ended(runtime))
    assert (gone.runtime_id, gone.exit_code) == (fact.runtime_id, -signal.SIGKILL)


# --- lost -------------------------------------------------------------------------------------------------------------


async def test_a_record_that_is_gone_while_its_process_lives_is_written_anew(house: House, port: int) -> None:
    told: list[tuple[str, str]] = []
    runtime = telling(house, told)
    fact = await serving(runtime, "chatglm-01", port, "GPU-aaaa")
    await runtime.list()
    (house.run_dir / "chatglm-01.json").unlink()
    assert await runtime.list() == [fact]
    assert told[0][1].endswith(f"was gone; it was written anew from its process, pid {fact.pid}")
    await runtime.stop("chatglm-01", fact.runtime_id, 10.0)
    assert await runtime.list() == []
    assert len(told) == 1


async def test_all_are_adopted_though_the_whole_folder_was_lost_and_their_ends_are_written_down(
    house: House, port_range: Callable[[int], range]
) -> None:
    before = house.adapter()
    facts = [await serving(before, f"chatglm-0{n}", port) for n, port in enumerate(port_range(2), start=1)]
    shutil.rmtree(house.run_dir)
    after = house.adapter()
    assert timeless(await after.list()) == timeless(facts)
    os.kill(facts[0].pid or 0, signal.SIGKILL)
    assert (await eventually(lambda: ended(after))).exit_code == -signal.SIGKILL


# --- foreign ----------------------------------------------------------------------------------------------------------


async def test_files_that_are_no_records_are_told_and_left_alone(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    (house.run_dir / "notes.json").write_text("remember the milk")
    shutil.copy(house.run_dir / "chatglm-01.json", house.run_dir / "chatglm-07.json")
    assert await runtime.list() == [fact]
    copy, notes = sorted(problem.sentence for problem in runtime.problems())
    assert copy == f"{house.run_dir}/chatglm-07.json is a copy of the record of chatglm-01, and is left alone"
    assert notes.startswith(f"{house.run_dir}/notes.json is no record of an instance, and is left alone: ")
    assert (house.run_dir / "notes.json").read_text() == "remember the milk"


# --- of another release -----------------------------------------------------------------------------------------------


async def test_what_a_later_release_adds_and_an_earlier_one_lacked_does_not_matter(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    kept = ("name", "port", "command", "pid", "start", "boot", "gpus")
    record = {key: value for key, value in house.record().items() if key in kept}
    (house.run_dir / "chatglm-01.json").write_text(json.dumps({**record, "lanes": {"of": ["later"]}}))
    assert timeless(await house.adapter().list()) == timeless([fact])


# --- what it was started with -----------------------------------------------------------------------------------------


async def test_an_instance_stays_where_it_was_started_whatever_the_settings_say_later(house: House, port: int) -> None:
    fact = await serving(house.adapter(), "chatglm-01", port)
    moved = telling(house, [], bind="127.0.0.2", log_dir=house.log_dir.parent / "other-logs")
    assert timeless(await moved.list()) == timeless([fact])
    assert [line async for line in moved.logs("chatglm-01", 1, follow=False)] == [
        f"chatglm-01: listening on 127.0.0.1:{port}"
    ]
    runtime_id = await moved.start(Launch("chatglm-02", port))
    new = await the(moved, "chatglm-02")
    assert (new.runtime_id, str(new.address)) == (runtime_id, f"127.0.0.2:{port}")
    await eventually(lambda: answers(new))
    assert str((await the(house.adapter(), "chatglm-02")).address) == f"127.0.0.2:{port}"


async def test_one_of_a_release_that_wrote_no_address_down_is_where_its_environment_says(
    house: House, port: int
) -> None:
    fact = await serving(house.adapter(), "chatglm-01", port)
    record = {key: value for key, value in house.record().items() if key not in ("bind", "log_file")}
    (house.run_dir / "chatglm-01.json").write_text(json.dumps(record))
    assert timeless(await telling(house, [], bind="127.0.0.2").list()) == timeless([fact])


async def test_an_instance_may_open_as_many_files_as_whoever_started_the_daemon_gave(house: House, port: int) -> None:
    runtime = telling(house, [], open_files=512)
    fact = await serving(runtime, "chatglm-01", port)
    assert fact.phase is Phase.RUNNING
    assert psutil.Process(fact.pid).rlimit(resource.RLIMIT_NOFILE)[0] == 512

"""The process runtime with real processes: they outlive the daemon, are adopted, ended whole, and leave their words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import psutil
import pytest

from hasupervisor.config import load
from hasupervisor.config.values import PLACEHOLDERS, toml
from hasupervisor.model import Phase
from hasupervisor.runtimes.base import Launch, LaunchFailed, Stuck
from hasupervisor.runtimes.process import LOG_MAX_BYTES, ProcessRuntime
from tests.real.asking import answers, in_flight, tell, the
from tests.real.processes import House, ended, lives, serving
from tests.real.waiting import eventually


@pytest.fixture
async def house(tmp_path: Path, standin_server: Path) -> AsyncIterator[House]:
    house = House(tmp_path, ("{python}", str(standin_server), "{name}"))
    yield house
    last = house.adapter()
    for fact in await last.list():
        await last.kill(fact.name, fact.runtime_id)
    for adapter in house.adapters:
        await adapter.close()


# --- starting and seeing ----------------------------------------------------------------------------------------------


async def test_a_started_instance_is_listed_with_all_that_is_known_and_serves(house: House, port: int) -> None:
    runtime, before = house.adapter(), time.monotonic()
    runtime_id = await runtime.start(Launch("chatglm-01", port, ("GPU-aaaa", "GPU-bbbb")))
    (fact,) = await runtime.list()
    assert (fact.name, fact.runtime_id, fact.phase) == ("chatglm-01", runtime_id, Phase.RUNNING)
    assert str(fact.address) == str(fact.endpoint) == f"127.0.0.1:{port}"
    assert fact.gpus == ("GPU-aaaa", "GPU-bbbb")
    assert fact.image.endswith("standin/server.py chatglm-01")
    assert fact.started_at is not None
    assert before - 0.1 <= fact.started_at <= time.monotonic()
    assert fact.pid is not None
    assert psutil.Process(fact.pid).environ()["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa,GPU-bbbb"
    assert (await eventually(lambda: answers(fact)))["name"] == "chatglm-01"
    assert await runtime.list() == [fact]  # nothing in a fact moves by itself


async def test_an_instance_gets_a_clean_environment_and_its_own(
    house: House, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    runtime = house.script(
        "import os, json; print(json.dumps(dict(os.environ)))", env={"MODEL_NAME": "六", "PORT": "1"}
    )
    await runtime.start(Launch("chatglm-01", port))
    await eventually(lambda: ended(runtime))
    (line,) = [line async for line in runtime.logs("chatglm-01", 10, follow=False)]
    found = json.loads(line)
    expected = {"HOST": "127.0.0.1", "PORT": str(port), "MODEL_NAME": "六", "LC_ALL": "C.UTF-8"}
    assert found.items() >= expected.items()
    assert found["PATH"] == os.environ["PATH"]
    assert not {"AWS_SECRET_ACCESS_KEY", "CUDA_VISIBLE_DEVICES", "VIRTUAL_ENV"} & found.keys()


async def test_what_the_configuration_lets_into_a_command_is_what_is_filled_in(
    house: House, port: int, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    words = [*PLACEHOLDERS, "--name={name}:{port}", "${one}", '{"a": 1}']
    script = "import sys; print(*sys.argv[1:], sep='\\n')"
    file.write_text(f"[process]\ncommand = {toml(['{python}', '-c', script, *words])}\n")
    runtime = house.adapter(*load(file, {}).process.command)
    await runtime.start(Launch("chatglm-01", port))
    await eventually(lambda: ended(runtime))
    filled = [sys.executable, str(port), "chatglm-01", f"--name=chatglm-01:{port}", "${one}", '{"a": 1}']
    assert await output_of(runtime) == filled


async def test_an_instance_is_written_down_before_it_runs_a_line(house: House, port: int) -> None:
    runtime = house.script(
        f"import os, json; print(json.load(open('{house.run_dir}/chatglm-01.json'))['pid'], os.getpid())"
    )
    await runtime.start(Launch("chatglm-01", port))
    await eventually(lambda: ended(runtime))
    (line,) = await output_of(runtime)
    written, own = line.split()
    assert written == own


async def test_instances_outlive_a_daemon_that_is_killed_and_the_next_one_adopts_them(
    house: House, port: int, standin_server: Path
) -> None:
    arguments = (str(house.run_dir), str(house.log_dir), str(port), *house.command)
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DAEMON, *arguments, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert daemon.stdout is not None
    runtime_id = (await daemon.stdout.readline()).decode().strip()
    os.killpg(daemon.pid, signal.SIGKILL)
    await daemon.wait()
    runtime = house.adapter()
    (fact,) = await runtime.list()
    assert (fact.runtime_id, fact.phase, fact.gpus) == (runtime_id, Phase.RUNNING, ("GPU-aaaa",))
    assert (await eventually(lambda: answers(fact)))["name"] == "chatglm-01"
    assert fact.pid is not None
    os.kill(fact.pid, signal.SIGTERM)
    assert (gone := await eventually(lambda: ended(runtime))).exit_code == 0
    assert gone.pid is None


DAEMON = """
import asyncio, sys, time
from pathlib import Path
from hasupervisor.runtimes.base import Launch
from hasupervisor.runtimes.process import LOG_MAX_BYTES, ProcessRuntime
from hasupervisor.runtimes.process_launch import ProcessSettings
run_dir, log_dir, port, *command = sys.argv[1:]
runtime = ProcessRuntime(ProcessSettings(tuple(command), Path(run_dir), Path(log_dir)))
print(asyncio.run(runtime.start(Launch("chatglm-01", int(port), ("GPU-aaaa",)))), flush=True)
time.sleep(600)
"""


async def test_a_death_is_seen_within_milliseconds_with_its_exit_code(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    changes = runtime.changes()
    seeing = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)  # it listens from here on
    assert fact.pid is not None
    os.kill(fact.pid, signal.SIGKILL)
    died = time.monotonic()
    assert await asyncio.wait_for(seeing, 10) == "chatglm-01"
    seen = time.monotonic() - died
    now = await the(runtime, "chatglm-01")
    known = time.monotonic() - died
    print(f"a process's death was seen after {seen * 1000:.1f} ms, its exit code was known after {known * 1000:.1f} ms")
    assert seen < 0.5
    assert (now.phase, now.exit_code) == (Phase.EXITED, -9)
    await changes.aclose()  # type: ignore[attr-defined]


async def test_closing_the_adapter_ends_its_changes_and_leaves_the_instances(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    ending = asyncio.ensure_future(anext(runtime.changes(), "ended"))
    await asyncio.sleep(0)  # it listens from here on
    await runtime.close()
    assert await asyncio.wait_for(ending, 5) == "ended"
    assert (await the(house.adapter(), "chatglm-01")).runtime_id == fact.runtime_id
    assert await answers(fact)


async def test_after_a_restart_of_the_machine_instances_are_ended_and_their_pids_are_left_alone(
    house: House, port: int
) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    house.rewrite(boot="another-boot")
    runtime = house.adapter()  # the daemon is another one as well
    stale = await the(runtime, "chatglm-01")
    assert (stale.phase, stale.exit_code, stale.started_at) == (Phase.EXITED, None, None)
    await runtime.clear("chatglm-01", stale.runtime_id)
    assert await runtime.list() == []
    assert fact.pid is not None
    assert lives(fact.pid)
    os.kill(fact.pid, signal.SIGKILL)


async def test_a_pid_that_is_another_process_now_is_not_taken_for_the_instance(house: House, port: int) -> None:
    runtime = house.script("pass")
    await runtime.start(Launch("chatglm-01", port))
    await eventually(lambda: ended(runtime))
    other = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    house.rewrite(pid=other.pid)
    fact = await the(runtime, "chatglm-01")
    assert fact.phase is Phase.EXITED
    await runtime.kill("chatglm-01", fact.runtime_id)
    assert lives(other.pid)
    other.kill()
    await other.wait()


# --- ending -----------------------------------------------------------------------------------------------------------


async def test_a_stop_lets_the_work_in_flight_end_and_returns_the_output_of_this_life(house: House, port: int) -> None:
    runtime = house.adapter()
    for _ in range(2):
        fact = await serving(runtime, "chatglm-01", port)
        async with httpx.AsyncClient() as client:
            asked = asyncio.create_task(client.post(f"http://{fact.address}/", json={"prompt": "sleep 0.5"}))
            await eventually(lambda fact=fact: in_flight(fact))  # type: ignore[misc]
            output = await runtime.stop("chatglm-01", fact.runtime_id, 20.0)
            assert (await asked).status_code == 200
        assert output.splitlines() == [
            f"chatglm-01: listening on 127.0.0.1:{port}",
            "chatglm-01: stopping, 1 in flight, 0 queued",
            "chatglm-01: stopped",
        ]
        assert await runtime.list() == []
        assert await runtime.stop("chatglm-01", fact.runtime_id, 20.0) == ""  # gone already is no error


async def test_an_instance_that_does_not_hear_sigterm_is_killed_after_the_grace(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    await tell(fact, mode="hang")
    began = time.monotonic()
    await runtime.stop("chatglm-01", fact.runtime_id, 0.5)
    assert 0.5 <= time.monotonic() - began < 2.0
    assert await runtime.list() == []


async def test_a_kill_ends_an_instance_that_is_stopped_at_once(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    assert fact.pid is not None
    os.kill(fact.pid, signal.SIGSTOP)
    began = time.monotonic()
    await runtime.kill("chatglm-01", fact.runtime_id)
    assert time.monotonic() - began < 1.0
    assert not lives(fact.pid)


async def test_an_instance_that_crashes_shows_its_exit_code_and_leaves_its_last_output(
    house: House, port: int, standin_server: Path
) -> None:
    runtime = house.adapter("{python}", str(standin_server.parent / "crash.py"))
    runtime_id = await runtime.start(Launch("chatglm-01", port))
    assert (await eventually(lambda: ended(runtime))).exit_code == 1
    output = await runtime.clear("chatglm-01", runtime_id)
    assert output.splitlines()[-1].startswith("RuntimeError: CUDA error")
    assert len(output.splitlines()) == 4
    assert await runtime.list() == []


@pytest.mark.parametrize("way", ["stop", "kill", "clear"])
async def test_what_an_instance_has_forked_does_not_outlive_its_clearing(house: House, port: int, way: str) -> None:
    # Its child makes a process group of its own, as a shell's would, and ignores SIGTERM.
    child = (
        "import os, signal, time; os.setpgid(0, 0); signal.signal(15, signal.SIG_IGN); "
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    ends = "" if way == "clear" else "; time.sleep(600)"
    runtime = house.script(f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]){ends}")
    runtime_id = await runtime.start(Launch("chatglm-01", port))
    (line,) = await eventually(lambda: output_of(runtime))
    assert lives(int(line))
    if way == "clear":
        await eventually(lambda: ended(runtime))
        await runtime.clear("chatglm-01", runtime_id)
    elif way == "stop":
        await runtime.stop("chatglm-01", runtime_id, 5.0)
    else:
        await runtime.kill("chatglm-01", runtime_id)
    assert not lives(int(line))


async def output_of(runtime: ProcessRuntime) -> list[str]:
    return [line async for line in runtime.logs("chatglm-01", 100, follow=False)]


async def test_an_instance_that_runs_is_not_cleared(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    with pytest.raises(Stuck, match=f"it runs, with pid {fact.pid}"):
        await runtime.clear("chatglm-01", fact.runtime_id)
    assert await answers(fact)


async def test_an_earlier_life_is_not_ended_in_place_of_the_present_one(house: House, port: int) -> None:
    runtime = house.adapter()
    first = await serving(runtime, "chatglm-01", port)
    await runtime.stop("chatglm-01", first.runtime_id, 10.0)
    second = await serving(runtime, "chatglm-01", port)
    assert await runtime.kill("chatglm-01", first.runtime_id) == ""
    assert await answers(second)


# --- its keeper -------------------------------------------------------------------------------------------------------


async def test_a_keeper_is_small_and_ends_with_its_instance(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    keeper = psutil.Process(house.record()["keeper"]["pid"])
    memory = keeper.memory_full_info()
    print(f"a keeper takes {memory.rss / 1e6:.1f} MB resident, {memory.uss / 1e6:.1f} MB of its own")
    assert memory.rss < 16e6
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        keeper.send_signal(number)
    assert await answers(fact)
    assert fact.pid is not None
    os.kill(fact.pid, signal.SIGTERM)
    assert (await eventually(lambda: ended(runtime))).exit_code == 0
    await eventually(lambda: not lives(keeper.pid))


async def test_an_instance_whose_keeper_is_killed_goes_on_and_only_its_exit_code_is_lost(
    house: House, port: int
) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    os.kill(house.record()["keeper"]["pid"], signal.SIGKILL)
    await eventually(lambda: not lives(house.record()["keeper"]["pid"]))
    assert await runtime.list() == [fact]
    assert await answers(fact)
    assert fact.pid is not None
    os.kill(fact.pid, signal.SIGTERM)
    gone = await eventually(lambda: ended(runtime))
    assert gone.exit_code is None
    output = await runtime.clear("chatglm-01", gone.runtime_id)
    assert output.splitlines()[-1] == "chatglm-01: stopped"  # it wrote to the log itself, not to its keeper


async def test_a_keeper_that_is_frozen_delays_nobody_for_long_and_writes_nothing_after_the_clearing(
    house: House, port: int
) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    keeper = house.record()["keeper"]["pid"]
    os.kill(keeper, signal.SIGSTOP)
    began = time.monotonic()
    await runtime.kill("chatglm-01", fact.runtime_id)
    assert time.monotonic() - began < 3.0
    await eventually(lambda: not lives(keeper))
    assert await runtime.list() == []


# --- starts that fail -------------------------------------------------------------------------------------------------


async def test_a_command_that_there_is_not_is_named_and_nothing_is_left(house: House, port: int) -> None:
    runtime = house.adapter("/no/such/python", "-m", "model_api")
    with pytest.raises(LaunchFailed, match="cannot run /no/such/python: No such file or directory"):
        await runtime.start(Launch("chatglm-01", port))
    assert await runtime.list() == []


async def test_a_port_that_somebody_else_has_is_named(house: House, port: int) -> None:
    squatter = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", port)
    runtime = house.adapter()
    with pytest.raises(LaunchFailed, match=f"port {port} on 127.0.0.1 is taken by something else: ss -ltnp"):
        await runtime.start(Launch("chatglm-01", port))
    squatter.close()
    assert await runtime.list() == []


async def test_a_name_in_use_is_not_started_twice(house: House, port_range: Callable[[int], range]) -> None:
    runtime, ports = house.adapter(), port_range(2)
    fact = await serving(runtime, "chatglm-01", ports[0])
    with pytest.raises(LaunchFailed, match="there is an instance chatglm-01 already"):
        await runtime.start(Launch("chatglm-01", ports[1]))
    assert await runtime.list() == [fact]


async def test_a_folder_that_cannot_be_written_is_named(house: House, port: int) -> None:
    house.run_dir.mkdir(parents=True)
    house.log_dir.write_text("a file where a folder should be")
    with pytest.raises(LaunchFailed, match=f"File exists: {house.log_dir}"):
        await house.adapter().start(Launch("chatglm-01", port))


# --- output -----------------------------------------------------------------------------------------------------------


async def test_output_is_read_by_line_and_followed_to_its_end(house: House, port: int) -> None:
    runtime = house.adapter()
    fact = await serving(runtime, "chatglm-01", port)
    followed = runtime.logs("chatglm-01", 10, follow=True)
    assert await anext(followed) == f"chatglm-01: listening on 127.0.0.1:{port}"
    assert fact.pid is not None
    os.kill(fact.pid, signal.SIGTERM)
    assert [line async for line in followed] == ["chatglm-01: stopping, 0 in flight, 0 queued", "chatglm-01: stopped"]
    assert [line async for line in runtime.logs("chatglm-01", 1, follow=False)] == ["chatglm-01: stopped"]


async def test_output_that_is_no_utf8_is_shown_all_the_same(house: House, port: int) -> None:
    runtime = house.script(r"import sys; sys.stdout.buffer.write(b'caf\xe9\r\n\xe4\xbd\xa0')")
    await runtime.start(Launch("chatglm-01", port))
    await eventually(lambda: ended(runtime))
    assert await output_of(runtime) == ["caf\ufffd", "你"]


async def test_output_of_an_instance_that_there_is_not_is_a_key_error(house: House) -> None:
    with pytest.raises(KeyError):
        await anext(house.adapter().logs("chatglm-09", 10, follow=False))


async def test_a_log_longer_than_its_limit_is_rotated_while_it_is_written_and_followed(house: House, port: int) -> None:
    # A line is 100 bytes, written whole, and is its number. Number 0 is of a life before; this life fills the log to
    # just under its limit, so that no keeper rotates it yet, and when told to writes on for ever.
    go, full = house.log_dir / "go", LOG_MAX_BYTES // 100
    log, rotated = house.log_dir / "chatglm-01.log", house.log_dir / "chatglm-01.log.1"
    text = (
        "import os, time\n"
        "def line(n): return b'%099d\\n' % n\n"
        f"for n in range(1, {full}, 1000): os.write(1, b''.join(map(line, range(n, min(n + 1000, {full})))))\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        f"n = {full}\n"
        "while True: os.write(1, line(n)); n += 1; time.sleep(0.1)"
    )
    house.log_dir.mkdir()
    log.write_text(f"{0:099d}\n")
    runtime = house.script(text)
    await runtime.start(Launch("chatglm-01", port))
    await eventually(lambda: log.stat().st_size == LOG_MAX_BYTES)
    followed = runtime.logs("chatglm-01", 1, follow=True)
    assert int(await anext(followed)) == full - 1
    assert (house.record()["log_from"], rotated.exists()) == (100, False)
    go.touch()
    await eventually(lambda: rotated.exists() and log.stat().st_size < 1_000_000, within=15.0)
    # Rotation is said to lose what is written in microseconds: at one line each 100 ms, at most one line here.
    kept = [int(line) for line in (rotated.read_text() + log.read_text()).split("\n")[:-1]]
    assert kept == sorted(kept)
    assert kept[:full] == list(range(full))
    assert len(kept) >= kept[-1]
    await eventually(lambda: house.record()["log_from"] == 0)
    async for line in followed:
        if int(line) > kept[-1]:
            break
    await followed.aclose()  # type: ignore[attr-defined]

"""Real faults: the writer killed by SIGKILL, a disk that is full, a folder that may not be written."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from hasupervisor.memory.database import Memory
from hasupervisor.memory.rows import Moment

MOMENT = Moment(now=100.0, wall=1_800_000_000.0)

WRITER = """
import sys
from pathlib import Path
from hasupervisor.memory.database import Batch, Memory
from hasupervisor.memory.rows import Entry, Moment
from hasupervisor.model import Failure, Record, Wants

memory = Memory.open(Path(sys.argv[1]))
moment = Moment(100.0, 1_800_000_000.0)
number = memory.last_id()
while True:
    number += 1
    failure = Failure(90.0, 1_799_999_990.0, "exited 1", f"{number} " * 2000)
    record = Record("chatglm-01", 8000, restarts=number, last_failure=failure)
    entry = Entry(number, moment.wall, "chatglm-01", "state", f"line {number}", "chatglm-ha")
    memory.write(Batch(moment, Wants(number), (record,), entries=(entry,)))
    print(number, flush=True)
"""

FULL_DISK = """
import asyncio, resource, signal, sys
from pathlib import Path
import hasupervisor.memory.scribe as scribe_module
from hasupervisor.memory import Scribe
from hasupervisor.model import Note, Wants

scribe_module.RETRY_FIRST = scribe_module.RETRY_MOST = 0.05

def say(words):
    print(f"> {words}", flush=True)

async def main(path):
    scribe = Scribe(path)
    await scribe.load(100.0, 1_800_000_000.0)
    task = asyncio.create_task(scribe.run())
    scribe.save_wants(Wants(2))
    assert await scribe.flush(5) is None
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = 256 * 1024
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    said = 0
    while scribe.trouble is None and said < 10_000:
        said += 1
        scribe.note(Note("chatglm-01", "state", f"line {said} " + "x" * 500), 1_800_000_000.0)
        scribe.save_wants(Wants(said))
        await scribe.flush(5)
    say(scribe.trouble.sentence)
    say(scribe.trouble.hint)
    scribe.save_wants(Wants(4321))
    assert await scribe.flush(5) == scribe.trouble.sentence
    shown = await scribe.history(n=10_000)
    assert [e.sentence.split()[1] for e in shown if e.event == "state"] == [str(n) for n in range(1, said + 1)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    async with asyncio.timeout(10):
        while scribe.trouble is not None:
            await asyncio.sleep(0.01)
    say((await scribe.history(n=1))[0].sentence)
    task.cancel()
    await asyncio.wait([task])
    await scribe.close()
    say(said)

asyncio.run(main(Path(sys.argv[1])))
"""

UNWRITABLE = """
import asyncio, os, sys
from pathlib import Path
from hasupervisor.memory import Scribe

def say(words):
    print(f"> {words}", flush=True)

async def main(path, uid):
    if os.geteuid() == 0:
        os.setresuid(uid, uid, uid)
    scribe = Scribe(path)
    remembered = await scribe.load(100.0, 1_800_000_000.0)
    say(remembered.wants.desired)
    say(scribe.trouble.sentence)
    say(scribe.trouble.hint)
    say((await scribe.history(n=1))[0].id)
    await scribe.close()

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said_by(out: str) -> list[str]:
    """What the child has to say, without its log."""
    return [line.removeprefix("> ") for line in out.splitlines() if line.startswith("> ")]


def write_and_die(path: Path, printed: Path, after: float) -> int:
    """Runs the writer, kills it `after` seconds from its first write, and returns the last number it has printed."""
    with printed.open("wb") as out:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=out, stderr=subprocess.PIPE)
    end = time.monotonic() + 20
    while b"\n" not in printed.read_bytes():
        assert writer.poll() is None, writer.communicate()
        assert time.monotonic() < end, "nothing was written in 20 s"
        time.sleep(0.005)
    time.sleep(after)  # not a wait: the moment of death is what is being varied
    writer.send_signal(signal.SIGKILL)
    _, errors = writer.communicate(timeout=20)
    assert errors == b""
    return int(printed.read_bytes().rpartition(b"\n")[0].split()[-1])


def test_a_writer_killed_at_any_moment_leaves_all_or_nothing_of_each_batch(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    chance = random.Random(20261124)
    reached = 0
    for _ in range(12):
        promised = write_and_die(path, tmp_path / "printed", after=chance.random() * 0.05)
        memory = Memory.open(path)
        assert memory.mishap is None
        found = memory.load(MOMENT)
        newest = memory.history(n=1)[0]
        assert found.wants is not None
        assert found.records[0].last_failure is not None
        words = found.records[0].last_failure.tail.split()
        numbers = {found.wants.desired, found.records[0].restarts, newest.id, memory.last_id(), *map(int, words)}
        assert len(numbers) == 1, "parts of different batches"
        assert promised <= newest.id <= promised + 1
        assert newest.id > reached
        reached = newest.id
        memory.close()


def test_a_full_disk_is_a_trouble_in_words_and_everything_is_written_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    out, errors = child(FULL_DISK, path).communicate(timeout=60)
    assert out, errors
    trouble, hint, recovered, said = said_by(out)
    assert trouble in (f"cannot write {path}: the disk is full", f"cannot write {path}: input/output error")
    assert hint == f"df -h {tmp_path}; ls -l {path}"
    assert recovered.startswith(f"{path} can be written again after ")
    assert "given up" not in recovered
    assert "Traceback" not in errors
    memory = Memory.open(path)
    assert memory.mishap is None
    found = memory.load(MOMENT)
    assert found.wants is not None
    assert found.wants.desired == 4321
    states = [e.sentence.split()[1] for e in memory.history(n=10_000) if e.event == "state"]
    assert states == [str(n) for n in range(1, int(said) + 1)]


def test_a_file_that_may_not_be_written_is_read_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    path = folder / "state.db"
    promised = write_and_die(path, tmp_path / "printed", after=0.0)
    assert (folder / "state.db-wal").exists()
    for found in folder.iterdir():
        found.chmod(0o444)
    folder.chmod(0o555)
    for above in (tmp_path, *tmp_path.parents):
        if above.owner() == Path.home().owner() and above.name.startswith(("pytest", "test_")):
            above.chmod(0o755)
    out, errors = child(UNWRITABLE, path, 65534).communicate(timeout=20)
    folder.chmod(0o755)
    wanted, trouble, hint, newest = said_by(out)
    assert promised <= int(wanted) <= promised + 1, errors
    assert trouble == f"cannot open {path}: Permission denied"
    assert hint == f"ls -ld {folder} {path}"
    assert int(newest) == int(wanted) + 1, "the trouble is the newest line"

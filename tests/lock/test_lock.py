"""One daemon for a state directory and a socket: the second is told who the first is, the dead hold nothing."""

from __future__ import annotations

import grp
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hasupervisor.config import load
from hasupervisor.lock import CannotTake, Held, lock_folder, take_socket

HOLDER = """
import sys
from pathlib import Path
from hasupervisor.lock import lock_folder, take_socket

kept = []
if sys.argv[1] != "-":
    kept.append(lock_folder(Path(sys.argv[1]), "chatglm-had 9.9.9"))
if sys.argv[2] != "-":
    kept.append(take_socket(Path(sys.argv[2]), "", "chatglm-had 9.9.9"))
if "bare" in sys.argv:
    Path(sys.argv[2] + ".lock").unlink()
print("holds", flush=True)
sys.stdin.read()
"""

ME = pwd.getpwuid(os.geteuid()).pw_name


class Holder:
    """Another daemon, as far as locks go."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        words = iter(self.process.stdout.readline, "")
        assert any(line == "holds\n" for line in words), "it took nothing"

    def end(self, *, kill: bool = True) -> None:
        if kill:
            self.process.kill()
        self.process.communicate(timeout=20)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="ha-") as name:
        yield Path(name)


def test_a_second_daemon_on_a_state_directory_is_told_who_holds_it_since_when_and_what_to_do(tmp_path: Path) -> None:
    holder = Holder(str(tmp_path), "-")
    with pytest.raises(Held) as refusal:
        lock_folder(tmp_path, "chatglm-had 1.0.0")
    holder.end()
    pattern = (
        rf"the state directory {re.escape(str(tmp_path))} is held by chatglm-had 9\.9\.9, pid {holder.process.pid} "
        rf"\(user {ME}\), since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ; stop that daemon first: systemctl stop chatglm-ha"
    )
    assert re.fullmatch(pattern, str(refusal.value))


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_daemon_that_is_gone_holds_nothing(tmp_path: Path, how: str) -> None:
    Holder(str(tmp_path), "-").end(kill=how == "killed")
    lock_folder(tmp_path, "chatglm-had 1.0.0").release()


def test_a_lock_that_was_released_can_be_taken_again(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path, "chatglm-had 1.0.0")
    with pytest.raises(Held):
        lock_folder(tmp_path, "chatglm-had 1.0.0")
    lock.release()
    lock.release()
    lock_folder(tmp_path, "chatglm-had 1.0.0").release()


def test_an_instance_that_outlives_the_daemon_does_not_hold_its_lock(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path, "chatglm-had 1.0.0")
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE):
        lock.release()
        lock_folder(tmp_path, "chatglm-had 1.0.0").release()


def test_a_state_directory_that_is_missing_is_made_and_one_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    lock_folder(tmp_path / "a" / "b", "chatglm-had 1.0.0").release()
    assert (tmp_path / "a" / "b" / "lock").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotTake, match=r"state\.dir: cannot make .*/file/b: Not a directory; ls -ld .*/file"):
        lock_folder(tmp_path / "file" / "b", "chatglm-had 1.0.0")


def test_the_socket_answers_under_its_name_and_is_gone_after_its_release(folder: Path) -> None:
    path = folder / "control.sock"
    control = take_socket(path, "", "chatglm-had 1.0.0")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = control.socket.accept()
        accepted.close()
    assert sorted(found.name for found in folder.iterdir()) == ["control.sock", "control.sock.lock"]
    control.release()
    assert sorted(found.name for found in folder.iterdir()) == ["control.sock.lock"]


def test_a_second_daemon_on_the_socket_is_told_who_holds_it(folder: Path) -> None:
    path = folder / "control.sock"
    holder = Holder("-", str(path))
    with pytest.raises(Held, match=rf"the control socket {path} is held by .*, pid {holder.process.pid} "):
        take_socket(path, "", "chatglm-had 1.0.0")
    holder.end()


def test_a_stranger_that_answers_on_the_socket_is_named_by_its_peer_credentials(folder: Path) -> None:
    path = folder / "control.sock"
    holder = Holder("-", str(path), "bare")
    with pytest.raises(Held, match=rf"{path} is answered by pid {holder.process.pid}, \S+ \(user {ME}\); stop that"):
        take_socket(path, "", "chatglm-had 1.0.0")
    holder.end()


def test_a_stranger_whose_queue_is_full_keeps_its_socket(folder: Path) -> None:
    path = folder / "control.sock"
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(Held, match=r"is held by a process that does not answer; fuser .* shows it"):
            take_socket(path, "", "chatglm-had 1.0.0")
        for client in clients:
            client.close()


@pytest.mark.parametrize("how", ["killed", "left by another program"])
def test_a_socket_that_nobody_answers_on_is_replaced(folder: Path, how: str) -> None:
    path = folder / "control.sock"
    if how == "killed":
        Holder("-", str(path)).end()
    else:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.bind(str(path))
    assert path.is_socket()
    control = take_socket(path, "", "chatglm-had 1.0.0")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    control.release()


def test_a_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    path = folder / "control.sock"
    path.write_text("precious")
    with pytest.raises(CannotTake, match=r"is there and is no socket, so it is left alone"):
        take_socket(path, "", "chatglm-had 1.0.0")
    assert path.read_text() == "precious"
    path.unlink()
    take_socket(path, "", "chatglm-had 1.0.0").release()


def test_a_socket_that_is_somebody_elses_by_now_is_not_removed(folder: Path) -> None:
    path = folder / "control.sock"
    control = take_socket(path, "", "chatglm-had 1.0.0")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        control.release()
        assert path.is_socket()


WATCHED_S = 10.0


def test_nobody_but_owner_and_group_is_let_in_for_an_instant(folder: Path) -> None:
    path = folder / "control.sock"
    seen: set[tuple[str, int]] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for entry in os.scandir(folder):
                try:
                    mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
                except FileNotFoundError:
                    continue
                if not entry.name.endswith(".lock"):
                    seen.add(("final" if entry.name == "control.sock" else "unborn", mode))

    watcher = threading.Thread(target=watch)
    before = os.umask(0)
    watcher.start()
    try:
        for _ in range(300):
            take_socket(path, "", "chatglm-had 1.0.0").release()
        last = take_socket(path, "", "chatglm-had 1.0.0")
        deadline = time.monotonic() + WATCHED_S
        while ("final", 0o660) not in seen and time.monotonic() < deadline:
            time.sleep(0.001)  # the watcher may have got no turn until now
        last.release()
    finally:
        os.umask(before)
        done.set()
        watcher.join()
    assert ("final", 0o660) in seen
    assert seen <= {("final", 0o660), ("unborn", 0o600), ("unborn", 0o660)}


def test_the_socket_is_given_to_its_group(folder: Path) -> None:
    mine = os.getgroups() if os.geteuid() else [found.gr_gid for found in grp.getgrall()]
    gid = next((gid for gid in mine if gid != os.getegid()), os.getegid())
    path = folder / "control.sock"
    control = take_socket(path, grp.getgrgid(gid).gr_name, "chatglm-had 1.0.0")
    assert path.stat().st_gid == gid
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    control.release()


def test_a_group_that_does_not_exist_is_said_and_changes_nothing(folder: Path) -> None:
    with capture_logs() as lines:
        control = take_socket(folder / "control.sock", "no-such-group-here", "chatglm-had 1.0.0")
    assert [line["group"] for line in lines] == ["no-such-group-here"]
    assert "groupadd --system no-such-group-here" in lines[0]["event"]
    assert stat.S_IMODE((folder / "control.sock").stat().st_mode) == 0o660
    control.release()


def test_with_the_embedded_configuration_nothing_is_said_of_a_group(folder: Path) -> None:
    group = load(Path(__file__).parents[2] / "config/embedded.toml", {}, lowest=1024).control.group
    with capture_logs() as lines:
        control = take_socket(folder / "control.sock", group, "chatglm-had 1.0.0")
    assert lines == []
    found = (folder / "control.sock").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getegid())
    control.release()


def test_a_name_that_is_too_long_for_a_socket_is_explained(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 100) / "control.sock"
    with pytest.raises(CannotTake, match="is longer than a socket's name may be; choose a shorter one"):
        take_socket(path, "", "chatglm-had 1.0.0")
    assert not path.parent.exists()

"""The identity of a state directory: kept, moved with it, another for a copy, and seen by others while it is held."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hasupervisor.runtimes.ownership import FILE, Alive, Ownership, alive


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def test_an_identity_is_kept_with_all_that_was_taken_over(state: Path) -> None:
    first = Ownership(state, "gpu-07")
    first.adopt("somebody")
    again = Ownership(state, "gpu-07")
    assert again.ids == first.ids == {first.id, "somebody"}
    assert again.place == f"gpu-07:{state}"


def test_it_goes_along_with_a_directory_that_is_moved_or_reached_by_another_way_or_on_a_renamed_host(
    state: Path, tmp_path: Path
) -> None:
    first = Ownership(state, "gpu-07").id
    assert Ownership(state, "gpu-08").id == first
    (tmp_path / "way").symlink_to(state)
    assert Ownership(tmp_path / "way", "gpu-08").id == first
    shutil.move(state, tmp_path / "moved")
    assert Ownership(tmp_path / "moved", "gpu-08").id == first


def test_a_copy_is_another_daemons_and_owns_nothing_of_the_first(state: Path, tmp_path: Path) -> None:
    first = Ownership(state, "gpu-07")
    first.adopt("somebody")
    shutil.copytree(state, tmp_path / "copy")
    copy = Ownership(tmp_path / "copy", "gpu-07")
    assert not copy.ids & first.ids
    assert Ownership(state, "gpu-07").ids == first.ids


def test_nobody_but_the_owner_of_the_directory_may_read_it_whoever_writes_it(state: Path) -> None:
    os.chown(state, 1234, 1234)  # as root takes over with --adopt what is the service's user's
    Ownership(state, "gpu-07")
    found = (state / FILE).stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o600, 1234, 1234)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "x"}', b"\xff\xfe"])
def test_one_that_cannot_be_read_is_made_anew(state: Path, content: str | bytes) -> None:
    (state / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    made = Ownership(state, "gpu-07")
    assert Ownership(state, "gpu-07").id == made.id


def test_one_that_cannot_be_written_does_not_keep_the_daemon_from_starting(tmp_path: Path) -> None:
    assert Ownership(tmp_path / "nowhere", "gpu-07").ids


def test_whoever_holds_it_is_seen_to_live_and_nobody_else_can_hold_it(state: Path) -> None:
    first = Ownership(state, "gpu-07")
    assert alive(first.id, first.place) is None
    first.hold()
    assert alive(first.id, first.place) == f"pid {os.getpid()}"
    with pytest.raises(Alive, match=f"a daemon with the identity of gpu-07:{state} runs already .pid {os.getpid()}."):
        Ownership(state, "gpu-07").hold()
    first.release()
    assert alive(first.id, first.place) is None


HOLD = """
import os, socket, sys
os.setuid(65534)
name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
name.bind(sys.argv[1])
name.listen(16)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_stranger_who_holds_the_name_is_no_daemon_and_keeps_none_from_starting(state: Path) -> None:
    ours = Ownership(state, "gpu-07")
    name = f"\0chatglm-ha-{ours.id}"
    code = HOLD.replace("sys.argv[1]", repr(name))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "held\n"
        assert alive(ours.id, ours.place) is None
        ours.hold()  # it says so, and goes on
        ours.release()
        stranger.communicate("", timeout=10.0)


def test_what_stands_in_a_label_and_is_no_identity_is_nobodys() -> None:
    assert alive("x" * 200, "gpu-07:/nowhere") is None

"""What doctor says of the daemon's user: what it may not do of what it has to, each with the command that mends it."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasupervisor import config
from hasupervisor.config import Config
from hasupervisor.doctor import account
from hasupervisor.doctor.finding import Finding, Level

USER = "nobody"  # every host has it
UNIT = {"LoadState": "loaded", "User": USER, "PrivateTmp": "yes", "MemoryDenyWriteExecute": "yes"}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Path]:
    """A socket as dockerd makes it: for its owner and group."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o660)
        yield path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.touch()
    path.chmod(0o644)
    return path


def settings(file: Path, engine: Path, more: str = "") -> Config:
    file.write_text(f'[docker]\nhost = "unix://{engine}"\n[nginx]\nmode = "off"\n{more}')
    return config.load(file, {})


def told(found: list[Finding], part: str) -> Finding:
    return next(finding for finding in found if part in finding.sentence)


def test_a_unit_that_runs_as_root_or_is_not_there_is_not_asked(file: Path, engine: Path) -> None:
    loaded = settings(file, engine)
    assert account.examine({}, loaded, file) == []
    assert account.examine({**UNIT, "LoadState": "not-found"}, loaded, file) == []
    for root in ("", "root", "0"):
        assert account.examine({**UNIT, "User": root}, loaded, file) == []


def test_a_user_that_is_not_there_is_to_be_mended(file: Path, engine: Path) -> None:
    (found,) = account.examine({**UNIT, "User": "no-such-user-here"}, settings(file, engine), file)
    assert found.level is Level.FAIL
    assert "no such user" in found.sentence


def test_a_configuration_that_the_user_may_not_read_is_named_with_the_mend(file: Path, engine: Path) -> None:
    loaded = settings(file, engine)
    file.chmod(0o600)
    found = told(account.examine(UNIT, loaded, file), "may not read")
    assert (found.level, found.hint) == (Level.FAIL, f"chgrp {USER} {file} && chmod 640 {file}")


def test_an_engine_whose_group_the_user_is_not_in_is_named_with_the_mend(file: Path, engine: Path) -> None:
    os.chown(engine, -1, 1)  # the group daemon
    found = told(account.examine(UNIT, settings(file, engine), file), "may not use")
    assert found.level is Level.FAIL
    assert found.hint == f"usermod --append --groups daemon {USER} && systemctl restart chatglm-ha"


def test_a_user_in_the_engine_s_group_is_all_right(file: Path, engine: Path) -> None:
    os.chown(engine, -1, pwd.getpwnam(USER).pw_gid)
    (found,) = account.examine(UNIT, settings(file, engine), file)
    assert (found.level, found.sentence) == (Level.OK, f"the daemon's user {USER} may do what it has to")


def test_an_engine_that_is_root_s_alone_is_said(file: Path, engine: Path) -> None:
    os.chown(engine, 0, 0)
    found = told(account.examine(UNIT, settings(file, engine), file), "root's alone")
    assert found.hint is not None
    assert found.hint.startswith("groupadd --system docker")


@pytest.mark.parametrize("still", [("PrivateTmp",), ("MemoryDenyWriteExecute",), ()])
def test_instances_as_processes_want_their_drop_in_until_it_is_there(
    file: Path, engine: Path, still: tuple[str, ...]
) -> None:
    loaded = settings(file, engine, '[service]\nruntime = "process"\n')
    shown = {**UNIT, "PrivateTmp": "no", "MemoryDenyWriteExecute": "no"} | dict.fromkeys(still, "yes")
    (found,) = account.examine(shown, loaded, file)
    assert found.level is (Level.WARN if still else Level.OK)
    if still:
        assert found.hint is not None
        assert "/usr/share/chatglm-ha/process-runtime.conf && systemctl daemon-reload" in found.hint


def test_without_root_s_helper_the_system_s_nginx_cannot_be_reloaded(file: Path, engine: Path, tmp_path: Path) -> None:
    file.write_text('[service]\nruntime = "process"\n')
    found = told(account.examine(UNIT, config.load(file, {}), file, tmp_path / "nowhere"), "helper")
    assert (found.level, found.hint) == (
        Level.FAIL,
        "systemctl start chatglm-ha-nginx.socket && systemctl restart chatglm-ha",
    )


def test_before_the_daemon_s_first_start_its_helper_is_not_missed(file: Path, engine: Path, tmp_path: Path) -> None:
    file.write_text('[service]\nruntime = "process"\n')
    found = account.examine(UNIT | {"ActiveState": "inactive"}, config.load(file, {}), file, tmp_path / "nowhere")
    assert not [one for one in found if "helper" in one.sentence]


@pytest.mark.parametrize(
    ("shown", "complained"),
    [
        ({"ProtectSystem": "strict"}, ["state.dir", "log.file"]),
        ({"ProtectSystem": "strict", "ReadWritePaths": "-/srv/ha /tmp"}, ["log.file"]),
        ({"ProtectSystem": "full"}, []),
    ],
)
def test_what_the_sandbox_lets_nobody_write_is_named_by_its_key(
    file: Path, engine: Path, shown: dict[str, str], complained: list[str]
) -> None:
    loaded = settings(file, engine, '[state]\ndir = "/srv/ha/state"\n[log]\nfile = "/srv/log/ha.log"\n')
    found = [one for one in account.examine(UNIT | shown, loaded, file) if "the unit's sandbox" in one.sentence]
    assert [one.sentence.partition(":")[0] for one in found] == complained
    for one in found:
        assert one.level is Level.FAIL
        assert one.hint is not None
        assert one.hint.startswith("systemctl edit chatglm-ha: ReadWritePaths=/srv/")

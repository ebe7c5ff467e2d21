"""What the daemon's user may do of what it has to: the configuration, dockerd, nginx, and what instances inherit."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Mapping
from pathlib import Path

from hasupervisor.act.nginx import helper
from hasupervisor.act.nginx.helped import SOCKETS, UNIT
from hasupervisor.config import Config
from hasupervisor.doctor.finding import Finding, fail, ok, warn

CHECK = "user"
DROP_INS = "/etc/systemd/system/chatglm-ha.service.d"
SHIPPED = "/usr/share/chatglm-ha"
OWN_FOLDERS = ("/var/lib/chatglm-ha", "/var/log/chatglm-ha", "/run/chatglm-ha")  # of the unit
AGAIN = "systemctl restart chatglm-ha"


def examine(shown: Mapping[str, str], settings: Config, path: Path, sockets: Path = SOCKETS) -> list[Finding]:
    """`shown`: the unit's properties (unit.py); `path`: the configuration; `sockets`: where root's helper listens.

    Nothing where the unit is not there or runs as root, who may do everything.
    """
    if not is_used(shown):
        return []
    user = shown["User"]
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return [fail(CHECK, f"the daemon is to run as {user}, and there is no such user", "sudo make install")]
    groups = frozenset(os.getgrouplist(user, account.pw_gid))
    found = [
        *_configuration(path, account, groups),
        *_folders(shown, settings),
        *_engine(settings, account, groups),
        *_nginx(shown, settings, user, sockets),
        *_processes(shown, settings),
    ]
    return found or [ok(CHECK, f"the daemon's user {user} may do what it has to")]


def is_used(shown: Mapping[str, str]) -> bool:
    """Whether the unit is there, and runs the daemon as somebody else than root."""
    return shown.get("LoadState") == "loaded" and shown.get("User", "") not in ("", "root", "0")


def may_use(path: Path, account: pwd.struct_passwd, groups: frozenset[int], right: int) -> bool:
    """By the file's own mode (`right`: 4 to read, 6 to read and write); the folders above are not asked."""
    found = path.stat()
    if found.st_uid == account.pw_uid:
        return found.st_mode >> 6 & right == right
    return (found.st_mode >> 3 if found.st_gid in groups else found.st_mode) & right == right


def _configuration(path: Path, account: pwd.struct_passwd, groups: frozenset[int]) -> list[Finding]:
    try:
        if may_use(path, account, groups, 4):
            return []
    except OSError:
        return []  # not there, which others say
    user = account.pw_name
    mend = f"chgrp {user} {path} && chmod 640 {path}"
    return [fail(CHECK, f"{user}, as whom the daemon runs, may not read {path}", mend)]


def _folders(shown: Mapping[str, str], settings: Config) -> list[Finding]:
    """What is configured to be written where the unit's sandbox lets nobody write."""
    if shown.get("ProtectSystem") != "strict":
        return []
    opened = [word.lstrip("+-") for word in shown.get("ReadWritePaths", "").split()]
    open_to_it = [Path(folder) for folder in (*OWN_FOLDERS, *opened)]
    wanted = {
        "state.dir": settings.state.dir,
        "nginx.dir": settings.nginx.dir if settings.nginx.mode != "off" else None,
        "process.log_dir": settings.log_dir if settings.service.runtime == "process" else None,
        "log.file": settings.log.file.parent if settings.log.file is not None else None,
        "control.socket": settings.control.socket.parent,
    }
    return [
        fail(
            CHECK,
            f"{key}: the unit's sandbox lets the daemon write nothing to {folder}",
            f"systemctl edit chatglm-ha: ReadWritePaths={folder} under [Service], then restart it",
        )
        for key, folder in wanted.items()
        if folder is not None and not any(folder.absolute().is_relative_to(one) for one in open_to_it)
    ]


def _engine(settings: Config, account: pwd.struct_passwd, groups: frozenset[int]) -> list[Finding]:
    host = settings.docker_host or "unix:///var/run/docker.sock"
    if settings.service.runtime != "docker" or not host.startswith("unix://"):
        return []
    path = Path(host.removeprefix("unix://"))
    try:
        found = path.stat()
        if not stat.S_ISSOCK(found.st_mode) or may_use(path, account, groups, 6):
            return []
        group = grp.getgrgid(found.st_gid).gr_name
    except (OSError, KeyError):
        return []  # it is not there, or its group has no name: the engine's own finding says what comes of it
    user = account.pw_name
    if group == "root":
        mend = f"groupadd --system docker && systemctl restart docker && usermod -aG docker {user} && {AGAIN}"
        return [fail(CHECK, f"{path} is root's alone, and the daemon runs as {user}", mend)]
    mend = f"usermod --append --groups {group} {user} && {AGAIN}"
    return [fail(CHECK, f"{user}, as whom the daemon runs, may not use {path}: it is not in the group {group}", mend)]


def _nginx(shown: Mapping[str, str], settings: Config, user: str, sockets: Path) -> list[Finding]:
    if settings.nginx.mode != "system" or (sockets / helper.RELOAD).exists():
        return []
    if shown.get("ActiveState") == "inactive":
        return []  # the unit wants the helper's socket: it comes with the daemon's first start
    mend = f"systemctl start {UNIT} && {AGAIN}"
    return [fail(CHECK, f"{user} may not test or reload nginx, and root's helper is not there: {sockets}", mend)]


def _processes(shown: Mapping[str, str], settings: Config) -> list[Finding]:
    if settings.service.runtime != "process" or "yes" not in (
        shown.get("MemoryDenyWriteExecute"),
        shown.get("PrivateTmp"),
    ):
        return []
    sentence = (
        "instances inherit the daemon's sandbox: they cannot compile code, as torch does, and lose /tmp with the daemon"
    )
    return [warn(CHECK, sentence, drop_in("process-runtime.conf"))]


def drop_in(name: str) -> str:
    """The commands that put a drop-in of the package into effect."""
    return f"install -D -m 644 -t {DROP_INS} {SHIPPED}/{name} && systemctl daemon-reload && {AGAIN}"

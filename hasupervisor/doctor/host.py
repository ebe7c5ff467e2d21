"""The host itself: room on its disks, its clock, what a process may open, and security modules that get in the way."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable
from pathlib import Path

from hasupervisor.descriptors import RESERVED
from hasupervisor.doctor.finding import Finding, fail, ok, warn

FEW_BYTES, SCARCE_BYTES = 1 << 30, 100 << 20  # 1 GiB: time to act; 100 MiB: the next log or state may not be written
FEW_INODES = 0.02
NTP_LOST_S = 16.0  # the kernel's own limit (NTP_PHASE_LIMIT): beyond it nobody keeps the clock


# --- disk -------------------------------------------------------------------------------------------------------------


def disks(folders: Iterable[Path]) -> list[Finding]:
    """One finding for each file system that the folders, which need not exist yet, lie on."""
    on: dict[int, list[Path]] = {}
    for folder in dict.fromkeys(folders):
        on.setdefault(_existing(folder).stat().st_dev, []).append(folder)
    return [_disk(several) for several in on.values()]


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _disk(folders: list[Path]) -> Finding:
    found = os.statvfs(_existing(folders[0]))
    free, names = found.f_bavail * found.f_frsize, ", ".join(map(str, folders))
    words = f"{free / 2**30:.1f} GiB free for {names}"
    hint = f"df -h {folders[0]}; du -xh --max-depth=2 {_existing(folders[0])} | sort -h"
    if found.f_flag & os.ST_RDONLY:
        return fail("disk", f"{names} can only be read", f"findmnt --target {folders[0]}; dmesg")
    if free < SCARCE_BYTES:
        return fail("disk", words, hint)
    if found.f_files and found.f_favail < found.f_files * FEW_INODES:
        return warn("disk", f"{words}, but only {found.f_favail} of {found.f_files} inodes", f"df -i {folders[0]}")
    return warn("disk", words, hint) if free < FEW_BYTES else ok("disk", words)


# --- clock ------------------------------------------------------------------------------------------------------------


class _Timex(ctypes.Structure):
    """The head of the kernel's struct timex (adjtimex(2)); the rest is room for what is not read here."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # microseconds
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 64),
    )


def clock() -> Finding:
    """Whether somebody keeps the clock. The daemon measures by another; the history and TLS go by this one."""
    asked = _Timex()
    library = ctypes.CDLL(None, use_errno=True)
    if library.adjtimex(ctypes.byref(asked)) < 0:
        why = os.strerror(ctypes.get_errno())
        return warn("clock", f"the kernel does not say whether the clock is kept: {why}", "timedatectl")
    return judge_clock(asked.maxerror / 1e6)


def judge_clock(error_s: float) -> Finding:
    """`error_s`: how far the clock may be off, by the kernel's reckoning."""
    if error_s >= NTP_LOST_S:
        return warn(
            "clock", "nobody keeps the clock: times in history and logs may be wrong", "timedatectl set-ntp true"
        )
    return ok("clock", f"it is kept, within {error_s:.3f} s")


# --- limits -----------------------------------------------------------------------------------------------------------


def open_files(daemon: int | None, unit_limit: int | None, held: int) -> Finding:
    """Whether the daemon may hold `held` requests (nginx.hold_max): each is a connection to it.

    By what the running daemon may open; else by what its unit gives; else by what this shell gives: hard limits, to
    which the daemon raises its own. Where that is less the daemon lets fewer wait.
    """
    limit, whose = _of_process(daemon), "the daemon may open"
    if limit is None:
        limit, whose = unit_limit, "its unit lets the daemon open"
    if limit is None:
        limit, whose = resource.getrlimit(resource.RLIMIT_NOFILE)[1], "a daemon started here may open"
    words = f"{whose} {'any number of' if limit == resource.RLIM_INFINITY else limit} files"
    if limit != resource.RLIM_INFINITY and limit < held + RESERVED:
        needs = f"{words}, and needs {held + RESERVED} to hold {held} requests (nginx.hold_max)"
        return warn("limits", needs, "systemctl edit chatglm-ha: LimitNOFILE=65536 under [Service], then restart it")
    return ok("limits", words)


def _of_process(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except (PermissionError, ProcessLookupError):
        return None
    return soft


# --- security modules -------------------------------------------------------------------------------------------------


def modules(root: Path = Path("/")) -> list[Finding]:
    """What SELinux and AppArmor are known to forbid here; `root` is where the host's /sys is."""
    findings = [*_selinux(root), *_apparmor(root)]
    return findings or [ok("security", "neither SELinux nor AppArmor stands between nginx and the instances")]


def _selinux(root: Path) -> list[Finding]:
    if _text(root / "sys/fs/selinux/enforce").strip() != "1":
        return []
    if _text(root / "sys/fs/selinux/booleans/httpd_can_network_connect").startswith("1"):
        return [ok("security", "SELinux enforces, and lets nginx connect to the instances")]
    return [
        fail(
            "security",
            "SELinux enforces, and does not let nginx connect to the instances",
            "setsebool -P httpd_can_network_connect 1",
        )
    ]


def _apparmor(root: Path) -> list[Finding]:
    profiles = _text(root / "sys/kernel/security/apparmor/profiles").splitlines()
    confined = [line for line in profiles if "nginx" in line.partition(" (")[0] and line.endswith("(enforce)")]
    return [
        warn(
            "security",
            f"AppArmor confines nginx by the profile {line.partition(' (')[0]}",
            "let it read /var/lib/chatglm-ha/nginx/ and write the access.sock in it, then: nginx -t",
        )
        for line in confined
    ]


def _text(path: Path) -> str:
    """What the kernel says there; "" where it says nothing, or nothing to us."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

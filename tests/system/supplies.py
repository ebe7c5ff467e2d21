"""What a host of the tests is made of: Debian's root file system and the Python packages, fetched once and then kept.

Both lie under .cache/ in the checkout, named by what they were made from, so that only the first run needs minutes and
the network.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.checkout import ROOT, copy_sources
from tests.real.dockerd import mounts_below

CACHE = ROOT / ".cache" / "system"
SUITES = {"bookworm": "3.11", "trixie": "3.13"}  # Debian 12 and 13, and the Python of each
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "nginx", "make", "logrotate")
FETCH_S = 600.0

# Of no use to a host that installs nothing more and that nobody logs in to.
LEFT_OUT = ("./var/cache/apt/*", "./var/lib/apt/lists/*", "./usr/share/doc/*", "./usr/share/locale/*")


def root_file_system(suite: str = "bookworm", also: tuple[str, ...] = ()) -> Path:
    """A tar of a small Debian with systemd, Python and nginx, and with the packages in `also`."""
    packages = (*PACKAGES, *also)
    return _kept(f"{suite}-{_digest(*packages, *LEFT_OUT)}.tar", partial(_debootstrap, suite, packages))


def dependencies(suite: str = "bookworm") -> Path:
    """A folder with a wheel of everything that the project depends on or is built with, for the suite's Python."""
    python = SUITES[suite]
    made_from = [(ROOT / name).read_text() for name in ("setup.cfg", "pyproject.toml", "constraints.txt")]
    return _kept(f"wheels-{python}-{_digest(*made_from)}", partial(_download, python))


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join((platform.machine(), *words)).encode()).hexdigest()[:12]


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    """The cached file or folder; made beside its name, so that a run that is broken off leaves nothing half."""
    kept = CACHE / name
    if kept.exists():
        return kept
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as folder:
        made = Path(folder) / name
        make(made)
        try:
            made.rename(kept)
        except OSError:
            if not kept.exists():  # else another run was quicker, and its is as good
                raise
    return kept


def _debootstrap(suite: str, packages: tuple[str, ...], made: Path) -> None:
    if os.geteuid() != 0:
        raise RuntimeError("tests/system makes a Debian root file system and needs root: sudo make test")
    if shutil.which("debootstrap") is None:
        raise RuntimeError("tests/system needs debootstrap: apt-get install debootstrap")
    root = made.with_name("root")
    try:
        _run("debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, str(root))
    finally:
        for mount in mounts_below(root):  # left by one that failed
            _run("umount", "--lazy", mount)
    left_out = [f"--exclude={pattern}" for pattern in LEFT_OUT]
    _run("tar", "--one-file-system", "-C", str(root), *left_out, "-cf", str(made), ".")


def _download(python: str, made: Path) -> None:
    made.mkdir()
    machine = platform.machine()
    platforms = [f"--platform=manylinux{tag}_{machine}" for tag in ("_2_28", "_2_17", "2014")]
    wanted = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
    wanted += ["--constraint", str(ROOT / "constraints.txt")]
    sources = made.with_name("sources")
    copy_sources(sources)
    project = tomllib.loads((sources / "pyproject.toml").read_text())
    needed = [str(sources), *project["build-system"]["requires"]]
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(made), *wanted, *needed)
    for ours in made.glob("chatglm_ha-*"):  # the host builds today's from the checkout
        ours.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} exited {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")

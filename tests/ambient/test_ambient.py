"""A capability that was given to the daemon: it keeps it, and what it starts does not get it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

ASK = """
import subprocess
from pathlib import Path
from hasupervisor.ambient import keep_from_children
print(keep_from_children())
print(Path("/proc/self/status").read_text())
print(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout)
"""
BIT = 1 << 34


@pytest.mark.parametrize("given", [True, False])
def test_what_the_daemon_starts_does_not_get_the_kernel_log(given: bool) -> None:
    assert os.geteuid() == 0, "setpriv gives a capability to another user, which takes root: sudo make test"
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv is in util-linux: apt-get install util-linux"
    names = "+dac_read_search,+syslog" if given else "+dac_read_search"  # the former for a checkout in a home
    capabilities = [f"--inh-caps={names}", f"--ambient-caps={names}"]
    ran = subprocess.run(
        [setpriv, "--reuid=65534", "--clear-groups", *capabilities, sys.executable, "-c", ASK],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{given}\n")
    effective = [int(found, 16) & BIT for found in re.findall(r"^CapEff:\s*(\w+)$", ran.stdout, re.M)]
    assert effective == [BIT if given else 0, 0]

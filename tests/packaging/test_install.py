"""The installer beside a host: below DESTDIR, without rights, without a Python that will do; and the manual pages."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest

from hasupervisor.ctl.main import COMMANDS, cli
from tests.checkout import ROOT, run

INSTALL_S = 240.0


def install(word: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """tools/install.sh, in the checkout, its words of both kinds on stdout."""
    return subprocess.run(
        [ROOT / "tools/install.sh", word],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )


def test_who_is_not_root_is_told_to_be() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        script = Path(folder, "tools/install.sh")
        script.parent.mkdir()
        shutil.copy(ROOT / "tools/install.sh", script)
        Path(folder).chmod(0o755)
        done = subprocess.run([script, "install"], user=65534, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "install: this writes to /usr and /etc and needs root: sudo make install\n"


def test_a_python_that_is_too_old_is_told_with_how_to_get_another(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" != -V ] || { echo Python 3.10.12; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    done = install("install", DESTDIR=str(tmp_path / "host"), PYTHON=str(old))
    assert done.returncode == 1
    assert f"Python 3.11 or newer is needed; {old} here is 3.10.12" in done.stdout
    assert "apt-get install python3.11 python3.11-venv" in done.stdout
    assert "make install PYTHON=" in done.stdout
    assert not any(path.is_file() for path in (tmp_path / "host").rglob("*"))


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with an installation in it."""
    root = tmp_path_factory.mktemp("destination")
    done = install("install", DESTDIR=str(root), PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout
    assert f"laid below {root}" in done.stdout
    return root


def test_below_a_destination_every_path_is_that_of_the_host_it_will_be(laid: Path) -> None:
    for name in ("chatglm-had", "chatglm-hactl"):
        program = laid / "usr/bin" / name
        assert program.readlink() == Path(f"../lib/chatglm-ha/bin/{name}")
        assert program.read_text().startswith("#!/usr/lib/chatglm-ha/bin/python")
    texts = [*(laid / "usr/lib/chatglm-ha/bin").glob("*[!0-9]"), laid / "usr/lib/chatglm-ha/pyvenv.cfg"]
    assert not [path for path in texts if path.is_file() and str(laid) in path.read_bytes().decode(errors="replace")]
    unit = (laid / "usr/lib/systemd/system/chatglm-ha.service").read_text()
    assert "\nExecStart=/usr/bin/chatglm-had --config /etc/chatglm-ha/config.toml\n" in unit
    assert (laid / "etc/chatglm-ha/config.toml").read_text() == (ROOT / "config/config.toml").read_text()
    assert sorted(path.name for path in (laid / "usr/lib").iterdir()) == [
        "chatglm-ha",
        "systemd",
        "sysusers.d",
        "tmpfiles.d",
    ]


def test_a_configuration_that_is_there_is_kept_and_the_rest_goes_with_the_removal(laid: Path) -> None:
    config = laid / "etc/chatglm-ha/config.toml"
    config.write_text("# mine\n")
    done = install("uninstall", DESTDIR=str(laid))
    assert done.returncode == 0, done.stdout
    left = sorted(str(path.relative_to(laid)) for path in laid.rglob("*") if not path.is_dir())
    assert left == ["etc/chatglm-ha/config.toml", "etc/nginx/conf.d/chatglm-ha.conf"]
    assert config.read_text() == "# mine\n"
    assert install("uninstall", DESTDIR=str(laid), PURGE="1").returncode == 0
    assert not [path for path in laid.rglob("*") if not path.is_dir()]


def test_the_manual_pages_name_every_command_with_its_options(tmp_path: Path) -> None:
    run(sys.executable, str(ROOT / "tools/manpages.py"), str(tmp_path))
    page = gzip.decompress((tmp_path / "man1/chatglm-hactl.1.gz").read_bytes()).decode()
    for name in COMMANDS:
        assert f'\n.SS "{name} ' in page, name
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for option in (option for param in command.params for option in param.opts if option.startswith("--")):
            assert option.replace("-", "\\-") in page, f"{name} {option}"
    daemon = gzip.decompress((tmp_path / "man8/chatglm-had.8.gz").read_bytes()).decode()
    assert "\n.B \\-\\-on\\-exit leave|stop\n" in daemon

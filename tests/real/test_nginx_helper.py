"""Root's helper for nginx: what it does for a daemon that is not root, and what it refuses; on real nginx."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasupervisor.act.nginx import helper
from hasupervisor.act.nginx.helped import HelperControl, control_for
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble
from tests.real.gatewaying import Instance, PrivateNginx, addresses, ask, running, table

VERBS = (helper.TEST, helper.JUDGE, helper.RELOAD, helper.REFUSALS)


@contextlib.contextmanager
def helped(folder: Path, config: Path) -> Iterator[Path]:
    """As systemd does for a socket with Accept=yes: a helper for every connection, the connection its input and output.

    Yields the folder of the sockets.
    """
    folder.mkdir()
    listeners, threads = [], []
    for verb in VERBS:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(folder / verb))
        listener.listen()
        listeners.append(listener)
        thread = threading.Thread(target=_serve, args=(listener, config), daemon=True)
        thread.start()
        threads.append(thread)
    try:
        yield folder
    finally:
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(30)
        for listener in listeners:
            listener.close()


def _serve(listener: socket.socket, config: Path) -> None:
    command = [sys.executable, "-I", "-m", "hasupervisor.act.nginx.helper", "--config", str(config)]
    with contextlib.suppress(OSError):  # the listener has been shut down
        while True:
            connection, _ = listener.accept()
            with connection:
                subprocess.run(command, stdin=connection, stdout=connection, timeout=30, check=True)


@pytest.fixture
def ports(port_range: Callable[[int], range]) -> range:
    return port_range(6)


@pytest.fixture
def settings(tmp_path: Path, ports: range, nginx: PrivateNginx) -> NginxSettings:
    (tmp_path / "ha").mkdir()
    (tmp_path / "ha" / "gateway.conf").touch()
    return NginxSettings(dir=tmp_path / "ha", binary=str(nginx.binary), listen=f"127.0.0.1:{ports[0]}")


@pytest.fixture
def control(tmp_path: Path, settings: NginxSettings) -> Iterator[HelperControl]:
    config = tmp_path / "config.toml"
    config.write_text(f"[nginx]\nbinary = {json.dumps(settings.binary)}\ndir = {json.dumps(str(settings.dir))}\n")
    with helped(tmp_path / "s", config) as sockets:
        yield HelperControl(settings, sockets)


@pytest.fixture
async def pair(ports: range) -> AsyncIterator[tuple[Instance, Instance]]:
    one, two = Instance(ports[2], "chatglm-01"), Instance(ports[3], "chatglm-02")
    await one.start()
    await two.start()
    yield one, two
    await one.stop()
    await two.stop()


def answer_of(path: Path, written: bytes = b"") -> dict[str, Any]:
    """What the helper says to one connection; `written` is sent first, as far as it is taken."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(written)
        said = b""
        while piece := connection.recv(65536):
            said += piece
    found: dict[str, Any] = json.loads(said)
    return found


async def test_tables_reach_nginx_through_the_helper(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, control: HelperControl, pair: tuple[Instance, Instance]
) -> None:
    nginx.start()
    async with running(settings, ports[0], control) as watched:
        view = await watched.route(table(*pair))
        assert view.live == addresses(*pair)
        await watched.route(table(pair[0]))
        assert (await ask(ports[0], "POST /", "{}")).json["name"] == "chatglm-01"
        assert await watched.gateway.reload() == (True, "")


async def test_nginx_s_own_complaint_comes_back_and_nothing_is_put_in_place(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, control: HelperControl, pair: tuple[Instance, Instance]
) -> None:
    nginx.start()
    async with running(settings, ports[0], control) as watched:
        before = await watched.route(table(*pair))
        broken = nginx.conf_d / "other.conf"
        broken.write_text("server { listen 127.0.0.1:1; gremlin on; }\n")
        watched.gateway.want(table(pair[0]))
        view = await watched.until(lambda view: not view.ok)
        assert view.reason == f'unknown directive "gremlin" in {broken}:1'
        assert await watched.gateway.test() == (False, view.reason)
        assert view.generation == before.generation
        broken.unlink()
        assert (await watched.route(table(pair[0]))).servers == 1


async def test_an_nginx_that_does_not_run_is_said(
    settings: NginxSettings, control: HelperControl, nginx: PrivateNginx
) -> None:
    with pytest.raises(NginxTrouble, match=r"nginx was not reloaded: .*nginx\.pid"):
        await control.reload(1)
    nginx.start()
    await control.reload(1)


async def test_a_helper_for_another_folder_is_not_believed(settings: NginxSettings, control: HelperControl) -> None:
    elsewhere = replace(settings, dir=settings.dir.with_name("elsewhere"))
    with pytest.raises(NginxTrouble, match="root's helper looks into"):
        await replace(control, settings=elsewhere).test(None)


async def test_a_helper_that_is_not_there_is_said_with_the_next_command(
    settings: NginxSettings, tmp_path: Path
) -> None:
    with pytest.raises(NginxTrouble, match=r"No such file or directory; systemctl restart chatglm-ha-nginx\.socket"):
        await HelperControl(settings, tmp_path / "nowhere").test(None)


def test_root_asks_nobody(settings: NginxSettings, control: HelperControl) -> None:
    assert not isinstance(control_for(settings, control.sockets), HelperControl)


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_caller_writes_changes_nothing(verb: str, control: HelperControl, nginx: PrivateNginx) -> None:
    nginx.start()
    control.stage(Path(), dict.fromkeys(helper.FILES, ""))
    asked = answer_of(control.sockets / verb)
    assert asked["code"] == 0, asked
    for written in (b"x", b'{"dir": "/etc", "code": 7}\n', b"-g 'error_log /tmp/mine;'\n" * 20_000):
        assert answer_of(control.sockets / verb, written)["code"] == 0
    assert answer_of(control.sockets / verb)["dir"] == str(control.settings.dir)


def test_a_caller_cannot_keep_the_helper_waiting(control: HelperControl) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
        first.settimeout(30)
        first.connect(str(control.sockets / helper.TEST))  # says nothing, takes nothing
        assert answer_of(control.sockets / helper.TEST)["code"] == 0


def test_links_and_folders_in_place_of_candidates_are_not_read(control: HelperControl, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:secret;\n")
    folder = control.stage(Path(), dict.fromkeys(helper.FILES, ""))
    gateway = folder / "gateway.conf"
    for make in (gateway.symlink_to, gateway.hardlink_to):
        gateway.unlink()
        make(secret)
        said = answer_of(control.sockets / helper.JUDGE)
        assert said["code"] == helper.NOT_RUN
        assert "secret" not in said["output"].replace(str(secret), "")
    gateway.unlink()
    gateway.mkdir()
    assert answer_of(control.sockets / helper.JUDGE)["code"] == helper.NOT_RUN


def test_a_candidate_cannot_have_a_module_loaded(control: HelperControl) -> None:
    """The main file is root's: what is only allowed there is refused."""
    control.stage(Path(), {"upstream.conf": "", "gateway.conf": "load_module /tmp/mine.so;\n"})
    said = answer_of(control.sockets / helper.JUDGE)
    assert said["code"] == 1
    assert '"load_module" directive is not allowed here' in said["output"]

"""While the daemon is away: nginx serves on, writes no line per request, and asks nobody else in the daemon's place."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real.daemon import PATIENT, Daemon, Document, as_processes, daemon
from tests.real.gatewaying import private_nginx, refused

REQUESTS = 200
A_FEW_LINES = 12  # of the moment in which the daemon ends: two for each worker that holds its log socket open


@dataclass(frozen=True, slots=True)
class Logged:
    """A host, and the logs of its nginx."""

    host: Daemon
    error_log: Path
    access_log: Path  # that the daemon alone rotates; with the distribution's nginx there is none

    def lines(self) -> int:
        return self.error_log.read_text().count("\n")

    def access_bytes(self) -> int:
        return self.access_log.stat().st_size if self.access_log.exists() else 0


@pytest.fixture(params=["own", "system"])
def logged(
    request: pytest.FixtureRequest, standin_server: Path, port_range: Callable[[int], range], tmp_path: Path
) -> Iterator[Logged]:
    with ExitStack() as stack:
        env = {"SERVICE_S": "0.005"}
        host = stack.enter_context(daemon(port_range(20), PATIENT, as_processes(standin_server, env)))
        logged = Logged(host, host.nginx / "error.log", host.nginx / "access.log")
        if request.param == "system":
            include = f"include {host.nginx}/gateway.conf;\n"
            nginx = stack.enter_context(private_nginx(tmp_path / "nginx", include))
            host.nginx.mkdir()
            (host.nginx / "gateway.conf").touch()
            nginx.start()
            host.configure({"nginx": {"mode": "system", "binary": str(nginx.binary)}})
            logged = Logged(host, tmp_path / "nginx" / "error.log", host.nginx / "access.log")
        host.start()
        host.wait_until_green()
        assert host.post().status_code == 200
        yield logged


def ask_often(host: Daemon, count: int = REQUESTS, *, health_every: int = 10) -> dict[int, int]:
    """Requests of users, and now and then of a load balancer; how many users were told which status."""
    told: dict[int, int] = {}
    for number in range(count):
        status = asked(host, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n" + b'{"prompt":"hi"}')
        told[status] = told.get(status, 0) + 1
        if number % health_every == 0:
            asked(host, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    return told


def asked(host: Daemon, request: bytes) -> int:
    """The status that the gateway answers a request with: hundreds of them, so without a client's library."""
    with socket.create_connection(("127.0.0.1", host.ports[0]), timeout=30.0) as connection:
        connection.sendall(request)
        said = b""
        while piece := connection.recv(65536):
            said += piece
    return int(said.split(b" ", 2)[1])


def end(instance: Document) -> None:
    """Kills it, and waits until nobody listens at its address any more."""
    os.kill(instance["pid"], signal.SIGKILL)
    port, deadline = int(instance["endpoint"].rpartition(":")[2]), time.monotonic() + 10.0
    while not refused(port):
        assert time.monotonic() < deadline, f"{port} still accepts"
        time.sleep(0.01)


def refused_to_nobody(path: Path) -> bool:
    """Whether a process of the user nobody may not connect there."""
    nobody = pwd.getpwnam("nobody")
    child = os.fork()
    if child == 0:  # nothing but system calls: the parent has threads
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            os._exit(socket.socket(socket.AF_UNIX).connect_ex(str(path)))
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EACCES


def test_two_hundred_requests_without_a_daemon_are_answered_and_leave_a_few_lines_in_all(logged: Logged) -> None:
    logged.host.kill()
    lines, written = logged.lines(), logged.access_bytes()
    assert ask_often(logged.host) == {200: REQUESTS}
    assert logged.lines() - lines <= A_FEW_LINES, logged.error_log.read_text()[-3000:]
    assert logged.access_bytes() - written < 64 * 1024  # what stood in a buffer when the daemon ended
    logged.host.start()
    before = logged.host.wait_until_green()["nginx"]["live_generation"]
    ask_often(logged.host, 20)  # each worker's first line finds out that the old socket is gone
    logged.host.wait_for(lambda status: status["traffic"]["qps"], "the daemon hears of requests again")
    assert logged.host.generation() == before, "a start has reloaded nginx"


def test_nor_do_they_when_an_instance_has_died_as_well(logged: Logged) -> None:
    victims = logged.host.wait_until_green()["instances"]
    logged.host.kill()
    end(victims[0])
    lines = logged.lines()
    assert ask_often(logged.host) == {200: REQUESTS}
    end(victims[1])
    assert ask_often(logged.host) == {503: REQUESTS}
    assert logged.lines() - lines <= A_FEW_LINES, logged.error_log.read_text()[-3000:]
    told = logged.host.post()
    assert (told.status_code, told.headers["retry-after"]) == (503, "5")


def test_a_daemon_that_hangs_costs_no_lines_either_once_nobody_reads_its_socket(logged: Logged) -> None:
    lines = logged.lines()
    os.kill(logged.host.pid, signal.SIGSTOP)
    try:
        assert ask_often(logged.host, 600, health_every=200) == {200: 600}  # more than the socket's queue holds
    finally:
        os.kill(logged.host.pid, signal.SIGCONT)
    assert logged.lines() - lines <= A_FEW_LINES, logged.error_log.read_text()[-3000:]


def test_nginx_asks_the_daemon_on_a_socket_that_strangers_can_neither_use_nor_replace(logged: Logged) -> None:
    room = logged.host.nginx / "room.sock"
    found, folder = room.stat(), room.parent.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o660, os.geteuid())
    assert not folder.st_mode & stat.S_IWOTH
    if os.geteuid() == 0:
        logged.host.folder.chmod(0o755)
        assert refused_to_nobody(room)


def test_who_listens_where_the_room_once_was_gets_nothing_with_the_daemon_there_or_away(logged: Logged) -> None:
    host = logged.host
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", host.ports[1]))
        stranger.listen()
        stranger.settimeout(0.2)
        came: list[bytes] = []
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                try:
                    connection, _ = stranger.accept()
                except TimeoutError:
                    continue
                with connection:
                    came.append(connection.recv(65536))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            host.configure({"nginx": {"room": f"127.0.0.1:{host.ports[1]}"}})
            check = host.hactl("config", "check", str(host.config_file))
            assert check.code == 0
            assert "nginx.room is no longer used" in check.err
            assert host.hactl("config", "reload").code == 0
            assert host.log().count("nginx.room is no longer used") == 1
            instances = host.wait_until_green()["instances"]
            host.kill()
            for instance in instances:
                end(instance)
            assert set(ask_often(host, 20)) == {503}
            host.start()
            host.post()
            assert host.log().count("nginx.room is no longer used") == 2
        finally:
            over.set()
            thread.join()
        assert came == []


def test_a_second_daemon_on_the_same_folder_of_nginx_refuses_and_names_the_first(
    logged: Logged, tmp_path: Path
) -> None:
    host = logged.host
    other = tmp_path / "other.toml"
    text = host.config_file.read_text()
    text = text.replace(str(host.folder / "state"), str(tmp_path / "state")).replace(str(host.socket), f"{tmp_path}/c")
    other.write_text(text)
    second = subprocess.run(
        [Path(sys.executable).parent / "chatglm-had", "--config", other], capture_output=True, text=True, timeout=30
    )
    assert second.returncode == 1
    assert f"nginx.dir {host.nginx} is held by chatglm-had" in second.stderr
    assert f"pid {host.pid}" in second.stderr
    assert host.post().status_code == 200

"""sd_notify against a real datagram socket, as systemd holds it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hasupervisor.sdnotify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """NOTIFY_SOCKET's value and the socket that listens there."""
    name = f"{tmp_path}/notify" if request.param == "path" else f"@{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if name.startswith("@") else name)
        listener.settimeout(5)
        yield name, listener


def test_each_state_arrives_as_one_datagram(systemd: tuple[str, socket.socket]) -> None:
    name, listener = systemd
    environment = {"NOTIFY_SOCKET": name, "PATH": "/bin"}
    notifier = Notifier.from_environment(environment)
    assert environment == {"PATH": "/bin"}, "what the daemon starts must not speak for it"
    assert notifier.ready("2 of 2 serving")
    assert listener.recv(4096) == b"READY=1\nSTATUS=2 of 2 serving"
    assert notifier.alive()
    assert listener.recv(4096) == b"WATCHDOG=1"
    assert notifier.alive("1 of 2 serving")
    assert listener.recv(4096) == b"WATCHDOG=1\nSTATUS=1 of 2 serving"
    assert notifier.status("chatglm-02 lädt\nMAINPID=1")
    assert listener.recv(4096) == "STATUS=chatglm-02 lädt MAINPID=1".encode(), "a newline would begin another state"
    assert notifier.stopping()
    assert listener.recv(4096) == b"STOPPING=1"
    notifier.close()


def test_a_reload_is_announced_with_its_time_on_the_monotonic_clock(systemd: tuple[str, socket.socket]) -> None:
    name, listener = systemd
    before = time.monotonic_ns() // 1000
    assert Notifier(name).reloading()
    first, second = listener.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    key, _, value = second.partition("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_without_systemd_nothing_is_sent_and_nothing_fails() -> None:
    notifier = Notifier.from_environment({})
    assert notifier.watchdog is None
    assert notifier.ready()
    assert notifier.alive()
    notifier.close()


def test_a_systemd_that_does_not_listen_is_said_once_and_tried_again(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    notifier = Notifier(name)
    with capture_logs() as lines:
        assert not notifier.ready()
        assert not notifier.alive()
    assert [(line["event"], line["why"]) for line in lines] == [
        ("cannot tell systemd how the daemon stands", "No such file or directory")
    ]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        assert notifier.alive()
        assert listener.recv(4096) == b"WATCHDOG=1"


def test_a_systemd_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        notifier = Notifier(name)
        began = time.monotonic()
        sent = [notifier.alive() for _ in range(10_000)]
        assert time.monotonic() - began < 5
        assert sent[0]
        assert not sent[-1], "the queue of the socket is full"


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("30000000", str(os.getpid()), 30.0),
        ("500000", "", 0.5),
        ("30000000", str(os.getppid()), None),  # meant for another process
        ("0", "", None),
        ("soon", "", None),
        ("", "", None),
    ],
)
def test_the_watchdog_is_taken_from_the_environment(usec: str, pid: str, expected: float | None) -> None:
    environment = {"NOTIFY_SOCKET": "@ha-test", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    assert Notifier.from_environment(environment).watchdog == expected
    assert environment == {}


def test_a_kind_of_address_that_is_not_known_is_said() -> None:
    with capture_logs() as lines:
        assert Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"}).ready()
    assert [line["found"] for line in lines] == ["vsock:2:1234"]

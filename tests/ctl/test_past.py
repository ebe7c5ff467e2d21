"""`history` and `logs`: what was, and what comes while one looks on."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.ctl import documents
from tests.ctl.conftest import Run
from tests.ctl.documents import SCALE_LINE, STATE_LINE
from tests.ctl.stand_in import Held, Raw, StandIn
from tests.ctl.terminal import PROGRAM, Pipe


def test_history_is_a_line_for_each_entry_and_names_people(hactl: Run, daemon: StandIn) -> None:
    result = hactl("history")
    assert (result.stdout, result.stderr, result.returncode) == (STATE_LINE + SCALE_LINE, "", 0)
    assert daemon.state.requests[-1].query == {"n": "50"}


def test_history_as_json_is_one_entry_a_line(hactl: Run, daemon: StandIn) -> None:
    result = hactl("history", "--json", "-n", "1")
    assert [json.loads(line) for line in result.stdout.splitlines()] == documents.HISTORY[-1:]


@pytest.mark.parametrize(
    ("since", "asked"),
    [
        ("2026-11-24T03:02", 1795489320),
        ("2026-11-24T03:02:00+01:00", 1795485720),
        ("1795489320", 1795489320),
    ],
)
def test_history_since_a_moment(hactl: Run, daemon: StandIn, since: str, asked: int) -> None:
    hactl("history", "--since", since)
    assert daemon.state.requests[-1].query == {"n": "10000", "since": str(asked)}


@pytest.mark.parametrize(
    ("since", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("1.5h", 5400)]
)
def test_history_since_a_while_ago(hactl: Run, daemon: StandIn, since: str, seconds: int) -> None:
    before = int(time.time() - seconds)
    hactl("history", "--since", since)
    assert before <= int(daemon.state.requests[-1].query["since"]) <= int(time.time() - seconds)


def test_history_followed_goes_on_through_a_restart_of_the_daemon_and_tells_nothing_twice(
    on_pipe: Callable[..., Pipe], daemon: StandIn
) -> None:
    new = documents.HISTORY[1] | {"id": 813, "at": "2026-11-24T03:02:09.000Z", "sentence": "3 -> 4 wanted"}
    newer = new | {"id": 814, "sentence": "4 -> 3 wanted"}
    with on_pipe("history", "-f") as follow:
        follow.wait_for("2 -> 3 wanted")
        daemon.state.happen(new)
        follow.wait_for("3 -> 4 wanted")
        daemon.stop()
        follow.wait_for_words("waiting for it")
        daemon.start()
        follow.wait_for_words("the daemon answers again")
        daemon.state.happen(newer)
        follow.wait_for("4 -> 3 wanted")
        assert follow.interrupt() == 0
    sentences = [line.split("  ")[-2].strip() for line in follow.stdout.splitlines()[1:]]
    assert sentences == ["2 -> 3 wanted", "3 -> 4 wanted", "4 -> 3 wanted"]


def test_history_followed_is_exit_3_where_there_is_no_daemon_to_begin_with(hactl: Run) -> None:
    assert hactl("history", "-f").returncode == 3


def test_logs_are_bytes_as_they_are(hactl: Run, daemon: StandIn, env: dict[str, str]) -> None:
    daemon.state.logs["chatglm-02"] = b"one\nzw\xc3\xb6lf \xff\x1b[0m\nthree without an end"
    result = subprocess.run([*PROGRAM, "logs", "chatglm-02", "-n", "2"], env=env, capture_output=True)
    assert (result.stdout, result.stderr, result.returncode) == (
        b"zw\xc3\xb6lf \xff\x1b[0m\nthree without an end",
        b"",
        0,
    )
    assert daemon.state.requests[-1].query == {"n": "2"}


def test_logs_of_the_last_failure(hactl: Run, daemon: StandIn) -> None:
    daemon.state.logs["last_failure"] = b"OSError: no file named config.json\n"
    assert hactl("logs", "chatglm-02", "--last-failure").stdout == "OSError: no file named config.json\n"
    assert daemon.state.requests[-1].query == {"n": "100", "last_failure": "1"}


def test_logs_as_json_are_one_object_a_line(hactl: Run, daemon: StandIn) -> None:
    daemon.state.logs["chatglm-02"] = "一\n二\n".encode()
    lines = hactl("logs", "chatglm-02", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"name": "chatglm-02", "line": "一"},
        {"name": "chatglm-02", "line": "二"},
    ]


def test_logs_followed_come_as_they_are_written_and_end_with_ctrl_c(
    on_pipe: Callable[..., Pipe], daemon: StandIn
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    daemon.state.instead["/v1/instances/chatglm-02/logs"] = Held(head + b"6\r\nfirst\n\r\n")
    with on_pipe("logs", "chatglm-02", "-f") as logs:
        logs.wait_for("first\n")
        assert logs.interrupt() == 0
    assert daemon.state.requests[-1].query == {"n": "100", "follow": "1"}


def test_logs_followed_are_exit_3_when_the_daemon_breaks_off(on_pipe: Callable[..., Pipe], daemon: StandIn) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    daemon.state.instead["/v1/instances/chatglm-02/logs"] = Raw(head + b"6\r\nfirst\n\r\n")
    with on_pipe("logs", "chatglm-02", "-f") as logs:
        assert logs.end() == 3
    assert logs.stdout == "first\n"
    assert "it closed the connection in the middle of its answer" in logs.stderr


def test_logs_followed_of_a_failure_is_a_contradiction(hactl: Run, daemon: StandIn) -> None:
    assert hactl("logs", "chatglm-02", "-f", "--last-failure").returncode == 2

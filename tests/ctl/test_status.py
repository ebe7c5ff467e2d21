"""What `status` shows, letter by letter."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.ctl import documents
from tests.ctl.conftest import Run
from tests.ctl.stand_in import StandIn
from tests.ctl.terminal import Pipe, Terminal, shown

QUIET = """\
GREEN chatglm on gpu-07: 2 of 2 serving

NAME        STATE    AGE    ENDPOINT        IN-FLIGHT  QPS   P95  ERRORS  RESTARTS  REASON
chatglm-01  serving  3m12s  127.0.0.1:8000          3  4.2  1.8s      0%         1  answers, 3 in flight, progressing
chatglm-02  serving  3m12s  127.0.0.1:8001          3  4.2  1.8s      0%         1  answers, 3 in flight, progressing

nginx      ok, 2 servers, runs generation 41
autoscale  auto, holding 2: the autoscaler is not built yet
traffic    8.1/s, p50 790ms, p95 1.9s, 0% errors, 5 in flight
"""

TROUBLED = """\
YELLOW chatglm on gpu-07: 1 of 3 serving
PAUSED for 3m12s by alice (uid 1000), 6m48s to go: new driver
    chatglm-hactl resume
STALE dockerd: no answer in 5 s (3rd time); what it knows is 12s old

chatglm-02: backing off: exited 1, try 4 of 5 in 40 s
    chatglm-hactl logs chatglm-02 --last-failure

NAME        STATE    AGE    ENDPOINT        IN-FLIGHT  QPS   P95  ERRORS  RESTARTS  REASON
chatglm-02  backoff  12s    127.0.0.1:8001          0  0.0     -      0%         3  exited 1, try 4 of 5 in 40 s
chatglm-03  loading  3m12s  127.0.0.1:8002          0  4.2  1.8s      0%         1  loads its model since 1m40s
chatglm-01  serving  3m12s  127.0.0.1:8000          3  4.2  1.8s      0%         1  answers, 3 in flight, progressing

GPU  NAME         STATE   MEMORY-GB  UTIL  TEMP  INSTANCES   REASON
0    NVIDIA H200  ok     13.5/140.4   71%   61C  chatglm-01  -

nginx      NOT OK, 1 server, runs generation 41 (on disk: 42): unknown directive "upstrem" in /etc/nginx/conf.d/x.conf:3
autoscale  auto, holding 3: the autoscaler is not built yet
traffic    8.1/s, p50 790ms, p95 1.9s, 0% errors, 5 in flight
"""

NARROW_TABLE = """\
NAME        STATE    AGE    IN-FLIGHT  QPS   P95  RESTARTS  REASON
chatglm-02  backoff  12s            0  0.0     -         3  exited 1, try 4 of…
chatglm-03  loading  3m12s          0  4.2  1.8s         1  loads its model sin…
chatglm-01  serving  3m12s          3  4.2  1.8s         1  answers, 3 in fligh…
"""

ONE = """\
RED chatglm-02 on gpu-07: backoff for 12s
exited 1, try 4 of 5 in 40 s
PAUSED for 3m12s by alice (uid 1000), 6m48s to go: new driver
    chatglm-hactl resume
STALE dockerd: no answer in 5 s (3rd time); what it knows is 12s old

chatglm-02: backing off: exited 1, try 4 of 5 in 40 s
    chatglm-hactl logs chatglm-02 --last-failure

verdict       dead
endpoint      127.0.0.1:8001, gets no requests
address       172.17.0.3:8000
runtime id    -
pid           -
image         chatglm-service:v1.1.0
gpus          -
in flight     0, 0 queued
traffic       0.0/s, p50 -, p95 -, 0% errors
restarts      3
failed        3 of 5 times, the next try in 40s
last failure  exited 1, 12s ago (2026-11-24 03:01:59)
"""


def test_a_quiet_host_is_a_verdict_a_table_and_three_lines(hactl: Run, daemon: StandIn) -> None:
    result = hactl("status")
    assert (result.stdout, result.stderr, result.returncode) == (QUIET, "", 0)


def test_a_host_in_trouble_shows_banners_problems_with_their_command_and_the_worst_rows_first(
    hactl: Run, daemon: StandIn
) -> None:
    daemon.state.status = documents.troubled_status()
    result = hactl("status")
    assert (result.stdout, result.stderr, result.returncode) == (TROUBLED, "", 0)


def test_a_runtime_that_is_away_is_said_once(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status = documents.dockerd_away()
    above = hactl("status").stdout.split("\nNAME")[0]
    assert above == (
        "YELLOW chatglm on gpu-07: 1 of 2 serving\n"
        "STALE dockerd: no answer in 5 s (3rd time); what it knows is 12s old\n\n"
        "chatglm-02: its process has ended; waits for dockerd\n"
        "    chatglm-hactl logs chatglm-02 --last-failure\n"
    )


def test_a_terminal_of_80_columns_leaves_out_columns_and_cuts_the_reason(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    daemon.state.status = documents.troubled_status()
    with on_terminal("status", columns=80) as terminal:
        assert terminal.end() == 0
    lines = shown(terminal.output)
    first = lines.index(NARROW_TABLE.splitlines()[0])
    assert lines[first : first + 4] == NARROW_TABLE.splitlines()
    assert all(len(line) <= 80 for line in NARROW_TABLE.splitlines())


def test_a_broad_terminal_leaves_nothing_out(on_terminal: Callable[..., Terminal], daemon: StandIn) -> None:
    daemon.state.status = documents.troubled_status()
    with on_terminal("status", columns=140) as terminal:
        assert terminal.end() == 0
    assert shown(terminal.output) == TROUBLED.splitlines()


def test_wide_adds_columns_and_is_never_cut(on_terminal: Callable[..., Terminal], daemon: StandIn) -> None:
    daemon.state.status = documents.troubled_status()
    with on_terminal("status", "-o", "wide", columns=80) as terminal:
        assert terminal.end() == 0
    lines = shown(terminal.output)
    first = lines.index(next(line for line in lines if line.startswith("NAME")))
    assert " ".join(lines[first].split()) == (
        "NAME STATE AGE ENDPOINT IN-FLIGHT QPS P95 ERRORS RESTARTS QUEUED PID RUNTIME-ID ADDRESS GPUS IMAGE REASON"
    )
    assert lines[first + 3] == (
        "chatglm-01  serving  3m12s  127.0.0.1:8000          3  4.2  1.8s      0%         1       0"
        "  4711  3f1c9a01dddd  172.17.0.2:8000  GPU-6a1f  chatglm-service:v1.1.0  answers, 3 in flight, progressing"
    )


def test_colours_are_for_terminals_and_say_nothing_that_words_do_not(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    with on_terminal("status") as terminal:
        assert terminal.end() == 0
    assert terminal.output.startswith("\x1b[32mGREEN\x1b[0m chatglm on gpu-07")
    assert "\x1b[32mserving\x1b[0m" in terminal.output


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [(["--no-color"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})],
    ids=["--no-color", "NO_COLOR", "a dumb terminal"],
)
def test_colours_can_be_declined(
    on_terminal: Callable[..., Terminal], daemon: StandIn, arguments: list[str], variables: dict[str, str]
) -> None:
    with on_terminal(*arguments, "status", **variables) as terminal:
        assert terminal.end() == 0
    assert "\x1b" not in terminal.output
    assert terminal.output.startswith("GREEN chatglm")


def test_one_instance_is_shown_with_all_there_is_to_know(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status = documents.troubled_status()
    result = hactl("status", "chatglm-02")
    assert (result.stdout, result.stderr, result.returncode) == (ONE, "", 0)


def test_an_instance_that_is_not_there_is_exit_6_with_the_next_command(hactl: Run, daemon: StandIn) -> None:
    result = hactl("status", "chatglm-9/../?")
    assert (result.returncode, result.stdout) == (6, "")
    assert result.stderr == "chatglm-hactl: there is no instance chatglm-9/../?\nnext: chatglm-hactl status\n"
    assert daemon.state.requests[-1].query == {"name": "chatglm-9/../?"}


def test_a_daemon_that_has_just_started_says_so_in_the_verdict(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status = documents.status(settled=False)
    verdict = hactl("status").stdout.splitlines()[0]
    assert verdict == "GREEN chatglm on gpu-07: 2 of 2 serving (the daemon has just started, and still asks around)"


def test_a_pause_without_end_or_reason_still_names_who_and_since_when(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status = documents.status(paused=documents.PAUSED | {"until": None, "reason": ""})
    assert "\nPAUSED for 3m12s by alice (uid 1000): no reason given\n" in hactl("status").stdout


def test_numbers_that_nobody_knows_are_dashes(hactl: Run, daemon: StandIn) -> None:
    unknown = documents.instance(1, in_flight=None, qps=None, latency_ms=None, error_rate=None)
    daemon.state.status = documents.status(unknown, traffic=None, nginx=None, autoscale=None)
    lines = hactl("status").stdout.splitlines()
    assert "chatglm-01  serving  3m12s  127.0.0.1:8000          -    -    -       -         1" in lines[3]
    assert lines[4:] == ["", "nginx      off"]


def test_what_an_instance_says_of_itself_cannot_move_the_cursor(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status = documents.status(documents.instance(1, reason="bad\x1b[2Jnews\r\nand more"))
    line = hactl("status").stdout.splitlines()[3]
    assert line.endswith(r"  bad\x1b[2Jnews and more")


def test_json_is_the_daemons_document(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status = documents.troubled_status()
    result = hactl("status", "--json")
    assert json.loads(result.stdout) == documents.troubled_status()
    assert (result.stderr, result.returncode) == ("", 0)


def test_watching_without_a_terminal_appends_a_line_for_each_change(
    on_pipe: Callable[..., Pipe], daemon: StandIn
) -> None:
    with on_pipe("status", "-w") as watch:
        watch.wait_for("03:02:11 chatglm-02 serving\n")
        daemon.state.status = documents.status(documents.instance(1), documents.fallen_instance(2))
        watch.wait_for("03:02:11 chatglm-02 backoff\n")
        daemon.state.status = documents.status(documents.instance(1))
        watch.wait_for("03:02:11 chatglm-02: gone\n")
        assert watch.interrupt() == 0
    assert watch.stdout.splitlines() == [
        "03:02:11 GREEN chatglm on gpu-07: 2 of 2 serving",
        "03:02:11 chatglm-01 serving",
        "03:02:11 chatglm-02 serving",
        "03:02:11 YELLOW chatglm on gpu-07: 1 of 2 serving",
        "03:02:11 chatglm-02 backoff",
        "03:02:11 GREEN chatglm on gpu-07: 1 of 1 serving",
        "03:02:11 chatglm-02: gone",
    ]


def test_watching_as_json_is_one_document_a_line(on_pipe: Callable[..., Pipe], daemon: StandIn) -> None:
    with on_pipe("status", "-w", "--json") as watch:
        watch.wait_for("\n.*\n")
        assert watch.interrupt() == 0
    assert [json.loads(line) for line in watch.stdout.splitlines()][:2] == [documents.status()] * 2


def test_watching_on_a_terminal_redraws_and_gives_the_cursor_back_on_ctrl_c(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    with on_terminal("status", "--watch") as terminal:
        terminal.wait_for("2 of 2 serving")
        daemon.state.status = documents.status(documents.instance(1), documents.fallen_instance(2))
        terminal.wait_for("1 of 2 serving")
        terminal.press(b"\x03")
        assert terminal.end() == 0
    assert terminal.output.count("\x1b[2J") == 1
    assert re.search(r"\x1b\[\?25l.*\x1b\[\?25h\r\n$", terminal.output, re.DOTALL)
    assert "Aborted" not in terminal.output


def test_watching_gives_the_cursor_back_when_it_is_ended_by_sigterm(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    with on_terminal("status", "-w") as terminal:
        terminal.wait_for("2 of 2 serving")
        terminal.terminate()
        assert terminal.end() == 128 + 15
    assert terminal.output.endswith("\x1b[?25h\r\n")


def test_watching_a_picture_that_is_higher_than_the_terminal_counts_what_is_left_out(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    daemon.state.status = documents.status(*(documents.instance(number) for number in range(1, 41)))
    with on_terminal("status", "-w", rows=10) as terminal:
        terminal.wait_for("… 39 more lines")
        terminal.press(b"\x03")
        assert terminal.end() == 0


def test_watching_counts_the_rows_of_lines_that_wrap_so_that_nothing_scrolls(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    daemon.state.status = documents.troubled_status()
    with on_terminal("status", "-w", columns=50, rows=12) as terminal:
        terminal.wait_for(r"\x1b\[J")
        terminal.press(b"\x03")
        assert terminal.end() == 0
    drawn = shown(terminal.output.partition("\x1b[H")[2].partition("\x1b[J")[0])
    assert drawn[-1] == f"… {len(TROUBLED.splitlines()) - 7} more lines"
    assert sum(max(1, -(-len(line) // 50)) for line in drawn) == 11


def test_watching_goes_on_through_a_restart_of_the_daemon(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    with on_terminal("status", "-w", columns=200) as terminal:
        terminal.wait_for("2 of 2 serving")
        daemon.stop()
        terminal.wait_for(r"NO ANSWER for \d+s: the daemon does not answer on .*Below is what was last known")
        daemon.state.status = documents.status(documents.instance(1))
        daemon.start()
        terminal.wait_for("1 of 1 serving")
        terminal.press(b"\x03")
        assert terminal.end() == 0

"""Commands that wait: what they show, how they end, and what they leave running."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from hasupervisor.ctl import main, waiting
from tests.ctl.conftest import Run
from tests.ctl.documents import operation, problem
from tests.ctl.stand_in import Raw, StandIn
from tests.ctl.terminal import Pipe, Terminal

LOADS = operation("2 of 4 serving; chatglm-03 loads")
NEARLY = operation("3 of 4 serving; chatglm-04 loads")
DONE = operation("4 of 4 serving", "done")

MANUAL = "the count is set by hand now (mode manual); chatglm-hactl autoscale on  gives it back\n"


def test_scale_waits_until_it_is_done_and_writes_a_line_for_each_change(
    on_pipe: Callable[..., Pipe], daemon: StandIn
) -> None:
    daemon.state.move(LOADS)
    with on_pipe("scale", "4") as scale:
        scale.wait_for_words("chatglm-03 loads\n")
        daemon.state.move(LOADS, NEARLY)
        scale.wait_for_words("chatglm-04 loads\n")
        daemon.state.move(DONE)
        assert scale.end() == 0
    assert scale.stdout == ""
    *lines, last = scale.stderr.removeprefix(MANUAL).splitlines()
    assert lines == ["op-7 scale: 2 of 4 serving; chatglm-03 loads", "op-7 scale: 3 of 4 serving; chatglm-04 loads"]
    assert last.startswith("op-7 scale done after ")
    assert last.endswith("s: 4 of 4 serving")
    assert daemon.state.asked("POST", "/v1/scale")[0].body == {"n": 4, "force": False, "dry_run": False}


def test_time_that_goes_by_is_no_change(on_pipe: Callable[..., Pipe], daemon: StandIn) -> None:
    daemon.state.move(*(operation(f"chatglm-03 loads ({spent} s of at most 10 min)") for spent in (0, 1.5, 12)), DONE)
    with on_pipe("scale", "4") as scale:
        assert scale.end() == 0
    assert scale.stderr.count("chatglm-03 loads") == 1


def test_on_a_terminal_the_progress_is_one_line_that_is_rewritten(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    daemon.state.move(LOADS)
    with on_terminal("scale", "4", columns=40) as terminal:
        terminal.wait_for(r"\r\x1b\[Kop-7 scale: 2 of 4 serving; chatglm-03…")
        daemon.state.move(NEARLY)
        terminal.wait_for(r"\r\x1b\[Kop-7 scale: 3 of 4 serving; chatglm-04…")
        daemon.state.move(DONE)
        assert terminal.end() == 0
    progress = terminal.output.partition("gives it back\r\n")[2]
    assert "\n" not in progress.removesuffix("4 of 4 serving\r\n")
    assert progress.rpartition("\x1b[K")[2].startswith("op-7 scale done after ")


def test_the_time_spent_is_shown_on_a_terminal_even_when_nothing_changes(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    daemon.state.move(LOADS)
    with on_terminal("scale", "4") as terminal:
        terminal.wait_for(r"chatglm-03 loads \(0s\)")
        terminal.wait_for(r"chatglm-03 loads \([1-9]\d*s\)")
        daemon.state.move(DONE)
        assert terminal.end() == 0


def test_ctrl_c_leaves_the_operation_running_and_says_how_to_watch_it(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    daemon.state.move(LOADS)
    with on_terminal("scale", "4") as terminal:
        terminal.wait_for("chatglm-03 loads")
        terminal.press(b"\x03")
        assert terminal.end() == 130
    assert terminal.output.replace("\r\n", "\n").endswith(
        "op-7 scale goes on.\n"
        "to watch it:     chatglm-hactl operations op-7\n"
        "to call it off:  chatglm-hactl operations op-7 --cancel\n"
    )
    assert "Aborted" not in terminal.output
    assert not daemon.state.asked("DELETE", "/v1/operations/op-7")
    assert daemon.state.operations[-1]["state"] == "running"


def test_an_operation_that_fails_is_exit_1_with_its_sentence(hactl: Run, daemon: StandIn) -> None:
    daemon.state.move(LOADS, operation("chatglm-03 is parked: exited 1 five times", "failed"))
    result = hactl("scale", "4")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.search(
        r"^chatglm-hactl: op-7 scale failed after \d+s: chatglm-03 is parked: exited 1 five times\n"
        r"next: chatglm-hactl status\n\Z",
        result.stderr,
        re.MULTILINE,
    )


def test_an_operation_that_somebody_calls_off_is_exit_1(on_pipe: Callable[..., Pipe], daemon: StandIn) -> None:
    daemon.state.move(LOADS)
    with on_pipe("scale", "4") as scale:
        scale.wait_for_words("chatglm-03 loads\n")
        daemon.state.move(operation("called off by bob (uid 1001)", "cancelled"))
        assert scale.end() == 1
    assert "op-7 scale cancelled after " in scale.stderr
    assert "called off by bob (uid 1001)\n" in scale.stderr


def test_a_timeout_is_exit_7_and_says_how_to_watch_what_goes_on(hactl: Run, daemon: StandIn) -> None:
    daemon.state.move(LOADS)
    result = hactl("scale", "4", "--timeout", "1s")
    assert (result.returncode, result.stdout) == (7, "")
    assert result.stderr.endswith(
        "chatglm-hactl: op-7 scale still goes on after 1s: 2 of 4 serving; chatglm-03 loads\n"
        "  to watch it:     chatglm-hactl operations op-7\n"
        "  to call it off:  chatglm-hactl operations op-7 --cancel\n"
    )
    assert not daemon.state.asked("DELETE", "/v1/operations/op-7")


def test_no_wait_prints_the_id_and_comes_back(hactl: Run, daemon: StandIn) -> None:
    daemon.state.move(LOADS)
    result = hactl("scale", "4", "--no-wait")
    assert (result.returncode, result.stdout) == (0, "op-7\n")
    assert result.stderr == f"{MANUAL}to watch it: chatglm-hactl operations op-7\n"


def test_no_wait_as_json_prints_the_operation(hactl: Run, daemon: StandIn) -> None:
    daemon.state.move(LOADS)
    assert json.loads(hactl("--json", "scale", "4", "--no-wait").stdout) == LOADS


def test_waiting_as_json_prints_the_operation_as_it_ended(hactl: Run, daemon: StandIn) -> None:
    daemon.state.move(LOADS, operation("no capacity", "failed"))
    result = hactl("scale", "4", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout) == operation("no capacity", "failed")


def test_a_restart_of_the_daemon_in_between_is_waited_for(on_pipe: Callable[..., Pipe], daemon: StandIn) -> None:
    daemon.state.move(LOADS)
    with on_pipe("scale", "4") as scale:
        scale.wait_for_words("chatglm-03 loads\n")
        daemon.stop()
        scale.wait_for_words("op-7 scale: the daemon does not answer, trying again\n")
        daemon.start()
        scale.wait_for_words("trying again\nop-7 scale: 2 of 4 serving; chatglm-03 loads\n")
        daemon.state.move(DONE)
        assert scale.end() == 0


def test_a_daemon_that_is_still_starting_is_waited_for(on_pipe: Callable[..., Pipe], daemon: StandIn) -> None:
    daemon.state.move(LOADS)
    daemon.state.instead["/v1/operations/op-7"] = 503, problem(503, "the daemon is still starting")
    with on_pipe("scale", "4") as scale:
        scale.wait_for_words("op-7 scale: the daemon is still starting, trying again\n")
        daemon.state.move(DONE)
        del daemon.state.instead["/v1/operations/op-7"]
        assert scale.end() == 0


def test_a_timeout_counts_while_the_daemon_is_away(on_pipe: Callable[..., Pipe], daemon: StandIn) -> None:
    daemon.state.move(LOADS)
    with on_pipe("scale", "4", "--timeout", "2") as scale:
        scale.wait_for_words("chatglm-03 loads\n")
        daemon.stop()
        assert scale.end() == 7


def test_a_daemon_that_stays_away_is_exit_3(
    daemon: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "AWAY_S", 0.0)
    daemon.state.move(LOADS)
    daemon.state.instead["/v1/operations/op-7"] = Raw(b"")
    assert main.main(["--socket", str(daemon.path), "scale", "4"]) == 3
    told = capsys.readouterr().err
    assert "it closed the connection before it answered; op-7 may go on without it\n" in told
    assert "docker ps --filter label=io.chatglm-ha.service" in told


def test_a_watch_that_falls_silent_is_opened_again(
    daemon: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "QUIET_S", 0.5)
    daemon.state.move(LOADS)
    assert main.main(["--socket", str(daemon.path), "scale", "4", "--timeout", "3"]) == 7
    assert len(daemon.state.asked("GET", "/v1/operations/op-7")) > 1


def test_an_operation_that_the_daemon_has_forgotten_is_exit_6(hactl: Run, daemon: StandIn) -> None:
    daemon.state.move(LOADS)
    daemon.state.instead["/v1/operations/op-7"] = 404, problem(404, "there is no operation op-7")
    assert hactl("scale", "4").returncode == 6


def test_a_refused_scale_is_exit_5_with_the_command_that_would_do_it(hactl: Run, daemon: StandIn) -> None:
    refusal = problem(409, "7 is above service.max = 6", hint="chatglm-hactl scale 7 --force")
    daemon.state.instead["/v1/scale"] = 409, refusal
    result = hactl("scale", "7")
    assert (result.returncode, result.stdout) == (5, "")
    assert result.stderr == "chatglm-hactl: 7 is above service.max = 6\nnext: chatglm-hactl scale 7 --force\n"


def test_a_dry_run_prints_the_steps_and_does_nothing(hactl: Run, daemon: StandIn) -> None:
    result = hactl("scale", "4", "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "2 wanted now, 4 then:\n  start chatglm-03\n  start chatglm-04\n"
    assert daemon.state.asked("POST", "/v1/scale")[0].body == {"n": 4, "force": False, "dry_run": True}


def test_a_dry_run_of_what_would_be_refused_is_exit_5(hactl: Run, daemon: StandIn) -> None:
    plan = {"desired": 2, "wanted": 7, "steps": [], "refused": "7 is above service.max = 6"}
    daemon.state.instead["/v1/scale"] = 200, plan
    result = hactl("scale", "7", "--dry-run")
    assert (result.returncode, result.stdout) == (5, "2 wanted now, 7 then:\n  nothing to do\n")
    assert result.stderr == (
        "chatglm-hactl: it would be refused: 7 is above service.max = 6\nnext: chatglm-hactl scale 7 --force\n"
    )


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["scale", "1", "--force"], "/v1/scale", {"n": 1, "force": True, "dry_run": False}),
        (["restart", "chatglm-02"], "/v1/instances/chatglm-02/restart", {"force": False}),
        (["restart", "--all", "--force"], "/v1/restart", {"force": True}),
        (["drain", "chatglm-02", "--force"], "/v1/instances/chatglm-02/drain", {"force": True}),
        (["undrain", "chatglm-02"], "/v1/instances/chatglm-02/undrain", {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize(("ends", "code"), [("done", 0), ("failed", 1)])
def test_every_long_command_asks_waits_and_ends_the_same_way(
    hactl: Run, daemon: StandIn, arguments: list[str], path: str, body: dict[str, object], ends: str, code: int
) -> None:
    kind = arguments[0]
    daemon.state.move(operation("begun", kind=kind), operation("so it ended", ends, kind=kind))
    result = hactl(*arguments, "--timeout", "20")
    assert (result.returncode, result.stdout) == (code, "")
    assert re.search(rf"op-7 {kind} {ends} after \d+s: so it ended\n", result.stderr)
    assert [request.body for request in daemon.state.asked("POST", path)] == [body]


@pytest.mark.parametrize("arguments", [["restart"], ["restart", "chatglm-02", "--all"]], ids=" ".join)
def test_restart_wants_one_instance_or_all(hactl: Run, daemon: StandIn, arguments: list[str]) -> None:
    result = hactl(*arguments)
    assert result.returncode == 2
    assert result.stderr.endswith("Error: name one instance, or say --all\n")
    assert not daemon.state.requests

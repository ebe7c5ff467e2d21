"""`drill`: what it asks of the daemon and of the person, what its table says, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from hasupervisor.drill.sheet import Sheet, Tally, Until
from hasupervisor.report import document
from hasupervisor.report.desk import DrillPlan
from hasupervisor.runtimes.process_records import Identity
from tests.ctl import drills
from tests.ctl.conftest import Run
from tests.ctl.documents import problem
from tests.ctl.drills import drill, load
from tests.ctl.stand_in import StandIn
from tests.ctl.terminal import Pipe, Terminal, shown
from tests.ctl.test_documents import differences

BEGINS = drill("begins", load=load(sent=0, answered=0))
MADE = drill("kill: made", load=load(sent=14, answered=13))
DONE = drill("33 sent, 0 failed, slowest 0.10 s", "done")
TABLE = (
    "DRILL    FAULT  NAME        STATE  SENT  FAILED  SHED  SLOWEST  OUT OF ROTATION  FENCED  SERVING AGAIN\n"
    "drill-3  kill   chatglm-02  done     33       0     0   0.10 s           0.22 s       -  0.94 s\n"
)


def test_the_stand_in_says_of_drills_what_the_daemon_says() -> None:
    identity = Identity(1, 1, "boot")
    sheet = Sheet(
        id="drill-3",
        fault="kill",
        name="chatglm-02",
        by="alice (uid 1000)",
        rate=10.0,
        seconds=60.0,
        patience=100.0,
        process=identity,
        started=1.0,
        fault_at=2.0,
        ended=3.0,
        load=Tally(33, 32, 0, (("cut", 1),), 0.1, 0.0),
        until=Until(0.22, 0.5, 0.941),
        findings=("1 of 33 requests failed",),
        history=(drills.EVENT,),
        held=identity,
    )
    ours = drill("", "failed", findings=["x"], load=load({"cut": 1}))
    assert not list(differences(ours, sheet.document(), ""))
    plan = DrillPlan("kill", "chatglm-02", 10.0, 60.0, "SIGKILL", ("it could",))
    assert not list(differences(drills.HURTS, document.drill_plan(plan), ""))


def test_a_drill_is_followed_to_its_end_and_its_table_is_the_data(
    on_pipe: Callable[..., Pipe], daemon: StandIn
) -> None:
    daemon.state.drill(BEGINS)
    with on_pipe("drill", "kill", "chatglm-02", "--rate", "20", "--seconds", "2m", "--yes") as tool:
        tool.wait_for_words("drill-3 kill chatglm-02: begins\n")
        daemon.state.drill(MADE)
        tool.wait_for_words("drill-3 kill chatglm-02: kill: made\n")
        daemon.state.drill(DONE)
        assert tool.end() == 0
    assert tool.stdout == TABLE
    assert tool.stderr.endswith("drill-3 kill chatglm-02: as promised\n")
    (begun,) = daemon.state.asked("POST", "/v1/drill")
    assert begun.body == {"fault": "kill", "name": "chatglm-02", "rate": 20.0, "seconds": 120.0, "force": False}


def test_what_was_not_said_is_left_to_the_daemon(hactl: Run, daemon: StandIn) -> None:
    daemon.state.drill(DONE)
    assert hactl("drill", "spike", "--yes", "--force").returncode == 0
    assert daemon.state.asked("POST", "/v1/drill")[0].body == {"fault": "spike", "force": True}


def test_on_a_terminal_it_says_what_it_will_do_and_asks(on_terminal: Callable[..., Terminal], daemon: StandIn) -> None:
    daemon.state.drill(DONE)
    with on_terminal("drill", "kill", columns=120) as terminal:
        terminal.wait_for(r"Begin\? \[y/N\]: ")
        assert not daemon.state.drills[1:]
        assert "SIGKILL to chatglm-02 (pid 4712)" in terminal.output
        assert "with 10 prompts a second for 60 s at most" in terminal.output
        terminal.press(b"y\n")
        assert terminal.end() == 0
    assert TABLE.splitlines()[1] in shown(terminal.output)
    asked = [request.body.get("dry_run", False) for request in daemon.state.asked("POST", "/v1/drill")]
    assert asked == [True, False]


@pytest.mark.parametrize(("keys", "code"), [(b"n\n", 5), (b"\n", 5), (b"\x03", 130)])
def test_whoever_does_not_say_yes_gets_no_drill(
    on_terminal: Callable[..., Terminal], daemon: StandIn, keys: bytes, code: int
) -> None:
    with on_terminal("drill", "kill") as terminal:
        terminal.wait_for(r"Begin\? \[y/N\]: ")
        terminal.press(keys)
        assert terminal.end() == code
    assert [request.body["dry_run"] for request in daemon.state.asked("POST", "/v1/drill")] == [True]


def test_where_nobody_can_be_asked_yes_has_to_be_said(hactl: Run, daemon: StandIn) -> None:
    result = hactl("drill", "kill")
    assert (result.returncode, result.stdout) == (2, "")
    assert "nobody can be asked here: say --yes" in result.stderr
    assert [request.body["dry_run"] for request in daemon.state.asked("POST", "/v1/drill")] == [True]


def test_a_drill_that_could_hurt_is_exit_5_before_anybody_is_asked(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    daemon.state.plan = drills.HURTS
    with on_terminal("drill", "kill", columns=120) as terminal:
        assert terminal.end() == 5
    assert shown(terminal.output) == [
        "chatglm-hactl: it could hurt:",
        "  1 of 2 serve; at least 2 have to",
        "  chatglm-01 is backoff: exited 1",
        "next: chatglm-hactl drill kill chatglm-02 --force",
    ]


def test_force_says_what_could_hurt_and_asks_all_the_same(
    on_terminal: Callable[..., Terminal], daemon: StandIn
) -> None:
    daemon.state.plan = drills.HURTS
    daemon.state.drill(DONE)
    with on_terminal("drill", "kill", "--force", columns=120) as terminal:
        terminal.wait_for(r"Begin\? \[y/N\]: ")
        assert "  1 of 2 serve; at least 2 have to" in shown(terminal.output)
        terminal.press(b"y\n")
        assert terminal.end() == 0
    assert daemon.state.asked("POST", "/v1/drill")[-1].body["force"] is True


def test_what_the_daemon_refuses_is_exit_5_with_its_reasons(hactl: Run, daemon: StandIn) -> None:
    daemon.state.instead["/v1/drill"] = (
        409,
        problem(409, "it could hurt, for 2 reasons", hint="chatglm-hactl drill kill --force", problems=("one", "two")),
    )
    result = hactl("drill", "kill", "--yes")
    assert (result.returncode, result.stdout) == (5, "")
    assert result.stderr == (
        "chatglm-hactl: it could hurt, for 2 reasons\n  one\n  two\nnext: chatglm-hactl drill kill --force\n"
    )


def test_a_dry_run_only_says_what_would_be_done(hactl: Run, daemon: StandIn) -> None:
    result = hactl("drill", "kill", "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("with 10 prompts a second for 60 s at most\n")
    daemon.state.plan = drills.HURTS
    refused = hactl("drill", "kill", "--dry-run", "--json")
    assert (refused.returncode, json.loads(refused.stdout)) == (5, drills.HURTS)
    assert "  1 of 2 serve; at least 2 have to\n" in refused.stderr


def test_a_promise_that_was_not_kept_is_exit_1_with_what_happened(hactl: Run, daemon: StandIn) -> None:
    findings = ["2 of 33 requests failed", "chatglm-02 does not serve again"]
    daemon.state.drill(drill("", "failed", findings=findings, load=load({"answered 502": 1, "cut": 1})))
    result = hactl("drill", "kill", "--yes")
    assert result.returncode == 1
    assert re.search(r"^drill-3 .* failed +33 +2 ", result.stdout, re.MULTILINE)
    assert result.stderr.endswith(
        "chatglm-hactl: drill-3 kill chatglm-02 failed: 2 of 33 requests failed; chatglm-02 does not serve again\n"
        "  1 x answered 502\n"
        "  1 x cut\n"
        "next: chatglm-hactl history --since 2026-11-24T03:02:04.000Z\n"
    )


def test_failures_that_are_to_be_expected_are_told_all_the_same(hactl: Run, daemon: StandIn) -> None:
    refused = load({"cannot connect to the gateway": 1})
    daemon.state.drill(drill("", "done", fault="gateway", name=None, load=refused))
    result = hactl("drill", "gateway", "--yes")
    assert result.returncode == 0
    assert result.stderr.endswith("drill-3 gateway: as promised\n  1 x cannot connect to the gateway\n")
    assert result.stdout.splitlines()[1].split()[2] == "-"


def test_as_json_it_is_the_document_as_it_ended(hactl: Run, daemon: StandIn) -> None:
    daemon.state.drill(DONE)
    result = hactl("drill", "kill", "--yes", "--json")
    assert (result.returncode, json.loads(result.stdout)) == (0, DONE)


def test_it_goes_on_through_a_restart_of_the_daemon(on_pipe: Callable[..., Pipe], daemon: StandIn) -> None:
    daemon.state.drill(drill("begins", fault="daemon", name=None))
    with on_pipe("drill", "daemon", "--yes") as tool:
        tool.wait_for_words("drill-3 daemon: begins\n")
        daemon.stop()
        tool.wait_for_words("drill-3 daemon: the daemon does not answer, trying again\n")
        daemon.state.drill(drill("", "done", fault="daemon", name=None))
        daemon.start()
        assert tool.end() == 0
    assert "drill-3 daemon: as promised\n" in tool.stderr


def test_ctrl_c_calls_the_drill_off(on_pipe: Callable[..., Pipe], daemon: StandIn) -> None:
    daemon.state.drill(MADE)
    with on_pipe("drill", "hang", "--yes") as tool:
        tool.wait_for_words("kill: made\n")
        assert tool.interrupt() == 130
    assert tool.stderr.endswith("drill-3 is called off: it was called off\n")
    assert len(daemon.state.asked("DELETE", "/v1/drill/drill-3")) == 1


def test_no_wait_prints_the_id_and_how_to_go_on(hactl: Run, daemon: StandIn) -> None:
    daemon.state.drill(MADE)
    result = hactl("drill", "kill", "--yes", "--no-wait")
    assert (result.returncode, result.stdout) == (0, "drill-3\n")
    assert result.stderr == (
        "to watch it:     chatglm-hactl drill drill-3\nto call it off:  chatglm-hactl drill drill-3 --cancel\n"
    )


def test_a_drill_can_be_looked_at_again_and_called_off(hactl: Run, daemon: StandIn) -> None:
    daemon.state.drill(MADE)
    running = hactl("drill", "drill-3", "--no-wait")
    assert (running.returncode, running.stderr) == (0, "")
    assert re.search(r"^drill-3 .* running +14 ", running.stdout, re.MULTILINE)
    called_off = hactl("drill", "drill-3", "--cancel", "--json")
    assert (called_off.returncode, json.loads(called_off.stdout)["state"]) == (0, "cancelled")
    assert hactl("drill", "drill-3").returncode == 1  # as it ended
    daemon.state.drill(DONE)
    ended = hactl("drill", "drill-3")
    assert (ended.returncode, ended.stdout) == (0, TABLE)


def test_without_a_fault_the_last_drills_are_listed(hactl: Run, daemon: StandIn) -> None:
    none = hactl("drill")
    assert (none.returncode, none.stdout) == (0, "")
    assert none.stderr.startswith("there has been no drill yet")
    daemon.state.drill(DONE)
    listed = hactl("drill").stdout.splitlines()
    assert listed[0].split()[-2:] == ["STARTED", "BY"]
    assert listed[1].endswith("2026-11-24 03:02:04  alice (uid 1000)")
    assert json.loads(hactl("drill", "--json").stdout) == {"drills": [DONE]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explode"], "'explode' is neither a fault (kill, hang, sick, slow, spike, daemon, gateway) nor a drill"),
        (["daemon", "chatglm-02", "--yes"], "daemon is no instance's fault, so it takes no name"),
        (["kill", "--cancel"], "--cancel goes with the id of a drill"),
        (["--cancel"], "--cancel goes with the id of a drill"),
        (["kill", "--rate", "0"], "0.0 is not in the range x>0."),
        (["kill", "--seconds", "soon"], "'soon' is not a duration"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_exit_2_and_asks_the_daemon_nothing(
    hactl: Run, daemon: StandIn, arguments: list[str], words: str
) -> None:
    result = hactl("drill", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in " ".join(result.stderr.split())
    assert not daemon.state.requests


def test_a_drill_that_is_not_there_is_exit_6(hactl: Run, daemon: StandIn) -> None:
    assert hactl("drill", "drill-9").returncode == 6

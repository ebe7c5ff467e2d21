"""`check`, as Nagios reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ctl import documents
from tests.ctl.conftest import Run
from tests.ctl.stand_in import StandIn

NUMBERS = "in_flight=5 qps=8.1 p95=1900ms error_rate=0"


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        (documents.status(), 0, f"OK - 2 of 2 serving | serving=2 desired=2 {NUMBERS}"),
        (
            documents.status(documents.instance(1), documents.fallen_instance(2)),
            1,
            f"WARNING - 1 of 2 serving | serving=1 desired=2 {NUMBERS}",
        ),
        (
            documents.status(documents.fallen_instance(1)),
            2,
            f"CRITICAL - 0 of 1 serving | serving=0 desired=1 {NUMBERS}",
        ),
        (
            documents.status(
                health="yellow",
                problems=[
                    {"subject": "nginx", "sentence": "a | b", "hint": "chatglm-hactl nginx test"},
                    {"subject": "host", "sentence": "the disk is full", "hint": None},
                ],
            ),
            1,
            "WARNING - 2 of 2 serving; nginx: a / b (chatglm-hactl nginx test) and 1 more "
            f"| serving=2 desired=2 {NUMBERS}",
        ),
        (
            documents.status(stale={"what": "dockerd", "sentence": "no answer in 5 s (3rd time)", "age_s": 12.1}),
            1,
            "WARNING - 2 of 2 serving; dockerd: no answer in 5 s (3rd time); what it knows is 12s old "
            f"| serving=2 desired=2 {NUMBERS}",
        ),
        (
            documents.dockerd_away(),
            1,
            "WARNING - 1 of 2 serving; dockerd: no answer in 5 s (3rd time); what it knows is 12s old; "
            "chatglm-02: its process has ended; waits for dockerd (chatglm-hactl logs chatglm-02 --last-failure) "
            f"| serving=1 desired=2 {NUMBERS}",
        ),
        (
            documents.status(paused=documents.PAUSED),
            0,
            "OK - 2 of 2 serving; PAUSED for 3m12s by alice (uid 1000), 6m48s to go: new driver "
            f"| serving=2 desired=2 {NUMBERS}",
        ),
        (
            documents.status(settled=False),
            3,
            f"UNKNOWN - the daemon has just started and has not asked everybody yet | serving=2 desired=2 {NUMBERS}",
        ),
        (
            documents.status(instances=[], desired=0, serving=0, summary="none wanted", traffic=None),
            0,
            "OK - none wanted | serving=0 desired=0",
        ),
        (
            documents.status(traffic={"qps": None, "latency_ms": {"p95": None}, "error_rate": None, "in_flight": None}),
            0,
            "OK - 2 of 2 serving | serving=2 desired=2 in_flight=U qps=U p95=U error_rate=U",
        ),
    ],
    ids=[
        "all serve",
        "one has fallen",
        "nothing serves",
        "all serve, but nginx has a problem",
        "all serve, as far as is known",
        "the runtime is away, and one waits for it",
        "all serve in a pause",
        "the daemon has just started",
        "none wanted",
        "no numbers yet",
    ],
)
def test_check_is_one_line_and_its_code(
    hactl: Run, daemon: StandIn, status: dict[str, Any], code: int, line: str
) -> None:
    daemon.state.status = status
    result = hactl("check")
    assert (result.stdout, result.stderr, result.returncode) == (f"{line}\n", "", code)


def test_check_is_unknown_when_the_daemon_does_not_answer(hactl: Run, folder: Path) -> None:
    result = hactl("check")
    line = f"UNKNOWN - the daemon does not answer on {folder}/control.sock: there is no such socket\n"
    assert (result.stdout, result.stderr, result.returncode) == (line, "", 3)


def test_check_is_unknown_when_the_answer_is_not_understood(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status = {"schema": 2}
    result = hactl("check")
    assert result.returncode == 3
    assert result.stdout.startswith("UNKNOWN - the daemon's answer is not understood: ")


def test_check_as_json_has_the_code_in_it(hactl: Run, daemon: StandIn) -> None:
    result = hactl("check", "--json")
    found = json.loads(result.stdout)
    assert (found["code"], found["word"], found["sentence"]) == (0, "OK", "2 of 2 serving")
    assert found["numbers"]["p95"] == "1900ms"

"""`chatglm-hactl autoscale`: what the daemon says of the load, and what other settings would have made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ctl import documents
from tests.ctl.conftest import Run
from tests.ctl.stand_in import StandIn, Text

REPLAY_LINES = [json.dumps(line).encode() + b"\n" for line in documents.REPLAY]


def test_autoscale_status_is_the_daemons_sentence_and_its_numbers(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status["autoscale"]["inputs"] = {"connections": 12.5}
    result = hactl("autoscale", "status")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "mode auto, policy thresholds, wanted 2: holding 2: the autoscaler is not built yet\n"
        "  connections              12.5\n"
    )


def test_autoscale_status_shows_both_policies_side_by_side(hactl: Run, daemon: StandIn) -> None:
    daemon.state.instead["/v1/autoscale"] = 200, documents.AUTOSCALE
    lines = hactl("autoscale", "status").stdout.splitlines()
    assert lines[2:] == [
        "thresholds (counts)    wants 2: holding 2: the means are between the limits",
        "  connections_6            12.5",
        "  gpu_utilization_6        -",
        "",
        "concurrency            wants 2: holding 2: 3 would be wanted",
        "  held back by           chatglm-03 is still on its way up",
        "  needed                   3.0",
        "",
        "bounds     2 to 6",
        "windows    sample 10s, evaluate 30s, up 1m0s, down 2m0s; 7 samples are remembered",
        "slots      8 an instance, assumed",
        "latest     4s ago",
        "  serving                  2",
        "  in_flight                25.0",
        "  gpu_utilization          -",
    ]


def test_a_replay_is_drawn_and_summed_up(hactl: Run, daemon: StandIn, folder: Path) -> None:
    trace = folder / "trace"
    trace.write_text("# a sale\n0, 2\n60 6 0.5\n")
    daemon.state.instead["/v1/autoscale/replay"] = Text(REPLAY_LINES)
    result = hactl("autoscale", "replay", "--trace", str(trace), "--policy", "concurrency", "--set", "slots=4")
    assert (result.returncode, result.stderr) == (0, "")
    (asked,) = daemon.state.asked("POST", "/v1/autoscale/replay")
    assert asked.body == {"set": {"slots": 4.0}, "policy": "concurrency", "trace": [[0, 2, 1], [60, 6, 0.5]]}
    assert (
        result.stdout
        == """\
    3 │ ░█
    2 │███
    1 │███
    0 └─── 30s
req/s  ▃██  max 6/s
 wait   █▄  max 2.5 s

 AT  REQ/S  IN-FLIGHT  SERVING  WANTED  WAIT-P95  STEP
10s    2.0        1.5        2       2      0.0s
20s    6.0        9.0        2       3      2.5s  2 -> 3: 9.0 in flight
30s    6.0        3.0        3       3      1.0s

requests         140 in 30s
steps            1, 0 of them back
first step       after 15s
most             3 instances
wait             p95 1.5s, worst no end
replica-minutes  1.2
"""
    )


def test_a_replay_in_json_is_a_document_a_line(hactl: Run, daemon: StandIn) -> None:
    daemon.state.instead["/v1/autoscale/replay"] = Text(REPLAY_LINES)
    result = hactl("autoscale", "replay", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == documents.REPLAY


def test_a_replay_that_is_cut_off_is_no_success(hactl: Run, daemon: StandIn) -> None:
    daemon.state.instead["/v1/autoscale/replay"] = Text(REPLAY_LINES[:1])
    result = hactl("autoscale", "replay")
    assert (result.returncode, result.stdout) == (3, "")
    assert "broke the replay off" in result.stderr


def test_a_trace_that_is_none_is_told_by_its_line(hactl: Run, daemon: StandIn, folder: Path) -> None:
    trace = folder / "trace"
    for text, sentence in (
        ("0 1\nten 2\n", f"{trace}:2: should be SECOND REQUESTS_PER_SECOND [SECONDS_OF_WORK], not 'ten 2'"),
        ("# nothing\n", f"{trace}: has no line of traffic"),
        ("0 nan\n", f"{trace}:1: should be"),
    ):
        trace.write_text(text)
        result = hactl("autoscale", "replay", "--trace", str(trace))
        assert result.returncode == 2
        assert sentence in result.stderr
    assert daemon.state.requests == []


def test_a_setting_is_a_key_and_a_number(hactl: Run, daemon: StandIn) -> None:
    for text in ("slots", "slots=many", "=3x"):
        result = hactl("autoscale", "replay", "--set", text)
        assert (result.returncode, "is not KEY=NUMBER" in result.stderr) == (2, True)


def test_autoscale_status_shows_a_pause(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status = documents.status(paused=documents.PAUSED)
    lines = hactl("autoscale", "status").stdout.splitlines()
    assert lines[1:] == ["PAUSED for 3m12s by alice (uid 1000), 6m48s to go: new driver", "    chatglm-hactl resume"]


@pytest.mark.parametrize(("word", "enabled", "mode"), [("on", True, "auto"), ("off", False, "manual")])
def test_autoscale_is_switched(hactl: Run, daemon: StandIn, word: str, enabled: bool, mode: str) -> None:
    result = hactl("autoscale", word)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.startswith(f"mode {mode}, ")
    assert daemon.state.asked("POST", "/v1/autoscale")[0].body == {"enabled": enabled}

"""`gpu`: what the list shows, and what is said when a card is taken out or given back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.ctl import documents
from tests.ctl.conftest import Run
from tests.ctl.stand_in import StandIn
from tests.ctl.terminal import PROGRAM, Terminal, shown

LOST = documents.gpu(
    1,
    "lost",
    "it has fallen off the bus (Xid 79); needs a reboot",
    memory_used_bytes=None,
    utilization=None,
    temperature_c=None,
    instances=[],
)
DEAF = "the kernel log cannot be read (/dev/kmsg: Operation not permitted): GPU faults are heard from NVML alone"

LIST = """\
GPU  UUID                                      NAME         STATE   MEMORY-GB  FREE-GB  UTIL  TEMP  INSTANCES   REASON
0    GPU-0a1f0000-0000-4000-8000-000000000000  NVIDIA H200  ok     13.5/140.4    126.4   71%   61C  chatglm-01  -
1    GPU-1a1f0000-0000-4000-8000-000000000000  NVIDIA H200  lost      -/140.4        -     -     -  -           \
it has fallen off the bus (Xid 79); needs a reboot
"""


def test_the_list_has_every_card_with_what_newcomers_may_have_and_what_is_wrong(hactl: Run, daemon: StandIn) -> None:
    daemon.state.gpus = documents.gpus(documents.gpu(0), LOST)
    result = hactl("gpu", "list")
    assert (result.stdout, result.returncode) == (LIST, 0)
    assert result.stderr == "driver 550.163.01, 1 GPU\nroom for 9 more instances\n"


def test_wide_tells_others_memory_from_leaked_memory(hactl: Run, daemon: StandIn) -> None:
    daemon.state.gpus = documents.gpus(
        documents.gpu(0, memory_foreign_bytes=20 * 2**30, memory_leaked_bytes=3 * 2**29, excluded=True)
    )
    head, row = (line.split() for line in hactl("gpu", "list", "-o", "wide").stdout.splitlines())
    assert head[head.index("OTHERS-GB") :][:2] == ["OTHERS-GB", "LEAKED-GB"]
    assert row[6:9] == ["126.4", "20.0", "1.5"]  # NAME is two words


def test_a_narrow_terminal_keeps_what_is_wrong(on_terminal: Callable[..., Terminal], daemon: StandIn) -> None:
    daemon.state.gpus = documents.gpus(LOST)
    with on_terminal("gpu", "list", columns=80) as terminal:
        assert terminal.end() == 0
    lines = shown(terminal.output)
    assert lines[0].split() == ["GPU", "STATE", "MEMORY-GB", "FREE-GB", "INSTANCES", "REASON"]
    assert "it has fallen off the bus" in lines[1]
    assert "\x1b[31mlost" in terminal.output


@pytest.mark.parametrize(("state", "colour"), [("ok", "32"), ("suspect", "33"), ("quarantined", "31"), ("lost", "31")])
def test_status_shows_a_card_that_is_given_up_in_red_and_one_that_is_suspect_in_yellow(
    on_terminal: Callable[..., Terminal], daemon: StandIn, state: str, colour: str
) -> None:
    daemon.state.status = documents.status(gpus=[documents.gpu(0, state, "so it seems")])
    with on_terminal("status", columns=140) as terminal:
        assert terminal.end() == 0
    assert f"\x1b[{colour}m{state}" in terminal.output


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"driver": None, "room": None}, ['the daemon does not look at GPUs: gpu.mode = "off"']),
        (
            {
                "driver": documents.GPU_DRIVER
                | {"state": "absent", "sentence": "no NVIDIA driver is installed", "kernel_log": None},
                "room": {"instances": None, "reason": None},
            },
            ["no NVIDIA driver is installed"],
        ),
    ],
    ids=["off", "no driver"],
)
def test_a_host_without_cards_says_why_and_that_is_no_failure(
    hactl: Run, daemon: StandIn, found: documents.Document, words: list[str]
) -> None:
    daemon.state.gpus = documents.gpus(**found)
    result = hactl("gpu", "list")
    assert (result.returncode, result.stdout, result.stderr.splitlines()) == (0, "", words)


def test_a_kernel_log_that_cannot_be_read_is_said_below_the_list(hactl: Run, daemon: StandIn) -> None:
    driver = documents.GPU_DRIVER | {"kernel_log": {"readable": False, "sentence": DEAF}}
    why = "no GPU has 13.0 GB for it: GPU 0: 2.0 GB for newcomers"
    daemon.state.gpus = documents.gpus(documents.gpu(0), driver=driver, room={"instances": 0, "reason": why})
    assert hactl("gpu", "list").stderr.splitlines() == ["driver 550.163.01, 1 GPU", DEAF, why]
    assert DEAF not in hactl("status").stderr


def test_the_list_as_json_is_the_daemons_own_document(hactl: Run, daemon: StandIn) -> None:
    result = hactl("gpu", "list", "--json")
    assert json.loads(result.stdout) == daemon.state.gpus
    assert result.stderr == ""


def test_a_quarantine_says_that_nothing_is_moved_how_to_move_it_and_how_to_end_it(hactl: Run, daemon: StandIn) -> None:
    result = hactl("gpu", "quarantine", "0", "--reason", "loud fan")
    uuid = documents.gpu(0)["uuid"]
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        f"GPU 0 ({uuid}) is quarantined: no instance is placed on it",
        "chatglm-01 is on it and goes on",
        "to move it to another card: chatglm-hactl restart chatglm-01",
        f"to give it back: chatglm-hactl gpu clear {uuid}",
    ]
    (asked,) = daemon.state.asked("POST", "/v1/gpus/0/quarantine")
    assert asked.body == {"reason": "loud fan"}


def test_a_quarantine_of_the_last_card_with_room_does_not_advise_to_move(hactl: Run, daemon: StandIn) -> None:
    why = "no healthy GPU is left: GPU 0: loud fan"
    daemon.state.gpus = documents.gpus(
        documents.gpu(0, instances=["chatglm-01", "chatglm-02"]), room={"instances": 0, "reason": why}
    )
    result = hactl("gpu", "quarantine", "0")
    assert result.stderr.splitlines()[1:3] == [
        "chatglm-01, chatglm-02 are on it and go on",
        f"none could start elsewhere now: {why}",
    ]


def test_a_quarantine_of_a_card_that_was_given_up_already_claims_nothing_of_what_runs_there(
    hactl: Run, daemon: StandIn
) -> None:
    held = {"reason": "its firmware has stopped", "needs": "reset", "by": "chatglm-ha", "since": documents.NOW}
    reason = "its firmware has stopped (Xid 119); needs a reset, or a reboot"
    card = documents.gpu(0, "quarantined", reason, quarantine=held)
    daemon.state.instead["/v1/gpus/0/quarantine"] = (200, card)
    assert hactl("gpu", "quarantine", "0").stderr.splitlines() == [
        f"GPU 0 ({card['uuid']}) was given up already: {reason}",
        "your quarantine holds on when that has ended",
        f"to give it back: chatglm-hactl gpu clear {card['uuid']}",
    ]


def test_the_status_of_one_instance_names_its_card_as_people_do(hactl: Run, daemon: StandIn) -> None:
    card = documents.gpu(3, "suspect", "it is silent")
    daemon.state.status = documents.status(documents.instance(1, gpus=[card["uuid"], "GPU-gone"]), gpus=[card])
    assert f"\ngpus          3, suspect ({card['uuid']}), GPU-gone\n" in hactl("status", "chatglm-01").stdout


@pytest.mark.parametrize(
    ("card", "code", "words"),
    [
        (documents.gpu(0), 0, "is cleared: instances may be placed on it"),
        (documents.gpu(0, excluded=True), 0, "is cleared; gpu.exclude leaves it to others"),
        (documents.gpu(0, "suspect", "it is silent"), 0, "is cleared, and takes no newcomers yet: it is silent"),
        (documents.gpu(0, "lost", "it has fallen off the bus; needs a reboot"), 1, "is lost all the same: it has fal"),
        (documents.gpu(0, "quarantined", "needs a reset"), 1, "is quarantined all the same: needs a reset"),
    ],
)
def test_what_is_still_wrong_with_a_cleared_card_is_said(
    hactl: Run, daemon: StandIn, card: documents.Document, code: int, words: str
) -> None:
    daemon.state.gpus = documents.gpus(card)
    result = hactl("gpu", "clear", card["uuid"])
    assert (result.returncode, result.stdout) == (code, "")
    assert f"GPU 0 ({card['uuid']}) {words}" in result.stderr
    assert json.loads(hactl("gpu", "clear", "0", "--json").stdout) == card


@pytest.mark.parametrize("verb", ["quarantine", "clear"])
def test_a_card_that_is_not_there_is_exit_6_with_those_there_are(hactl: Run, daemon: StandIn, verb: str) -> None:
    result = hactl("gpu", verb, "7")
    assert (result.returncode, result.stdout) == (6, "")
    assert result.stderr.splitlines() == [
        "chatglm-hactl: there is no GPU 7; there is 0",
        "next: chatglm-hactl gpu list",
    ]


def test_a_tab_offers_the_cards_that_the_daemon_has(daemon: StandIn, env: dict[str, str]) -> None:
    daemon.state.gpus = documents.gpus(documents.gpu(0), LOST)
    asked = {
        "COMP_WORDS": "chatglm-hactl gpu clear GPU-",
        "COMP_CWORD": "3",
        "_CHATGLM_HACTL_COMPLETE": "bash_complete",
    }
    result = subprocess.run(PROGRAM, env=env | asked, capture_output=True, text=True, timeout=20)
    assert result.stdout.split() == [f"plain,{card['uuid']}" for card in daemon.state.gpus["gpus"]]

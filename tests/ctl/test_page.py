"""docs/hactl.md is written from the commands and stays so."""

from __future__ import annotations

from pathlib import Path

from hasupervisor.ctl.errors import Exit
from tests.ctl import documents
from tests.ctl.conftest import Run
from tests.ctl.stand_in import StandIn
from tools.hactldoc import CODES, INTRODUCTION, page

SET_BY_HAND = "set by hand (mode manual); `chatglm-hactl autoscale on` gives it back"
ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_commands_say() -> None:
    assert (ROOT / "docs/hactl.md").read_text(encoding="utf-8") == page(), "run: make docs"


def test_the_page_has_every_exit_code() -> None:
    assert [int(line.split("|")[1]) for line in CODES.splitlines() if line[:3].strip("| ").isdigit()] == list(Exit)


def test_the_picture_on_the_page_is_what_one_sees(hactl: Run, daemon: StandIn) -> None:
    problem = {
        "subject": "chatglm-02",
        "sentence": "backing off: exited 1, try 4 of 5 in 40 s",
        "hint": "chatglm-hactl logs chatglm-02 --last-failure",
    }
    instances = [documents.instance(1, reason="answers, 3 in flight"), documents.fallen_instance(2)]
    held = "holding 2: set by hand (mode manual); `chatglm-hactl autoscale on` gives it back"
    daemon.state.status = documents.status(*instances, mode="manual", problems=[problem], autoscale={"sentence": held})
    shown = "".join(f"    {line}".rstrip() + "\n" for line in hactl("status").stdout.splitlines())
    assert f"    $ chatglm-hactl status\n{shown}" in INTRODUCTION

"""The page about GPUs says what the daemon does: its table is that of the faults, its metrics are there."""

from __future__ import annotations

import re

from hasupervisor.decide.gpu import faults
from hasupervisor.decide.gpu.faults import Action
from hasupervisor.report.metrics import Metrics
from tests.checkout import ROOT
from tests.report.cards import WITH_GPUS
from tests.report.clerk import Clerk
from tools import gpudoc

PAGE = (ROOT / "docs/gpus.md").read_text(encoding="utf-8")


def test_the_table_of_faults_is_the_one_that_the_daemon_acts_by() -> None:
    assert gpudoc.page(PAGE) == PAGE, "write it anew: make docs"
    for row in faults.TABLE:
        lines = [
            line for line in gpudoc.table().splitlines() if line.startswith((f"| {row.name} |", f"| [{row.name}]("))
        ]
        assert len(lines) == (row.action is not Action.NOTHING), row.name


def test_every_fault_says_what_shows_it() -> None:
    assert all(gpudoc.shown_by(row) for row in faults.TABLE if row.action is not Action.NOTHING)
    assert set(gpudoc.SHOWN_BY) <= {row.name for row in faults.TABLE}


def test_the_metrics_that_the_page_names_are_all_there_are_of_gpus() -> None:
    exposed = Metrics(Clerk(snapshot=WITH_GPUS), "0.1.0").exposition("")[0].decode()
    there = set(re.findall(r"^# TYPE (chatglm_ha_gpu_\w+)", exposed, re.M))
    assert set(re.findall(r"`(chatglm_ha_gpu_\w+)`", PAGE)) - {"chatglm_ha_gpu_state"} == there - {
        "chatglm_ha_gpu_state"
    }
    assert "chatglm_ha_gpu_state" in there

"""A person takes a card out and gives it back, by the real tool; what status, explain and metrics say meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doubles.nvml.cards import EVERY, LOST
from tests.real.daemon import Settings, as_processes, one
from tests.real.gpu_host import GpuHost, gpu_host
from tests.report import schema
from tests.report.schema import conforms
from tests.report.serving import me

ONE: Settings = {"service": {"instances": 1, "min": 1, "max": 2}, "health": {"start_timeout": 30.0}}


@pytest.fixture
def host(
    standin_server: Path, port_range: Callable[[int], range], tmp_path: Path, nvml_library: Path
) -> Iterator[GpuHost]:
    with gpu_host(port_range(20), tmp_path, nvml_library, as_processes(standin_server), ONE, cards=2) as host:
        host.start()
        host.daemon.wait_until_green(1)
        yield host


def test_a_quarantine_by_hand_moves_nothing_until_the_instance_is_restarted_and_outlives_the_daemon(
    host: GpuHost,
) -> None:
    hactl, name = host.daemon.hactl, "chatglm-01"
    before = host.daemon.instance(name)
    (uuid,) = before["gpus"]
    card = host.card(uuid)

    ran = hactl("gpu", "quarantine", uuid, "--reason", "loud fan")
    assert (ran.code, ran.out) == (0, "")
    assert f"{name} is on it and goes on\nto move it to another card: chatglm-hactl restart {name}\n" in ran.err
    shown = host.shown(card)
    assert (shown["state"], shown["instances"]) == ("quarantined", [name])
    assert shown["quarantine"]["needs"] == "word"
    assert (shown["quarantine"]["by"], host.note_of(card, "loud fan")["by"]) == (me(), me())
    assert conforms(host.daemon.status(), schema.STATUS)

    host.daemon.kill()
    host.start()
    host.wait_until_seen()
    assert host.shown(card)["state"] == "quarantined"
    assert host.daemon.status()["problems"] == []
    assert host.daemon.instance(name)["runtime_id"] == before["runtime_id"]
    assert f"on GPU {host.index(card)} ({uuid}), which is quarantined: loud fan" in hactl("explain", name).out

    assert hactl("restart", name, "--force").code == 0
    assert host.daemon.instance(name)["gpus"] not in ([], [uuid])
    assert hactl("gpu", "clear", str(host.index(card))).err.endswith("is cleared: instances may be placed on it\n")
    assert host.shown(card)["state"] == "ok"
    assert host.note_of(card, "cleared by hand")["by"] == me()


def test_a_lost_card_is_shown_without_figures_counted_and_not_given_back_by_a_word(host: GpuHost) -> None:
    (uuid,) = {card.uuid for card in host.nvml.cards} - set(host.places().values())
    card = host.card(uuid)
    listed = host.daemon.hactl("gpu", "list")
    assert f"{uuid}  NVIDIA L4  ok" in listed.out
    host.xid(card, 79)
    card.failing[EVERY] = LOST
    host.nvml.tell()
    host.problem_of(card, "quarantined", "needs a reboot")
    host.daemon.wait_for(
        lambda status: next(gpu for gpu in status["gpus"] if gpu["uuid"] == uuid)["state"] == "lost" and status,
        "the card is lost",
    )
    shown = host.shown(card)
    assert (shown["memory_used_bytes"], shown["utilization"]) == (None, None)
    metrics = host.daemon.metrics()
    assert metrics[f'chatglm_ha_gpu_xid_errors_total{{gpu="{uuid}",xid="79"}}'] == 1
    assert metrics[f'chatglm_ha_gpu_state{{chatglm_ha_gpu_state="lost",gpu="{uuid}"}}'] == 1
    assert f'chatglm_ha_gpu_memory_used_bytes{{gpu="{uuid}"}}' not in metrics
    cleared = host.daemon.hactl("gpu", "clear", uuid)
    assert (cleared.code, cleared.out) == (1, "")
    assert "is lost all the same: it has fallen off the bus" in cleared.err
    assert one(host.daemon.status(), "chatglm-01")["state"] == "serving"


def test_a_restart_that_would_end_what_no_card_has_room_for_is_refused(host: GpuHost) -> None:
    hactl = host.daemon.hactl
    assert hactl("scale", "2").code == 0
    host.daemon.wait_until_green(2)
    uuid = host.places()["chatglm-01"]
    assert (
        hactl("gpu", "quarantine", uuid).err.splitlines()[2].startswith("none could start elsewhere now: no GPU has ")
    )
    refused = hactl("restart", "chatglm-01")
    assert (refused.code, "chatglm-01 would find no GPU again: no GPU has 13.0 GB" in refused.err) == (5, True)
    assert "chatglm-hactl restart chatglm-01 --force" in refused.err
    assert hactl("restart", "chatglm-02").code == 0, "its own card has its place"
    assert hactl("gpu", "clear", uuid).code == 0
    assert hactl("restart", "chatglm-01").code == 0


def test_a_card_that_is_not_there_is_exit_6_with_those_there_are(host: GpuHost) -> None:
    ran = host.daemon.hactl("gpu", "clear", "GPU-")
    assert ran.code == 6
    assert all(uuid in ran.err for uuid in host.nvml.uuids)
    assert "GPU- may be any of" in ran.err
    missing = host.daemon.hactl("gpu", "quarantine", "9")
    assert (missing.code, "there is no GPU 9" in missing.err) == (6, True)

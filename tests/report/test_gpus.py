"""GPUs in the reports: documents, the page, metrics, and the requests that name a card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hasupervisor.model import State
from hasupervisor.model.gpu import CardJudged, DriverView, Gpus, Incident, KernelLogView, Source, Xid
from hasupervisor.report import document, gpus
from hasupervisor.report.desk import NoSuch, Refused
from hasupervisor.report.metrics import Metrics
from hasupervisor.report.page import text
from hasupervisor.report.snapshot import GpusView, Snapshot
from tests.report import cards, schema
from tests.report.cards import ABSENT, BY_HAND, GB, GPUS, LOST, NEVER_ANSWERED, SERVING, WITH_GPUS, WITHOUT_GPUS
from tests.report.clerk import Clerk
from tests.report.example import NOW, SNAPSHOT, judged
from tests.report.schema import conforms
from tests.report.serving import me, problem, served

UUID = SERVING.record.uuid


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", [SNAPSHOT, WITH_GPUS, WITHOUT_GPUS], ids=["off", "gpus", "no gpus"])
def test_the_status_with_and_without_gpus_has_exactly_the_promised_keys_and_types(snapshot: Snapshot) -> None:
    assert conforms(document.status(snapshot), schema.STATUS)


def test_a_card_that_serves_shows_what_the_contract_shows_and_what_there_is_for_newcomers() -> None:
    assert gpus.card(SERVING, NOW) == {
        "uuid": UUID,
        "index": 0,
        "name": "NVIDIA L4",
        "bus": "00000000:01:00.0",
        "memory_total_bytes": 24 * GB,
        "memory_used_bytes": 12 * GB,
        "memory_available_bytes": 10 * GB,
        "memory_foreign_bytes": GB,
        "memory_leaked_bytes": 0,
        "utilization": 0.71,
        "temperature_c": 61,
        "power_w": 66.123,
        "state": "ok",
        "reason": None,
        "quarantine": None,
        "excluded": False,
        "instances": ["chatglm-01"],
    }


def test_a_card_that_cannot_be_asked_shows_none_of_its_last_figures() -> None:
    shown = gpus.card(LOST, NOW)
    assert (shown["name"], shown["memory_total_bytes"], shown["state"]) == ("NVIDIA L4", 24 * GB, "lost")
    for key in ("memory_used_bytes", "memory_available_bytes", "utilization", "temperature_c", "power_w"):
        assert shown[key] is None, key
    old = replace(SERVING, view=replace(SERVING.view, fact=cards.fact(0, seen_at=NOW - 11)))
    assert gpus.card(old, NOW)["utilization"] is None


def test_a_quarantine_says_whose_it_is_since_when_and_what_ends_it() -> None:
    by_hand, fault = gpus.card(BY_HAND, NOW)["quarantine"], gpus.card(LOST, NOW)["quarantine"]
    since = "2026-11-24T03:01:11.123Z"
    assert by_hand == {"reason": "new riser", "needs": "word", "by": "alice (uid 1000)", "since": since}
    assert (fault["needs"], fault["by"]) == ("reboot", "chatglm-ha")


def test_a_kernel_log_that_cannot_be_read_is_worth_a_word_only_where_there_are_gpus() -> None:
    assert document.status(WITH_GPUS)["gpu_driver"]["kernel_log"] == {"readable": False, "sentence": cards.DEAF}
    assert document.status(WITHOUT_GPUS)["gpu_driver"]["kernel_log"] is None
    assert document.status(SNAPSHOT)["gpu_driver"] is None


def test_the_room_has_its_reason_without_whose_wait_it_is() -> None:
    full = replace(GPUS, no_room="waits for a GPU: no GPU has 13.0 GB for it: GPU 0: 2.0 GB for newcomers")
    room = {"instances": 0, "reason": "no GPU has 13.0 GB for it: GPU 0: 2.0 GB for newcomers"}
    assert document.status(replace(SNAPSHOT, gpus=full))["gpu_room"] == room
    assert document.status(SNAPSHOT)["gpu_room"] is None


def test_an_instance_that_waits_for_a_card_says_what_it_waits_for() -> None:
    waits = judged("chatglm-03", State.STARTING, reason="waits for a GPU: no healthy GPU is left: GPU 0: loud fan")
    shown = document.explanation(waits, replace(SNAPSHOT, instances=(waits,)), [])
    assert shown["next"] == "is started once a GPU has room for it: chatglm-hactl gpu list"


def test_the_page_has_a_line_for_each_card_and_none_where_there_is_none() -> None:
    lines = [line.split() for line in text(WITH_GPUS).splitlines()]
    begin = lines.index(["GPU", "UUID", "NAME", "STATE", "MEMORY-GB", "UTIL", "TEMP", "INSTANCES", "REASON"])
    assert lines[begin + 1] == [*("0", UUID, "NVIDIA", "L4", "ok", "12.0/24.0", "71%", "61C", "chatglm-01", "-")]
    assert lines[begin + 3][4:7] == ["lost", "?/24.0", "?"]
    assert lines[begin + 4][:4] == ["3", "index", "3", "?"]
    assert "UUID" not in text(WITHOUT_GPUS)


# --- which card is meant ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (UUID, SERVING),
        (UUID.upper(), SERVING),
        ("GPU-1", BY_HAND),
        ("2a1f", LOST),
        ("0", SERVING),
        ("3", NEVER_ANSWERED),
    ],
)
def test_a_card_is_named_by_its_uuid_the_beginning_of_it_or_its_index(which: str, found: CardJudged) -> None:
    assert gpus.named(GPUS, which) is found


def test_the_index_of_a_lost_card_is_the_one_of_whoever_has_it_now() -> None:
    moved = replace(SERVING, view=replace(SERVING.view, index=2))
    assert gpus.named(replace(GPUS, cards=(LOST, moved)), "2") is moved


@pytest.mark.parametrize(
    ("view", "which", "words"),
    [
        (GPUS, "GPU-", "GPU- may be any of 0 (GPU-0a1f"),
        (GPUS, "9", "there is no GPU 9; there are 0 (GPU-0a1f"),
        (GPUS, "0a", "there is no GPU 0a; there are 0"),
        (GPUS, "", "there is no GPU "),
        (replace(GPUS, cards=(SERVING,)), "9", f"there is no GPU 9; there is 0 ({UUID})"),
        (ABSENT, "0", "there is no GPU: no NVIDIA driver is installed"),
        (None, "0", 'the daemon does not look at GPUs: gpu.mode = "off"'),
    ],
)
def test_a_card_that_is_not_there_or_not_the_only_one_is_answered_with_those_there_are(
    view: GpusView | None, which: str, words: str
) -> None:
    with pytest.raises(NoSuch) as refusal:
        gpus.named(view, which)
    assert refusal.value.detail.startswith(words)
    assert refusal.value.hint is not None


# --- requests ---------------------------------------------------------------------------------------------------------


async def test_the_gpus_are_one_document_with_or_without_any() -> None:
    for snapshot in (WITH_GPUS, WITHOUT_GPUS, SNAPSHOT):
        async with served(Clerk(snapshot=snapshot)) as ha:
            assert conforms((await ha.client.get("/v1/gpus")).json(), schema.GPUS)


async def test_a_quarantine_by_hand_is_told_to_the_desk_with_its_reason_and_who_asked() -> None:
    async with served(Clerk(snapshot=WITH_GPUS)) as ha:
        answer = await ha.client.post("/v1/gpus/0/quarantine", json={"reason": "loud\nfan "})
        assert (answer.status_code, ha.clerk.told) == (200, [("quarantine", UUID, "loud fan", me())])
        assert conforms(answer.json(), schema.GPU)
        assert answer.json()["uuid"] == UUID
        answer = await ha.client.post("/v1/gpus/GPU-1/clear")
        assert (answer.status_code, ha.clerk.told[1:]) == (200, [("clear", BY_HAND.record.uuid, me())])


async def test_requests_about_a_card_are_held_to_the_page() -> None:
    async with served(Clerk(snapshot=WITH_GPUS)) as ha:
        found = await problem(await ha.client.post("/v1/gpus/7/clear"), 404)
        assert (found["title"], found["hint"]) == ("Not found", "chatglm-hactl gpu list")
        await problem(await ha.client.post("/v1/gpus/0/quarantine", json={"why": "x"}), 400)
        await problem(await ha.client.post("/v1/gpus/0/quarantine", json={"reason": "x" * 501}), 400)
        await problem(await ha.client.get("/v1/gpus/0/clear"), 405)
        ha.clerk.fail = Refused("index 3 has not said its UUID yet", "chatglm-hactl gpu list")
        await problem(await ha.client.post("/v1/gpus/0/clear"), 409)


# --- metrics ----------------------------------------------------------------------------------------------------------


def scraped(snapshot: Snapshot, heard: Iterable[Gpus] = ()) -> dict[tuple[str, ...], float]:
    """The GPU's samples: (name, label values in the order of their names) -> value."""
    metrics = Metrics(Clerk(snapshot=snapshot), "0.1.0")
    for one in heard:
        metrics.faulted(one)
    exposed = metrics.exposition("")[0].decode()
    return {
        (sample.name.removeprefix("chatglm_ha_gpu_"), *(sample.labels[key] for key in sorted(sample.labels))): value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
        if sample.name.startswith("chatglm_ha_gpu_") and (value := sample.value) is not None
    }


def test_the_metrics_have_a_state_for_every_card_and_figures_for_those_that_tell_them() -> None:
    found, lost = scraped(WITH_GPUS), LOST.record.uuid
    assert found["memory_used_bytes", UUID] == 12 * GB
    assert found["memory_total_bytes", UUID] == 24 * GB
    assert found["utilization_ratio", UUID] == 0.71
    assert found["temperature_celsius", UUID] == 61
    assert found["info", "00000000:01:00.0", UUID, "0", "NVIDIA L4"] == 1
    assert {key[1] for key, value in found.items() if key[0] == "state" and key[2] == lost and value} == {"lost"}
    assert ("state", "suspect", "index 3") in found
    assert ("memory_total_bytes", lost) in found
    assert ("memory_used_bytes", lost) not in found


def test_a_host_without_gpus_has_no_metrics_of_them() -> None:
    assert scraped(SNAPSHOT) == scraped(WITHOUT_GPUS) == {}


def heard(*xids: Xid, readable: bool = True) -> Gpus:
    driver = DriverView(cards=(SERVING.view, BY_HAND.view))
    return Gpus(driver, KernelLogView(readable), "a boot", incidents=tuple(Incident(xid) for xid in xids))


def test_faults_are_counted_by_card_and_xid_once_for_each_line_of_the_kernel_log() -> None:
    kernel = Xid(31, NOW, Source.KERNEL, bus="0000:01:00", pid=4711)
    stranger = Xid(79, NOW, Source.KERNEL, bus="0000:99:00")
    nvml = Xid(31, NOW, Source.NVML, uuid=UUID)
    found = scraped(WITH_GPUS, [heard(kernel, nvml), heard(), heard(kernel, stranger)])
    counted = {key[1:]: value for key, value in found.items() if key[0] == "xid_errors_total"}
    assert counted == {(UUID, "31"): 2, ("0000:99:00", "79"): 1}


def test_where_the_kernel_log_cannot_be_read_nvml_counts() -> None:
    found = scraped(WITH_GPUS, [heard(Xid(31, NOW, Source.NVML, uuid=UUID), readable=False)])
    assert found["xid_errors_total", UUID, "31"] == 1

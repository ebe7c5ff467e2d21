"""Every row of the table of GPU faults, made in the double of NVML or in the kernel log, and what the daemon does."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hasupervisor.decide.gpu import faults
from hasupervisor.decide.gpu.faults import Row
from tests.doubles.nvml.cards import EVERY, LOST, RESET_REQUIRED, UNKNOWN, Card
from tests.real import hurried
from tests.real.daemon import Document, Settings, as_processes, one
from tests.real.gpu_host import GpuHost, gpu_host

VICTIM, OTHER = "chatglm-01", "chatglm-02"
CARDS = 4
GB = 10**9
TOO_OFTEN: Settings = {
    # A life ends here every few seconds, which would be too often anywhere else.
    "repair": {"attempts": 1000, "backoff": 0.2, "backoff_max": 0.2},
    "service": {"instances": 2, "min": 2, "max": 4},
}
MEMORY, HANDLE = "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetHandleByIndex_v2"


@pytest.fixture(scope="module")
def running(
    standin_server: Path,
    port_range: Callable[[int], range],
    tmp_path_factory: pytest.TempPathFactory,
    nvml_library: Path,
) -> Iterator[GpuHost]:
    folder = tmp_path_factory.mktemp("faults")
    with gpu_host(port_range(20), folder, nvml_library, as_processes(standin_server), TOO_OFTEN, cards=CARDS) as host:
        host.start()
        yield host


@pytest.fixture(scope="module")
def in_a_hurry(
    standin_server: Path,
    port_range: Callable[[int], range],
    tmp_path_factory: pytest.TempPathFactory,
    nvml_library: Path,
) -> Iterator[GpuHost]:
    folder = tmp_path_factory.mktemp("hurry")
    with gpu_host(port_range(20), folder, nvml_library, as_processes(standin_server), TOO_OFTEN, cards=CARDS) as host:
        host.start([sys.executable, "-m", hurried.__name__])
        yield host


@dataclass(frozen=True, slots=True)
class Scene:
    """A host on which all is well: two instances, each on its card, and two idle cards."""

    host: GpuHost
    before: Document
    began: float = field(default_factory=time.time)

    @property
    def victim(self) -> Document:
        """The instance that meets the fault."""
        return one(self.before, VICTIM)

    @property
    def card(self) -> Card:
        """The victim's card."""
        return self.host.card(self.victim["gpus"][0])

    @property
    def idle(self) -> list[Card]:
        """The cards with nobody on them."""
        taken = {uuid for instance in self.before["instances"] for uuid in instance["gpus"]}
        return [card for card in self.host.nvml.cards if card.uuid not in taken]

    def tell(self, **numbers: int) -> None:
        """The victim's card tells these figures from now on."""
        self.card.numbers.update(numbers)
        self.host.nvml.tell()

    def fail(self, function: str, code: int) -> None:
        """That call about the victim's card is answered with an error from now on."""
        self.card.failing[function] = code
        self.host.nvml.tell()

    # --- what comes of it ---------------------------------------------------------------------------------------------

    def warned(self, *words: str) -> None:
        """A person reads of it among the problems, and all go on."""
        problem = self.host.problem_of(self.card, *words)
        assert problem["hint"]
        self.all_stay()

    def noted(self, *words: str) -> None:
        """A person reads of it in the history, and all go on."""
        self.host.note_of(self.card, *words, since=self.began)
        self.all_stay()
        assert self.host.shown(self.card)["state"] == "ok"

    def restarted(self, *words: str) -> None:
        """The victim has a new life on the same card, and nobody else has."""
        after = self.serves_anew()
        assert after["gpus"] == self.victim["gpus"]
        assert all(word in after["last_failure"]["reason"] for word in words), after["last_failure"]
        assert self.host.shown(self.card)["state"] == "ok"
        self.other_stays()

    def moved(self, need: str, *words: str) -> None:
        """The victim serves on another card, its own is given up with what it needs, and nobody else is touched."""
        after = self.serves_anew()
        assert after["gpus"] == [self.idle[0].uuid]
        reason = after["last_failure"]["reason"]
        assert reason.startswith(f"GPU {self.host.index(self.card)} is given up: "), reason
        assert all(word in reason for word in words), reason
        shown = self.host.shown(self.card)
        assert shown["state"] in ("quarantined", "lost")
        assert shown["quarantine"]["needs"] == need
        self.host.problem_of(self.card, "quarantined", need)
        self.other_stays()

    def avoided(self, state: str, *words: str) -> None:
        """Those on the card stay, and a newcomer is not placed there."""
        self.warned(*words)
        shown = self.host.shown(self.card)
        assert (shown["state"], shown["memory_available_bytes"]) == (state, None)

    def serves_anew(self) -> Document:
        def condition(status: Document) -> Document | None:
            now = one(status, VICTIM)
            return now if now["state"] == "serving" and now["runtime_id"] != self.victim["runtime_id"] else None

        return self.host.daemon.wait_for(condition, f"{VICTIM} serves anew")

    def other_stays(self) -> None:
        assert self.host.daemon.instance(OTHER)["runtime_id"] == one(self.before, OTHER)["runtime_id"]

    def all_stay(self) -> None:
        assert self.host.daemon.instance(VICTIM)["runtime_id"] == self.victim["runtime_id"]
        self.other_stays()


def well(host: GpuHost) -> Scene:
    """Mends whatever a test before has broken, by hand as an operator would, and waits until all is well."""
    host.mend()
    for card in host.nvml.cards:
        host.clear(card)
    return Scene(host, host.daemon.put_right(2))


# --- the ways in which each shows ---------------------------------------------------------------------------------


def an_illegal_access(scene: Scene) -> None:
    scene.host.xid(scene.card, 13, pid=scene.victim["pid"])
    scene.restarted("GPU", "(Xid 13, pid")


def an_illegal_access_of_nobody_known(scene: Scene) -> None:
    scene.host.xid(scene.card, 31)
    scene.restarted("Xid 31")


def an_illegal_access_for_the_third_time(scene: Scene) -> None:
    for _ in range(2):
        scene.host.xid(scene.card, 13, pid=scene.host.daemon.instance(VICTIM)["pid"])
        scene.restarted("Xid 13")
        scene = Scene(scene.host, scene.host.daemon.wait_until_green(2), scene.began)
    scene.host.xid(scene.card, 13, pid=scene.victim["pid"])
    scene.moved("reset", "3 times in 10 minutes")


def a_context_switch_timeout(scene: Scene) -> None:
    scene.host.xid(scene.card, 109, pid=scene.victim["pid"])
    scene.restarted("Xid 109")


def a_second_context_switch_timeout(scene: Scene) -> None:
    a_context_switch_timeout(scene)
    again = Scene(scene.host, scene.host.daemon.wait_until_green(2), scene.began)
    again.host.xid(again.card, 109, pid=again.victim["pid"])
    again.moved("reset", "2 times in 60 minutes")


def a_contained_memory_error(scene: Scene) -> None:
    scene.host.xid(scene.card, 94, pid=scene.victim["pid"], words=f"pid={scene.victim['pid']}, Contained: SM (0x1)")
    scene.restarted("Xid 94")


def an_after_effect(scene: Scene) -> None:
    scene.host.xid(scene.card, 45, pid=scene.victim["pid"])
    scene.noted("Xid 45")


def a_double_bit_error(scene: Scene) -> None:
    scene.host.xid(scene.card, 48)
    scene.moved("reset", "Xid 48")


def an_uncontained_memory_error_that_nvml_alone_tells(scene: Scene) -> None:
    scene.host.nvml.xid(scene.card, 95)
    scene.moved("reset", "Xid 95")


def a_row_to_be_remapped(scene: Scene) -> None:
    scene.tell(remap_pending=1)
    scene.warned("a bad row of its memory is replaced at the next reset")


def a_row_remapped_in_the_kernel_log(scene: Scene) -> None:
    scene.host.xid(scene.card, 63)
    scene.noted("Xid 63")


def a_page_to_be_retired(scene: Scene) -> None:
    scene.tell(retired_pending=1)
    scene.warned("replaced at the next reset")


def no_spare_row(scene: Scene) -> None:
    scene.tell(remap_failed=1)
    scene.moved("repair", "no spare one is left")


def no_spare_row_in_the_kernel_log(scene: Scene) -> None:
    scene.host.xid(scene.card, 64)
    scene.moved("repair", "Xid 64")


def a_firmware_timeout(scene: Scene) -> None:
    scene.host.xid(scene.card, 119, pid=scene.victim["pid"])
    scene.moved("reset", "Xid 119")


def off_the_bus_in_the_kernel_log(scene: Scene) -> None:
    scene.host.xid(scene.card, 79)
    scene.moved("reboot", "Xid 79")


def off_the_bus_without_an_xid(scene: Scene) -> None:
    scene.host.kernel(f"NVRM: GPU {scene.card.bus.removeprefix('0000')}: GPU has fallen off the bus.")
    scene.moved("reboot", "fallen off the bus")


def lost_to_nvml(scene: Scene) -> None:
    scene.fail(EVERY, LOST)
    scene.moved("reboot", "GPU is lost, 15")


def not_even_a_handle(scene: Scene) -> None:
    scene.card.failing.update({HANDLE: UNKNOWN, MEMORY: UNKNOWN})
    scene.host.nvml.tell()
    scene.moved("reboot", "Unknown Error, 999")


def vanished_without_a_word(scene: Scene) -> None:
    cards, gone = scene.host.nvml.cards, scene.card
    at = cards.index(gone)
    free = scene.idle[0].uuid
    cards.remove(gone)
    scene.host.nvml.tell()
    try:
        after = scene.serves_anew()
        shown = next(gpu for gpu in scene.host.daemon.status()["gpus"] if gpu["uuid"] == gone.uuid)
    finally:
        cards.insert(at, gone)
        scene.host.wait_until_seen()
    assert after["gpus"] == [free]
    assert "NVML does not list it any more" in after["last_failure"]["reason"]
    assert (shown["state"], shown["quarantine"]["needs"]) == ("lost", "reboot")
    scene.other_stays()


def a_pcie_timeout(scene: Scene) -> None:
    scene.host.xid(scene.card, 167)
    scene.moved("reboot", "Xid 167")


def a_broken_link(scene: Scene) -> None:
    scene.host.xid(scene.card, 74)
    scene.noted("Xid 74", "instances use one GPU and go on")


def the_driver_wants_a_reset(scene: Scene) -> None:
    scene.tell(recovery=1)
    scene.moved("reset", "the driver asks for a reset of it")


def the_driver_wants_a_reset_and_logs_it(scene: Scene) -> None:
    words = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"
    scene.host.xid(scene.card, 154, words=words)
    scene.moved("reset", "Xid 154")


def nvml_answers_that_a_reset_is_required(scene: Scene) -> None:
    scene.fail(EVERY, RESET_REQUIRED)
    scene.moved("reset", "16")


def the_driver_wants_a_reboot(scene: Scene) -> None:
    scene.tell(recovery=2)
    scene.moved("reboot", "the driver asks for a reboot of the host")


def the_driver_wants_a_drain(scene: Scene) -> None:
    scene.tell(recovery=3)
    scene.warned("the driver asks that programs which use its links end")


def memory_errors_were_counted(scene: Scene) -> None:
    scene.tell(ecc_uncorrected=7)
    scene.warned("uncorrectable memory errors have been counted", "7")


def no_answer_but_an_error(scene: Scene) -> None:
    scene.fail(MEMORY, UNKNOWN)
    scene.avoided("suspect", "NVML cannot say how it is", "999")


def an_xid_that_nobody_knows(scene: Scene) -> None:
    scene.host.xid(scene.card, 777)
    scene.noted("not in the table", "Xid 777")


def the_end_of_a_trouble(scene: Scene) -> None:
    """The next thing in the log is told; this one was not, and nothing was done."""
    words = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"
    scene.host.xid(scene.card, 154, words=words)
    scene.host.xid(scene.card, 92)
    scene.noted("Xid 92")
    mine = [entry for entry in scene.host.daemon.history() if entry["subject"] == f"GPU {scene.host.index(scene.card)}"]
    assert not any("Xid 154" in entry["sentence"] for entry in mine if scene.host.is_since(entry, scene.began))


# --- what has to last -----------------------------------------------------------------------------------------------


def slowed_down_by_heat(scene: Scene) -> None:
    """An idle card that is throttled is taken after the other idle one."""
    hot, cool = scene.idle
    for card in (scene.card, hot):
        card.numbers["throttle"] = 0x40
    scene.host.nvml.tell()
    scene.warned("slowed down by heat or power")
    scene.host.problem_of(hot, "placed on last")
    assert scene.host.daemon.hactl("scale", "3").code == 0
    assert scene.host.places()["chatglm-03"] == cool.uuid


def leaked_memory(scene: Scene) -> None:
    scene.tell(memory_unlisted=2 * GB)
    scene.warned("held by no process that is listed; it counts as used", "2.0 GB")


def leaked_memory_of_a_process_that_has_gone(scene: Scene) -> None:
    scene.card.processes[gone_pid()] = 3 * GB
    scene.host.nvml.tell()
    scene.warned("held by no process that is listed", "3.0 GB")


def more_leaked_memory_than_an_instance_needs(scene: Scene) -> None:
    scene.tell(memory_unlisted=15 * GB)
    scene.avoided("quarantined", "more memory than an instance needs", "15.0 GB")


def a_call_that_never_returns(scene: Scene) -> None:
    scene.card.hanging.add(EVERY)
    scene.host.nvml.tell()
    scene.avoided("suspect", "NVML's calls about it do not return", "judged by its own probe")


def gone_pid() -> int:
    """The pid of a process that was, and is not any more."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {})
    os.waitpid(pid, 0)
    return pid


Way = Callable[[Scene], None]

WAYS: dict[str, tuple[Way, ...]] = {
    faults.APPLICATION.name: (
        an_illegal_access,
        an_illegal_access_of_nobody_known,
        an_illegal_access_for_the_third_time,
    ),
    faults.CONTEXT_SWITCH.name: (a_context_switch_timeout, a_second_context_switch_timeout),
    faults.CONTAINED_ECC.name: (a_contained_memory_error,),
    faults.AFTER_EFFECT.name: (an_after_effect,),
    faults.UNCORRECTABLE_ECC.name: (a_double_bit_error, an_uncontained_memory_error_that_nvml_alone_tells),
    faults.REMAP_RECORDED.name: (a_row_to_be_remapped, a_row_remapped_in_the_kernel_log, a_page_to_be_retired),
    faults.REMAP_FAILED.name: (no_spare_row, no_spare_row_in_the_kernel_log),
    faults.ENGINE.name: (a_firmware_timeout,),
    faults.OFF_THE_BUS.name: (
        off_the_bus_in_the_kernel_log,
        off_the_bus_without_an_xid,
        lost_to_nvml,
        not_even_a_handle,
        vanished_without_a_word,
    ),
    faults.PCIE.name: (a_pcie_timeout,),
    faults.NVLINK.name: (a_broken_link,),
    faults.WANTS_RESET.name: (
        the_driver_wants_a_reset,
        the_driver_wants_a_reset_and_logs_it,
        nvml_answers_that_a_reset_is_required,
    ),
    faults.WANTS_REBOOT.name: (the_driver_wants_a_reboot,),
    faults.WANTS_DRAIN.name: (the_driver_wants_a_drain,),
    faults.ECC_COUNTED.name: (memory_errors_were_counted,),
    faults.REFUSES.name: (no_answer_but_an_error,),
    faults.UNKNOWN.name: (an_xid_that_nobody_knows,),
    faults.FINE.name: (the_end_of_a_trouble,),
}

LASTING: dict[str, tuple[Way, ...]] = {
    faults.THROTTLED.name: (slowed_down_by_heat,),
    faults.LEAKS.name: (leaked_memory, leaked_memory_of_a_process_that_has_gone),
    faults.LEAKS_MUCH.name: (more_leaked_memory_than_an_instance_needs,),
    faults.SILENT.name: (a_call_that_never_returns,),  # the last: a card that hung is left alone for a minute
}
"""Ways of faults that are told when they have lasted for a while, which takes seconds in `hurried`."""


def ways(rows: dict[str, tuple[Way, ...]]) -> list[object]:
    return [pytest.param(way, id=way.__name__) for found in rows.values() for way in found]


@pytest.mark.parametrize("row", faults.TABLE, ids=lambda row: row.name)
def test_every_row_has_a_way(row: Row) -> None:
    assert WAYS.get(row.name) or LASTING.get(row.name), f"no test makes the fault {row.name!r}"


@pytest.mark.parametrize("way", ways(WAYS))
def test_the_action_of_the_row_is_seen(running: GpuHost, way: Way) -> None:
    way(well(running))
    running.daemon.assert_no_defects()


@pytest.mark.parametrize("way", ways(LASTING))
def test_the_action_of_a_row_that_has_to_last_is_seen(in_a_hurry: GpuHost, way: Way) -> None:
    way(well(in_a_hurry))
    in_a_hurry.daemon.assert_no_defects()

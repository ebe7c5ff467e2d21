"""The kernel log sense: every form of line, the real /dev/kmsg, and logs that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hasupervisor.model.gpu import Source, Xid, bus_key
from hasupervisor.observe.kernel_log import KMSG, KernelLog
from hasupervisor.observe.xid_lines import XidLines
from tests.real.waiting import eventually

UUID = "GPU-c4a80165-86e4-bfbb-ecfa-1d81a70b138a"
WITHIN = 10.0


@pytest.mark.parametrize(
    ("line", "code", "bus", "pid"),
    [
        (
            "NVRM: Xid (PCI:0000:02:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            79,
            "0000:02:00",
            None,
        ),
        ("NVRM: Xid (PCI:0000:02:00): 79, GPU has fallen off the bus.", 79, "0000:02:00", None),
        ("NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: SM (0x1).", 94, "0000:01:00", 7194),
        ("NVRM: Xid (PCI:0009:01:00): 43, pid=3188489, name=python, channel 0x0b00000a", 43, "0009:01:00", 3188489),
        ("NVRM: Xid (PCI:0000:3B:00): 31, pid='815', name=python3, Ch 00000008, intr 10000000", 31, "0000:3B:00", 815),
        ("NVRM: Xid (0000:03:00): 13, 0001 00000000 0000a097 00001b0c 00000000", 13, "0000:03:00", None),
        ("NVRM: Xid (PCI:0001:00:00.0): 62, 32a4(2f90) 00000000 00000000", 62, "0001:00:00", None),
        ("NVRM: NVRM: Xid (PCI:10000:0c:00): 48, pid=12, An uncorrectable double bit error", 48, "10000:0c:00", 12),
        ("NVRM: Xid (PCI:0000:05:00): 63", 63, "0000:05:00", None),
        ("NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.", 79, "0000:18:00", None),
        ("NVRM: GPU at 0000:01:00.0 has fallen off the bus.", 79, "0000:01:00", None),
        (
            "NVRM: The NVIDIA GPU 0000:b3:00.0\\x0aNVRM: (PCI ID: 10de:26b5) installed in this system has\\x0a"
            "NVRM: fallen off the bus and is not responding to commands.",
            79,
            "0000:b3:00",
            None,
        ),
    ],
)
def test_every_published_form_of_line_is_read(line: str, code: int, bus: str, pid: int | None) -> None:
    xid = XidLines(lambda: 5.0).read(line)
    assert xid is not None
    assert (xid.code, xid.bus, xid.pid, xid.at, xid.source) == (code, bus, pid, 5.0, Source.KERNEL)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "usb 1-1: new high-speed USB device",
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.158.01  Release Build",
        "NVRM: Xid (PCI:0000:66:00): abc, pid=2280636",
        "Xid (PCI:0000:66:00): 79, GPU has fallen off the bus.",
        "NVRM: fallen off the bus and is not responding to commands.",
        "NVRM: GPU at PCI:0000:01:00: " + UUID,
    ],
)
def test_other_lines_tell_of_no_fault(line: str) -> None:
    assert XidLines().read(line) is None


def test_a_card_that_was_called_by_name_keeps_it() -> None:
    lines = XidLines()
    lines.read(f"NVRM: GPU at PCI:0000:01:00: {UUID}")
    known, other = (lines.read(f"NVRM: Xid (PCI:0000:0{n}:00): 79, GPU has fallen off the bus.") for n in (1, 2))
    assert known is not None
    assert other is not None
    assert (known.uuid, other.uuid) == (UUID, None)


@pytest.mark.parametrize(("later", "told"), [(0.1, True), (60.0, False)])
def test_a_message_in_three_records_is_one_fault_when_they_come_together(later: float, told: bool) -> None:
    now = [0.0]
    lines = XidLines(lambda: now[0])
    assert lines.read("NVRM: The NVIDIA GPU 0000:b3:00.0") is None
    assert lines.read("NVRM: (PCI ID: 10de:26b5) installed in this system has") is None
    now[0] = later
    fault = lines.read("NVRM: fallen off the bus and is not responding to commands.")
    assert (fault is not None) is told
    if fault is not None:
        assert (fault.code, fault.bus) == (79, "0000:b3:00")


@pytest.mark.parametrize(
    ("words", "action"),
    [
        ("0x1 (GPU Reset Required)", 1),
        ("0x1 (PF FLR)", 1),
        ("0x2 (Node Reboot Required)", 2),
        ("0x2 (OS Reboot)", 2),
        ("0x0 (None)", 0),
    ],
)
def test_the_drivers_own_verdict_is_read_by_its_number_whatever_its_words(words: str, action: int) -> None:
    xid = XidLines().read(
        f"NVRM: Xid (PCI:0008:01:00): 154, GPU recovery action changed from 0x3 (Drain P2P) to {words}"
    )
    assert xid is not None
    assert xid.recovery == action


def test_the_bus_of_the_kernel_and_that_of_nvml_are_the_same_card() -> None:
    assert bus_key("PCI:0000:3b:00") == bus_key("00000000:3B:00.0") == bus_key("0000:3B:00") == (0, 0x3B, 0)
    assert bus_key("0001:3b:00") != bus_key("0000:3b:00")
    assert bus_key("nowhere") is None


# --- the log itself ---------------------------------------------------------------------------------------------------


@contextmanager
def reading(path: Path, on_change: Callable[[], None] = lambda: None) -> Iterator[KernelLog]:
    log = KernelLog(on_change, path)
    log.start()
    try:
        yield log
    finally:
        log.close()


async def heard(log: KernelLog, what: Callable[[Xid], bool], count: int = 1) -> list[Xid]:
    found: list[Xid] = []

    def enough() -> bool:
        found.extend(xid for xid in log.take_xids() if what(xid))
        return len(found) >= count

    await eventually(enough, "heard", WITHIN)
    return found


async def test_the_real_kernel_log_tells_of_a_fault_as_it_happens_and_not_of_earlier_ones() -> None:
    bus = f"ffff:{os.getpid() & 0xFF:02x}:1f"  # no card has it
    line = f"NVRM: Xid (PCI:{bus}): 45, pid={{}}, name=a test of chatglm-ha, this is no fault\n"
    KMSG.write_text(line.format(1))
    news: list[int] = []
    with reading(KMSG, lambda: news.append(1)) as log:
        assert log.view().readable
        KMSG.write_text(line.format(2))
        (xid,) = await heard(log, lambda xid: xid.bus == bus)
    assert (xid.code, xid.pid, xid.words) == (45, 2, "pid=2, name=a test of chatglm-ha, this is no fault")
    assert news


async def test_a_fifo_stands_in_for_it_with_pieces_of_lines_and_many_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "kmsg"
    os.mkfifo(fifo)
    with reading(fifo) as log:
        writer = os.open(fifo, os.O_WRONLY)
        os.write(writer, b"4,1,2,-;NVRM: Xid (PCI:0000:02:")
        os.write(writer, b"00): 31, pid=7, x\n SUBSYSTEM=pci\n DEVICE=+pci:0000:02:00.0\n")
        (first,) = await heard(log, lambda _: True)
        os.close(writer)
        with fifo.open("w") as again:
            again.writelines(f"6,{n},2,-;NVRM: Xid (PCI:0000:02:00): 13, pid={n}, x; y\n" for n in range(100))
        rest = await heard(log, lambda _: True, 100)
    assert (first.code, first.pid) == (31, 7)
    assert [xid.pid for xid in rest] == list(range(100))
    assert rest[0].words == "pid=0, x; y"


@pytest.mark.parametrize("kind", ["missing", "a file"])
async def test_a_log_that_cannot_be_read_is_said_once_with_what_it_costs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kmsg"
    if kind == "a file":
        path.touch()
    news: list[int] = []
    with reading(path, lambda: news.append(1)) as log:
        view = log.view()
        assert not view.readable
        assert str(path) in view.sentence
        assert view.sentence.endswith("chatglm-hactl doctor says how the daemon may read it")
    assert news == [1]

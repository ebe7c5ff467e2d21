"""What is judged of GPUs, asked of the double of NVML: driver, cards, kernel log, and how containers get theirs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hasupervisor.config import Config
from hasupervisor.config.schema import Gpu
from hasupervisor.doctor import gpus
from hasupervisor.doctor.engine import Engine
from hasupervisor.doctor.finding import Finding, Level
from hasupervisor.model.gpu import DriverState, DriverView
from hasupervisor.observe.gpus import Pace
from tests.doubles.nvml.cards import EVERY, LOST, MISMATCH, NOT_LOADED, NvmlDouble

SYSTEMD = Engine({"CgroupDriver": "systemd", "Runtimes": {"nvidia": {}}}, local=True)
VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Sun May 12 19:39:15 UTC 2024\n"
MODULE = "proc/driver/nvidia/version"
ABSENT = DriverView(DriverState.ABSENT, "no NVIDIA driver is installed: libnvidia-ml.so.1 is not there")
ANSWERS = DriverView(DriverState.OK, "driver 550.163.01, 1 GPU", version="550.163.01")


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path) -> NvmlDouble:
    return NvmlDouble(tmp_path / "nvml", nvml_library)


def configured(**changes: object) -> Config:
    return Config(gpu=Gpu.model_validate(changes))


def levels(findings: list[Finding]) -> list[Level]:
    return [found.level for found in findings]


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


async def examined(nvml: NvmlDouble, root: Path, pace: Pace = gpus.PACE, **changes: object) -> list[Finding]:
    config = configured(**changes)
    nvml.tell()
    write(root, MODULE, VERSION)
    return gpus.examine(config, None, await gpus.ask(config, nvml.environment, pace), root)


async def only(nvml: NvmlDouble, root: Path, level: Level, **changes: object) -> Finding:
    """The one finding of that level."""
    (found,) = [one for one in await examined(nvml, root, **changes) if one.level is level]
    assert found.hint
    return found


# --- the driver -------------------------------------------------------------------------------------------------------


async def test_two_idle_cards_and_a_driver_that_answers_are_fine(nvml: NvmlDouble, tmp_path: Path) -> None:
    driver, fit = await examined(nvml, tmp_path)
    assert (driver.level, driver.sentence) == (Level.OK, "NVML answers: driver 550.163.01, 2 GPUs")
    assert (fit.level, fit.sentence) == (Level.OK, "instances of gpu.memory_gb = 13: 1 on GPU 0, 1 on GPU 1")


@pytest.mark.parametrize(
    ("code", "words"),
    [(MISMATCH, "is not of the version of the loaded driver"), (NOT_LOADED, "is installed and not loaded")],
)
async def test_a_driver_that_does_not_start_is_to_be_mended(
    nvml: NvmlDouble, tmp_path: Path, code: int, words: str
) -> None:
    nvml.init = code
    (found,) = await examined(nvml, tmp_path)
    assert found.level is Level.FAIL
    assert words in found.sentence


async def test_a_library_of_another_version_than_the_loaded_module_wants_a_reboot(
    nvml: NvmlDouble, tmp_path: Path
) -> None:
    nvml.driver = "570.86.10"
    found = await only(nvml, tmp_path, Level.FAIL)
    assert found.sentence == (
        "NVML is of driver 570.86.10, and the module that is loaded of 550.163.01: one was upgraded"
    )
    assert found.hint == "reboot the host"


async def test_a_driver_that_hangs_is_said_in_time(nvml: NvmlDouble, tmp_path: Path) -> None:
    nvml.hanging = {EVERY}
    began = time.monotonic()
    (found,) = await examined(nvml, tmp_path, Pace(driver=1.0))
    assert (found.level, time.monotonic() - began < 10) == (Level.FAIL, True)
    assert found.sentence.startswith("the NVIDIA driver hangs")


def test_a_gpu_that_is_required_and_not_there_is_to_be_mended(tmp_path: Path) -> None:
    assert levels(gpus.examine(configured(mode="required"), None, ABSENT, tmp_path)) == [Level.FAIL]
    assert levels(gpus.examine(configured(), None, ABSENT, tmp_path)) == [Level.OK]
    write(tmp_path, MODULE, VERSION)
    (found,) = gpus.examine(configured(), None, ABSENT, tmp_path)
    assert (found.level, "550.163.01 is loaded, but" in found.sentence) == (Level.FAIL, True)


async def test_where_gpus_are_off_nobody_asks_for_them(tmp_path: Path) -> None:
    off = configured(mode="off")
    assert await gpus.ask(off) is None
    assert levels(gpus.examine(off, SYSTEMD, None, tmp_path)) == [Level.OK]
    assert gpus.kernel_log(None, None, tmp_path) == []


# --- cards ------------------------------------------------------------------------------------------------------------


async def test_cards_without_persistence_mode_are_to_be_looked_at(nvml: NvmlDouble, tmp_path: Path) -> None:
    nvml.cards[1].numbers["persistence"] = 0
    found = await only(nvml, tmp_path, Level.WARN)
    assert "persistence mode is off on GPU 1:" in found.sentence
    assert "nvidia-smi -pm 1" in str(found.hint)


async def test_a_card_that_is_split_by_mig_counts_for_nothing(nvml: NvmlDouble, tmp_path: Path) -> None:
    nvml.cards[0].numbers["mig"] = 1
    found = await only(nvml, tmp_path, Level.WARN)
    assert found.sentence.startswith("GPU 0 is split by MIG, which is not supported")
    (fit,) = [one for one in await examined(nvml, tmp_path) if "memory_gb" in one.sentence]
    assert fit.sentence == "instances of gpu.memory_gb = 13: 1 on GPU 1"
    assert levels(await examined(nvml, tmp_path, exclude=["0"])) == [Level.OK, Level.OK]


async def test_instances_that_are_larger_than_every_card_are_to_be_mended(nvml: NvmlDouble, tmp_path: Path) -> None:
    found = await only(nvml, tmp_path, Level.FAIL, memory_gb=40)
    assert found.sentence.startswith("gpu.memory_gb = 40 fits on no GPU; the largest has 2")
    only_six, small = configured(memory_gb=6), await examined(nvml, tmp_path, memory_gb=6)
    assert small[-1].sentence == f"instances of gpu.memory_gb = {only_six.gpu.memory_gb:g}: 3 on GPU 0, 3 on GPU 1"


async def test_a_configuration_that_leaves_every_card_to_others_starts_nothing(
    nvml: NvmlDouble, tmp_path: Path
) -> None:
    found = await only(nvml, tmp_path, Level.FAIL, exclude=["0", nvml.uuids[1]])
    assert found.sentence == "gpu.exclude leaves all 2 GPUs to others: no instance starts"


async def test_a_card_that_refuses_and_one_that_is_silent_are_named(nvml: NvmlDouble, tmp_path: Path) -> None:
    nvml.cards[0].failing[EVERY] = LOST
    nvml.cards[1].hanging.add(EVERY)
    pace = Pace(first=1.0, card=1.0)
    found = [one.sentence for one in await examined(nvml, tmp_path, pace) if one.level is Level.FAIL]
    assert found == [
        "GPU 0 cannot be asked (NVML: GPU is lost, 15): nothing is placed on it",
        "NVML's calls about GPU 1 do not return: nothing is placed on it",
        "gpu.memory_gb = 13 fits on no GPU: there is none that can be used",
    ]


# --- the kernel log ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("restricted", "capabilities", "level"),
    [
        ("1", "000001ffffffffff", Level.OK),
        ("1", "0000000400000000", Level.OK),
        ("1", "0000000000000000", Level.WARN),
        ("0", "0000000000000000", Level.OK),
    ],
    ids=["root", "CAP_SYSLOG alone", "nobody", "everybody may"],
)
def test_the_daemon_hears_faults_with_the_right_to_or_where_everybody_may(
    tmp_path: Path, restricted: str, capabilities: str, level: Level
) -> None:
    write(tmp_path, "proc/sys/kernel/dmesg_restrict", f"{restricted}\n")
    write(tmp_path, "proc/812/status", f"Name:\tpython3\nCapPrm:\t0000000000000000\nCapEff:\t{capabilities}\n")
    assert levels(gpus.kernel_log(ANSWERS, 812, tmp_path)) == [level]
    assert levels(gpus.kernel_log(ANSWERS, 813, tmp_path)) == [Level.WARN]
    assert gpus.kernel_log(ABSENT, 812, tmp_path) == []


def test_without_a_daemon_it_is_whoever_asks() -> None:
    (found,) = gpus.kernel_log(ANSWERS, None)
    assert found.level is Level.OK or found.sentence.startswith("a daemon of yours may not read the kernel log")


# --- containers -------------------------------------------------------------------------------------------------------


def of_containers(root: Path, engine: Engine) -> list[Finding]:
    """What is found beyond the driver and its cards, of which there are none here."""
    write(root, MODULE, VERSION)
    return gpus.examine(configured(), engine, ANSWERS, root)[2:]


def test_an_engine_that_gives_no_container_a_gpu_is_to_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no tool of the toolkit is there
    (toolkit,) = of_containers(tmp_path, Engine({"CgroupDriver": "cgroupfs", "Runtimes": {"runc": {}}}, local=True))
    assert (toolkit.level, toolkit.hint) == (Level.FAIL, gpus.INSTALL)


def test_a_host_where_daemon_reload_takes_gpus_away_is_told_how_to_keep_them(tmp_path: Path) -> None:
    *_, found = of_containers(tmp_path, SYSTEMD)
    assert (found.level, found.hint) == (Level.WARN, "nvidia-ctk system create-dev-char-symlinks --create-all")
    (tmp_path / "dev/char").mkdir(parents=True)
    (tmp_path / "dev/char/195:0").symlink_to("../nvidia0")
    *_, found = of_containers(tmp_path, SYSTEMD)
    assert found.level is Level.OK


def test_devices_that_the_engine_is_told_of_by_name_need_no_links(tmp_path: Path) -> None:
    write(tmp_path, "etc/cdi/nvidia.yaml", "kind: nvidia.com/gpu\n")
    assert levels(of_containers(tmp_path, SYSTEMD)) == [Level.OK]

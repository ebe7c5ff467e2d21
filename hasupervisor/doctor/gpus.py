"""GPUs: whether the driver answers, the cards fit, faults are heard, and containers get a card and keep it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from hasupervisor.config import Config
from hasupervisor.decide.gpu.ledger import is_excluded
from hasupervisor.doctor.account import drop_in
from hasupervisor.doctor.engine import Engine
from hasupervisor.doctor.finding import Finding, fail, ok, warn
from hasupervisor.model import GpuPolicy
from hasupervisor.model.gpu import GB, CardView, DriverState, DriverView, GpuFact
from hasupervisor.observe.gpus import GpuSense, Pace

CHECK = "gpu"
ASK_S = 60.0
PACE = Pace(driver=20.0, first=20.0)
"""Without persistence mode the driver wakes every card first, seconds each."""
INSTALL = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
TOOLS = ("nvidia-container-runtime-hook", "nvidia-ctk", "nvidia-container-runtime")
CAP_SYSLOG = 34  # capability(7): the bit that lets one read the kernel log


async def ask(config: Config, environment: Mapping[str, str] | None = None, pace: Pace = PACE) -> DriverView | None:
    """What NVML tells, by a process that is left behind where it hangs. None: `gpu.mode` is off.

    `environment` is added to that of the process. Takes `ASK_S` at most; what is not known by then stays unknown.
    """
    if config.gpu.mode == "off":
        return None
    changed = asyncio.Event()
    sense = GpuSense(changed.set, pace, environment)
    sense.start()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASK_S):
                while sense.view().state is DriverState.UNKNOWN:
                    await changed.wait()
                    changed.clear()
        return sense.view()
    finally:
        await sense.close()


def examine(config: Config, engine: Engine | None, driver: DriverView | None, root: Path = Path("/")) -> list[Finding]:
    """`root` is where the host's /proc, /dev and /etc are; `engine` None: it does not answer, or is not used."""
    if driver is None:
        return [ok(CHECK, "gpu.mode = off: instances run without one")]
    module = _module(root)
    if driver.state is not DriverState.OK:
        return [_no_driver(config, driver, module)]
    findings = [_driver(driver, module), *_cards(driver.cards, config)]
    if engine is not None and engine.local:
        findings += [_toolkit(engine, root), *_daemon_reload(engine, root)]
    return findings


def kernel_log(driver: DriverView | None, daemon: int | None, root: Path = Path("/")) -> list[Finding]:
    """Whether the daemon hears of faults; where none runs, whether one of whoever asks would."""
    if driver is None or (driver.state is DriverState.ABSENT and not driver.cards):
        return []
    try:
        restricted = (root / "proc/sys/kernel/dmesg_restrict").read_text().strip() != "0"
        status = (root / f"proc/{daemon or os.getpid()}/status").read_text()
    except OSError as error:
        return [warn(CHECK, f"whether the kernel log can be read is not known: {error}", "sudo chatglm-hactl doctor")]
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.M)
    if not restricted or (found is not None and int(found[1], 16) >> CAP_SYSLOG & 1):
        return [ok(CHECK, "the kernel log can be read: GPU faults are heard, with the process at fault")]
    who = "the daemon" if daemon is not None else "a daemon of yours"
    sentence = f"{who} may not read the kernel log: GPU faults are heard from NVML alone, which does not tell all"
    return [warn(CHECK, sentence, drop_in("kernel-log.conf"))]


def _module(root: Path) -> str | None:
    """The version of the loaded kernel module, as /proc/driver/nvidia/version has it; None: it is not loaded."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return found[1] if found else "of a version that it does not tell"


def _no_driver(config: Config, driver: DriverView, module: str | None) -> Finding:
    """Nothing is placed on a card. Where there is no driver at all, instances run without, unless one is required."""
    if driver.state is DriverState.ABSENT and module is not None:
        words = f"the driver {module} is loaded, but {driver.sentence}; instances run without a GPU"
        return fail(CHECK, words, "install the driver's libraries (libnvidia-ml1, libcuda1, or the vendor's packages)")
    if driver.state is DriverState.ABSENT and config.gpu.mode == "required":
        return fail(CHECK, f'gpu.mode = "required", and {driver.sentence}', "nvidia-smi")
    if driver.state is DriverState.ABSENT:
        return ok(CHECK, f"{driver.sentence}: instances run without a GPU")
    if driver.state is DriverState.UNKNOWN:
        return fail(CHECK, f"NVML has given no answer in {ASK_S:g} s", "nvidia-smi; dmesg | grep NVRM")
    return fail(CHECK, driver.sentence, "nvidia-smi; dmesg | grep NVRM")


def _driver(driver: DriverView, module: str | None) -> Finding:
    if module is not None and driver.version not in (None, module):
        words = f"NVML is of driver {driver.version}, and the module that is loaded of {module}: one was upgraded"
        return fail(CHECK, words, "reboot the host")
    return ok(CHECK, f"NVML answers: {driver.sentence}")


def _cards(cards: Sequence[CardView], config: Config) -> list[Finding]:
    gpu = config.gpu
    policy = GpuPolicy(int(gpu.memory_gb * GB), int(gpu.reserve_gb * GB), exclude=frozenset(gpu.exclude))
    ours = [card for card in cards if not is_excluded(card, policy)]
    facts = [card.fact for card in ours if card.fact is not None and card.refusal is None]
    usable = [fact for fact in facts if not fact.mig]
    return [
        *(found for card in ours if (found := _trouble(card)) is not None),
        *(
            warn(
                CHECK,
                f"GPU {fact.index} is split by MIG, which is not supported: nothing is placed on it",
                f"nvidia-smi -i {fact.index} -mig 0, or name it in gpu.exclude",
            )
            for fact in facts
            if fact.mig
        ),
        *_persistence(facts),
        *([_fit(usable, policy, gpu.memory_gb)] if ours else [_all_excluded(cards)]),
    ]


def _trouble(card: CardView) -> Finding | None:
    hint = f"nvidia-smi -q -i {card.uuid or card.index}; dmesg | grep NVRM"
    if card.silent_since is not None:
        return fail(CHECK, f"NVML's calls about GPU {card.index} do not return: nothing is placed on it", hint)
    if card.refusal is not None:
        words = f"GPU {card.index} cannot be asked (NVML: {card.refusal.words}, {card.refusal.code})"
        return fail(CHECK, f"{words}: nothing is placed on it", hint)
    return None


def _persistence(facts: Sequence[GpuFact]) -> list[Finding]:
    off = [str(fact.index) for fact in facts if fact.persistence is False]
    if not off:
        return []
    which = f"GPU{'s'[: len(off) > 1]} {', '.join(off)}"
    sentence = f"persistence mode is off on {which}: a card that nothing uses has to wake first, seconds each time"
    return [warn(CHECK, sentence, "systemctl enable --now nvidia-persistenced, or: nvidia-smi -pm 1")]


def _fit(facts: Sequence[GpuFact], policy: GpuPolicy, need_gb: float) -> Finding:
    """By the whole card: what is in use now may go."""
    rooms = {fact.index: _most(fact) - policy.reserve_bytes for fact in facts}
    fits = {index: room // policy.need_bytes for index, room in rooms.items()}
    if any(fits.values()):
        each = ", ".join(f"{count} on GPU {index}" for index, count in sorted(fits.items()))
        return ok(CHECK, f"instances of gpu.memory_gb = {need_gb:g}: {each}")
    largest = f"; the largest has {max(rooms.values()) / GB:.1f}" if rooms else ": there is none that can be used"
    words = f"gpu.memory_gb = {need_gb:g} fits on no GPU{largest}"
    return fail(CHECK, words, "gpu.memory_gb is what one instance needs: ChatGLM-6B FP16 13, INT8 8, INT4 6 (QUANTIZE)")


def _most(fact: GpuFact) -> int:
    return fact.memory_total_bytes - (fact.memory_reserved_bytes or 0)


def _all_excluded(cards: Sequence[CardView]) -> Finding:
    words = f"gpu.exclude leaves {'the only GPU' if len(cards) == 1 else f'all {len(cards)} GPUs'} to others"
    return fail(CHECK, f"{words}: no instance starts", 'gpu.exclude, or gpu.mode = "off"')


def _toolkit(engine: Engine, root: Path) -> Finding:
    if "nvidia" in engine.info.get("Runtimes", {}) or _cdi(root):
        return ok(CHECK, "dockerd can give containers a GPU")
    tool = next((name for name in TOOLS if shutil.which(name)), None)
    if tool is None:
        return fail(CHECK, "the NVIDIA container toolkit is not installed: no container gets a GPU", INSTALL)
    return warn(
        CHECK,
        f"{tool} is here, but dockerd has no runtime nvidia",
        "nvidia-ctk runtime configure --runtime=docker, then: systemctl restart docker",
    )


def _cdi(root: Path) -> bool:
    return any((root / folder).glob("*nvidia*") for folder in ("etc/cdi", "var/run/cdi") if (root / folder).is_dir())


def _daemon_reload(engine: Engine, root: Path) -> list[Finding]:
    """With this driver systemd writes a container's device rules anew, and knows nothing of what a hook allowed."""
    if engine.cgroup_driver != "systemd" or _cdi(root):
        return []
    if any((root / "dev/char").glob("195:*")):  # 195: the major number of /dev/nvidia*
        return [ok(CHECK, "/dev/char has links to the GPUs: containers keep them over `systemctl daemon-reload`")]
    return [
        warn(
            CHECK,
            "cgroup driver systemd without links in /dev/char: `systemctl daemon-reload` takes the GPU from containers",
            "nvidia-ctk system create-dev-char-symlinks --create-all",
        )
    ]

"""GPUs for containers: driver, container toolkit, and what is known to take a GPU from a running container."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from hasupervisor.config import Config
from hasupervisor.doctor.engine import Engine
from hasupervisor.doctor.finding import Finding, fail, ok, warn

CHECK = "gpu"
INSTALL = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
TOOLS = ("nvidia-container-runtime-hook", "nvidia-ctk", "nvidia-container-runtime")


def examine(config: Config, engine: Engine | None, root: Path = Path("/")) -> list[Finding]:
    """`root` is where the host's /proc, /dev and /etc are; `engine` None: it does not answer, or is not used."""
    if config.gpu.mode == "off":
        return [ok(CHECK, "gpu.mode = off: instances run without one")]
    driver = _driver(root)
    if driver is None:
        if config.gpu.mode == "required":
            return [fail(CHECK, 'gpu.mode = "required", and no NVIDIA driver is loaded', "nvidia-smi")]
        return [ok(CHECK, "no NVIDIA driver is loaded: instances run without a GPU")]
    findings = [ok(CHECK, f"NVIDIA driver {driver}")]
    if engine is not None and engine.local:
        findings += [_toolkit(engine, root), *_daemon_reload(engine, root)]
    return findings


def _driver(root: Path) -> str | None:
    """The version of the loaded kernel module, as /proc/driver/nvidia/version has it; None: it is not loaded."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return found[1] if found else "of a version that it does not tell"


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

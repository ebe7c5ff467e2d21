"""What a real NVIDIA GPU shows: our NVML reader beside nvidia-smi, then the whole daemon with models on the card.

    python bench/real_gpu.py [--memory-gb 40] [--seconds 20]

Needs a GPU that has no other tenant and room for two instances of `--memory-gb`; nginx is used where it is installed.
The tests have a double of NVML; this shows that the double tells the truth. Exits 1 where a figure differs or a promise
is not kept, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # what starts a daemon is the tests' own

from bench.daemon import free_ports  # noqa: E402
from tests.real.daemon import Daemon, Settings, daemon, in_short, one  # noqa: E402

FIELDS = ("uuid", "index", "name", "pci.bus_id", "memory.total", "memory.used", "utilization.gpu", "temperature.gpu")
READER = ROOT / "hasupervisor" / "observe" / "gpu_child.py"
MIB, GIB = 1 << 20, 1 << 30
NEAR_MIB, NEAR_C = 64, 3  # what two readings half a second apart may differ by on an idle card
FIRST_START_S = 120.0  # the embedded model is trained on the first start
ASK_S = 60.0

Words = dict[str, Any]


def by_nvidia_smi() -> list[dict[str, str]]:
    """nvidia-smi's own figures of every GPU: memory in MiB, utilization in percent, temperature in °C."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60.0).stdout
    return [dict(zip(FIELDS, (cell.strip() for cell in line.split(",")), strict=True)) for line in out.splitlines()]


def by_reader() -> list[Words]:
    """What our reader says of every GPU in its first round. It is ended afterwards."""
    reader = subprocess.Popen([sys.executable, "-I", str(READER), "0.5", "0.5", ""], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    found: list[Words] = []
    try:
        for line in reader.stdout:
            said = json.loads(line)
            if "card" in said:
                found.append(said["card"])
            if "down" in said or "refused" in said:
                raise RuntimeError(f"the reader could not read: {line.strip()}")
            if "end" in said:
                return found
        raise RuntimeError(f"the reader ended by itself with {reader.wait(5.0)}")
    finally:
        reader.kill()
        reader.wait(10.0)


def differences(smi: dict[str, str], ours: Words) -> list[str]:
    """Where the two readings of one GPU differ, in words."""
    used = (ours["memory_total"] - ours["memory_free"] - (ours["memory_reserved"] or 0)) / MIB
    checks = (
        ("uuid", smi["uuid"], ours["uuid"], smi["uuid"] == ours["uuid"]),
        ("index", smi["index"], ours["index"], int(smi["index"]) == ours["index"]),
        ("name", smi["name"], ours["name"], smi["name"] == ours["name"]),
        ("bus", smi["pci.bus_id"], ours["bus"], smi["pci.bus_id"].upper() == ours["bus"].upper()),
        (
            "memory total MiB",
            smi["memory.total"],
            ours["memory_total"] // MIB,
            abs(float(smi["memory.total"]) - ours["memory_total"] / MIB) < 1,
        ),
        (
            "memory used MiB",
            smi["memory.used"],
            f"{used:.0f}",
            abs(float(smi["memory.used"]) - used) <= NEAR_MIB,
        ),
        (
            "temperature",
            smi["temperature.gpu"],
            ours["temperature_c"],
            abs(float(smi["temperature.gpu"]) - float(ours["temperature_c"])) <= NEAR_C,
        ),
    )
    for what, theirs, own, _ in checks:
        print(f"  {what:18} nvidia-smi {theirs!s:44} reader {own}")
    return [f"{what}: nvidia-smi says {theirs}, the reader {own}" for what, theirs, own, same in checks if not same]


def compare() -> list[str]:
    """Reads every GPU both ways, at about the same time."""
    smi, ours = by_nvidia_smi(), by_reader()
    if len(smi) != len(ours):
        return [f"nvidia-smi lists {len(smi)} GPUs, the reader {len(ours)}"]
    return [words for theirs, own in zip(smi, ours, strict=True) for words in differences(theirs, own)]


def own_gateway() -> Settings:
    """Without nginx on the machine the instances are asked directly."""
    return {} if shutil.which("nginx") else {"nginx": {"mode": "off", "listen": None, "dir": None}}


def cpu_of_reader(host: Daemon, seconds: float) -> float:
    """The share of a core that the reader uses on this driver."""
    reader = next(c for c in psutil.Process(host.pid).children() if "gpu_child.py" in " ".join(c.cmdline()))
    before = sum(reader.cpu_times()[:2])
    time.sleep(seconds)
    return float(sum(reader.cpu_times()[:2]) - before) / seconds


def answers(endpoint: str) -> str:
    """One prompt's answer; an HTTP error raises."""
    reply = httpx.post(f"http://{endpoint}/", json={"prompt": "你好", "history": []}, timeout=ASK_S)
    reply.raise_for_status()
    text: str = reply.json()["response"]
    return text


def live(host: Daemon, seconds: float, memory_gb: float) -> list[str]:
    """Two models on the card: placed, answering, seen on it, one killed and healed, no third beyond the room."""
    wrong: list[str] = []
    try:
        status = host.wait_until_green(2, within=FIRST_START_S)
    finally:
        if host.status()["health"] != "green":
            print(_hactl(host, "logs", "chatglm-01", "-n", "40").stdout)
    print(in_short(status))
    card = status["gpus"][0]
    shown = ("name", "memory_total_bytes", "memory_used_bytes", "utilization", "temperature_c", "state", "instances")
    print(json.dumps({k: card[k] for k in shown}))
    if sorted(card["instances"]) != ["chatglm-01", "chatglm-02"]:
        wrong.append(f"the card shows {card['instances']} instead of both instances")
    smi = by_nvidia_smi()[0]
    print(f"  nvidia-smi memory used {smi['memory.used']} MiB, status {card['memory_used_bytes'] / MIB:.0f} MiB")
    if abs(float(smi["memory.used"]) - card["memory_used_bytes"] / MIB) > NEAR_MIB:
        wrong.append("status and nvidia-smi differ in the memory used")
    for name in ("chatglm-01", "chatglm-02"):
        print(f"  {name} answers {answers(one(status, name)['endpoint'])[:40]!r}")
    print(f"the reader uses {100 * cpu_of_reader(host, seconds):.3f} % of a core on this driver")

    began = time.monotonic()
    os.kill(one(status, "chatglm-01")["pid"], signal.SIGKILL)
    host.wait_for(lambda s: one(s, "chatglm-01")["restarts"] == 1 and s["health"] == "green", within=FIRST_START_S)
    print(f"chatglm-01 killed: green again after {time.monotonic() - began:.1f} s")

    too_many = str(int(card["memory_total_bytes"] / GIB / memory_gb) + 1)
    refused = _hactl(host, "scale", too_many)
    print(f"scale {too_many}: exit {refused.returncode}: {(refused.stdout + refused.stderr).strip()[:200]}")
    if refused.returncode != 5:
        wrong.append(f"scale {too_many} was not refused, though the card has no room for so many")
    listed = _hactl(host, "gpu", "list")
    print(listed.stdout.rstrip())
    return wrong


def _hactl(host: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from hasupervisor.ctl.main import main; main()"  # where the package is not installed
    command = [sys.executable, "-c", program, "--socket", str(host.socket), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, cwd=ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(description="What a real GPU shows, beside nvidia-smi.")
    parser.add_argument("--memory-gb", type=float, default=40.0, help="what one instance is promised, GiB")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the reader's CPU is watched")
    options = parser.parse_args()
    if shutil.which("nvidia-smi") is None:
        print("no nvidia-smi here: this needs a machine with an NVIDIA GPU and its driver", file=sys.stderr)
        return 2
    wrong = compare()
    gpu: Settings = {"gpu": {"mode": "required", "memory_gb": options.memory_gb}}
    with daemon(free_ports(20), own_gateway(), gpu, {"health": {"start_timeout": FIRST_START_S}}) as host:
        # The packages need not be installed there: the instances find them where this program does.
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        host.configure({"process": {"env": {"MODEL_CACHE": str(host.folder / "models"), "PYTHONPATH": path}}})
        host.start(program=(sys.executable, "-m", "hasupervisor"))
        wrong += live(host, options.seconds, options.memory_gb)
    for words in wrong:
        print(f"WRONG: {words}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

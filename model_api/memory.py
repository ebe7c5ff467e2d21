"""How much memory there is, how many tokens of past fit into it, and whether the GPU is still there."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from model_api.backends.base import LoadedModel

GPU_SHARE = 0.85  # of what is free after loading; the rest is for the passes' own tensors and fragmentation
RAM_SHARE = 0.5
LEAST_TOKENS = 512  # promised whatever is free: a model that cannot hold so many is found out by its warm-up
DEVICE_FILE = Path("/dev/nvidiactl")  # whoever uses CUDA has opened it


def kv_budget(model: LoadedModel, context: int, max_batch: int) -> int:
    """Tokens of past that memory holds, at most what `max_batch` contexts can use.

    It may be less than a single context: then requests are shorter than what the model could take.
    """
    per_token = max(1, model.kv_bytes_per_token)
    fits = int(free_bytes(model.device) * (GPU_SHARE if model.device.type == "cuda" else RAM_SHARE)) // per_token
    return min(model.decoder.cells(max_batch, context), max(fits, LEAST_TOKENS))


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on `device`: its own free memory and what torch holds unused, or the machine's."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min(_available_ram(), cgroup_room())


def free_on_gpu(device: torch.device) -> int:
    """Free memory of the GPU as the driver counts it, whoever uses it."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def _available_ram() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 30


def cgroup_room(root: Path = Path("/sys/fs/cgroup")) -> int:
    """What the container's limit leaves, in bytes; huge where there is no limit.

    Files that were read (the weights, a moment ago) count as held there, and are given back when memory is wanted.
    """
    for limit, used, stat, prefix in (
        ("memory.max", "memory.current", "memory.stat", ""),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
    ):
        try:
            most, held = (root / limit).read_text().strip(), (root / used).read_text().strip()
            lines = [line.split() for line in (root / stat).read_text().splitlines()]
        except OSError:
            continue
        if most.isdigit() and held.isdigit():
            cache = (f"{prefix}inactive_file", f"{prefix}active_file")
            back = sum(int(words[1]) for words in lines if len(words) == 2 and words[0] in cache)
            return max(0, int(most) - max(0, int(held) - back))
    return 1 << 62


class GpuWatch:
    """The GPU as this process has it, asked for in a thread of its own: a wedged driver answers nobody.

    `free_gb` is its free memory; `lost` why it is gone, for good. A container can lose its GPU while it runs: systemd
    takes the devices away with a daemon-reload, and no restart of the container gives them back, only a new one does.
    Every opening of the device then fails with EPERM, long before a request meets it.
    """

    INTERVAL = 2.0  # seconds

    def __init__(self, free: Callable[[], int], device_file: Path = DEVICE_FILE) -> None:
        """`free`: bytes of memory that are free, by CUDA; raises RuntimeError where CUDA has lost the device."""
        self._free = free
        self._device_file = device_file
        self.free_gb: float | None = None
        self.lost: str | None = None
        threading.Thread(target=self._watch, name="gpu", daemon=True).start()

    def _watch(self) -> None:
        while self.lost is None:
            self.lost = why_taken_away(self._device_file) or self._ask_cuda()
            time.sleep(self.INTERVAL)

    def _ask_cuda(self) -> str | None:
        try:
            self.free_gb = round(self._free() / 1e9, 2)
        except RuntimeError as error:
            from model_api.faults import Fault, classify, first_line

            return None if classify(error) is Fault.MEMORY else f"the GPU is lost: {first_line(error)}"
        return None


def why_taken_away(device_file: Path) -> str | None:
    """Why the container has lost its GPU, or None. Only EPERM says so: a driver in trouble answers otherwise."""
    try:
        os.close(os.open(device_file, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        if error.errno == errno.EPERM:
            return f"the GPU is lost: {device_file}: {error.strerror}; the container has to be made anew"
    except OSError:
        return None
    return None

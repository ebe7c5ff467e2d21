"""How much memory there is, and how many tokens of past fit into it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from model_api.backends.base import LoadedModel

GPU_SHARE = 0.85  # of what is free after loading; the rest is for the passes' own tensors and fragmentation
RAM_SHARE = 0.5


def kv_budget(model: LoadedModel, context: int, max_batch: int) -> int:
    """Tokens of past (rows x longest) that memory holds: at least one context, at most what `max_batch` can use."""
    per_token = max(1, model.kv_bytes_per_token)
    fits = int(free_bytes(model.device) * (GPU_SHARE if model.device.type == "cuda" else RAM_SHARE)) // per_token
    return max(context, min(fits, context * max_batch))


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on `device`: its own free memory and what torch holds unused, or the machine's."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min(_available_ram(), _cgroup_room())


def _available_ram() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 30


def _cgroup_room() -> int:
    """What the container's limit leaves; huge where there is no limit."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            most = Path(limit).read_text().strip()
            held = Path(used).read_text().strip()
        except OSError:
            continue
        if most.isdigit() and held.isdigit():
            return max(0, int(most) - int(held))
    return 1 << 62


class GpuMemory:
    """Free GPU memory, asked for in a thread of its own: a wedged driver answers nobody, and /health must not wait."""

    INTERVAL = 2.0  # seconds

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.free_gb: float | None = None
        threading.Thread(target=self._watch, name="gpu-memory", daemon=True).start()

    def _watch(self) -> None:
        import torch

        while True:
            self.free_gb = round(torch.cuda.mem_get_info(self._device)[0] / 1e9, 2)
            time.sleep(self.INTERVAL)

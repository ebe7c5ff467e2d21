"""A model server whose GPU goes while it runs: its health says so, with the reason, and never waits for the driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_api.health import report
from model_api.memory import GpuWatch, why_taken_away
from model_api.service import Phase, Service
from model_api.settings import from_environment
from tests.model.running import wait_for

GONE = "CUDA error: unknown error\nCUDA kernel errors might be asynchronously reported"


def lost() -> int:
    raise torch.AcceleratorError(GONE)


def full() -> int:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def watch(tmp_path: Path, free: Callable[[], int]) -> GpuWatch:
    device = tmp_path / "nvidiactl"
    device.touch()
    return GpuWatch(free, device)


def test_a_cuda_call_that_fails_says_that_the_gpu_is_lost(tmp_path: Path) -> None:
    gpu = watch(tmp_path, lost)
    assert wait_for(lambda: gpu.lost, "the loss") == "the GPU is lost: AcceleratorError: CUDA error: unknown error"


@pytest.mark.parametrize("there", [True, False], ids=["a device file", "none"])
def test_a_gpu_that_answers_is_not_lost_and_tells_its_free_memory(tmp_path: Path, there: bool) -> None:
    device = tmp_path / "nvidiactl"
    if there:
        device.touch()
    gpu = GpuWatch(lambda: 3_000_000_000, device)
    assert wait_for(lambda: gpu.free_gb, "the memory") == 3.0
    assert gpu.lost is None


def test_memory_that_runs_out_is_no_lost_gpu(tmp_path: Path) -> None:
    assert watch(tmp_path, full)._ask_cuda() is None


def test_a_device_file_that_is_there_or_was_never_there_is_not_taken_away(tmp_path: Path) -> None:
    assert why_taken_away(tmp_path / "nvidiactl") is None
    (tmp_path / "nvidiactl").touch()
    assert why_taken_away(tmp_path / "nvidiactl") is None


def test_the_health_of_a_server_without_its_gpu_is_unhealthy_with_the_reason(tmp_path: Path) -> None:
    service = Service(from_environment({"MODEL_CACHE": str(tmp_path)}))
    service.phase = Phase.SERVING
    assert report(service)[0] == 200
    service._gpu = watch(tmp_path, lost)
    wait_for(service.gpu_lost, "the loss")
    status, body = report(service)
    assert (status, body["status"]) == (503, "unhealthy")
    assert body["reason"] == "the GPU is lost: AcceleratorError: CUDA error: unknown error"

"""What an exception out of a step means: too little memory, a dead device, or a fault of our own."""

from __future__ import annotations

from enum import Enum, auto

import torch

_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
# After any of these every further CUDA call of the process fails: answering errors for hours would be worse than dying.
_DEVICE = (
    "CUDA error",
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
)


class Fault(Enum):
    """What to do about an exception."""

    MEMORY = auto()  # make room, go on
    DEVICE = auto()  # leave: nothing on this device will work again in this process
    OTHER = auto()  # fail what ran, go on


def classify(error: BaseException) -> Fault:
    """The kind of `error`, raised by a forward pass or by sampling."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(mark in text for mark in _MEMORY):
        return Fault.MEMORY
    if isinstance(error, torch.AcceleratorError) or any(mark in text for mark in _DEVICE):
        return Fault.DEVICE
    return Fault.OTHER


def first_line(error: BaseException) -> str:
    """The error in one line, for a log's last line or a client."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"

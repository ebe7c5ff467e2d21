"""Keeps a capability that systemd gave the daemon from what the daemon starts."""

from __future__ import annotations

import ctypes
import os

import structlog

log = structlog.get_logger(__name__)

# linux/prctl.h and linux/capability.h
_PR_CAP_AMBIENT, _IS_SET, _LOWER = 47, 1, 3
CAP_SYSLOG = 34


def keep_from_children(capability: int = CAP_SYSLOG) -> bool:
    """Lowers it in the ambient set, by which alone a program that is not root inherits it; ours stays as it is.

    Returns whether there was something to lower. An instance is a stranger's program: the kernel log is not for it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_CAP_AMBIENT, _IS_SET, capability, 0, 0) != 1:
        return False  # not given, or a kernel without ambient capabilities
    if library.prctl(_PR_CAP_AMBIENT, _LOWER, capability, 0, 0) != 0:
        why = os.strerror(ctypes.get_errno())
        log.warning("instances inherit a capability that is the daemon's alone", number=capability, why=why)
    return True

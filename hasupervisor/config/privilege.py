"""What the kernel lets this process listen on."""

from __future__ import annotations

import re
from pathlib import Path

_CAP_NET_BIND_SERVICE = 10  # its bit, from linux/capability.h


def lowest_port(proc: Path = Path("/proc")) -> int:
    """The lowest TCP port that this process, and one that it starts, may listen on (1 for root, else mostly 1024)."""
    try:
        capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", (proc / "self/status").read_text(), re.MULTILINE)
        if capabilities and int(capabilities[1], 16) >> _CAP_NET_BIND_SERVICE & 1:
            return 1
        return max(1, int((proc / "sys/net/ipv4/ip_unprivileged_port_start").read_text()))
    except OSError:
        return 1  # it cannot be known here; nginx will say it

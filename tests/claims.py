"""Names that are one test run's alone: ports, subnets, whatever two runs on one machine must not both take."""

from __future__ import annotations

import socket


class Claims:
    """Holds names as abstract Unix sockets, which the kernel frees when the run ends."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def __call__(self, name: str) -> bool:
        """Whether the name is ours now; False: another run has it, or this one took it before."""
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0chatglm-ha-test-{name}")
        except OSError:
            claim.close()
            return False
        self._held.append(claim)
        return True

    def close(self) -> None:
        for claim in self._held:
            claim.close()

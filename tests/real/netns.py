"""Another network namespace, joined to this one by a pair of interfaces: another host, as far as sockets go."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Neighbour:
    """`name` for `ip netns exec`; `ours` and `its` are the addresses of the two ends."""

    name: str
    ours: str
    its: str

    def command(self, *words: str) -> list[str]:
        """A command line that runs those words there."""
        return ["ip", "netns", "exec", self.name, *words]

    def join(self, bridge: str, address: str) -> None:
        """Joins it to a bridge of this host too, with an address of that bridge's subnet ("10.0.0.250/24")."""
        device = f"{self.name}b"
        ip("link", "add", device, "type", "veth", "peer", "name", "bridged", "netns", self.name)
        ip("link", "set", device, "master", bridge, "up")
        ip("-n", self.name, "address", "add", address, "dev", "bridged")
        ip("-n", self.name, "link", "set", "bridged", "up")


def device_of(name: str) -> str:
    return f"{name}v"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def neighbour(claim: Callable[[str], bool]) -> Iterator[Neighbour]:
    """A Neighbour that is gone afterwards. Needs root. `claim` as in `own_dockerd`."""
    found = _free(claim)
    device = device_of(found.name)
    try:
        ip("netns", "add", found.name)
        ip("link", "add", device, "type", "veth", "peer", "name", "uplink", "netns", found.name)
        ip("address", "add", f"{found.ours}/24", "dev", device)
        ip("link", "set", device, "up")
        for words in (("address", "add", f"{found.its}/24", "dev", "uplink"), ("link", "set", "uplink", "up")):
            ip("-n", found.name, *words)
        ip("-n", found.name, "link", "set", "lo", "up")
        yield found
    finally:
        _remove(found.name)


def _free(claim: Callable[[str], bool]) -> Neighbour:
    taken = subprocess.run(["ip", "-4", "route", "show", "table", "all"], capture_output=True, text=True, check=True)
    for third in range(96, 128):
        network, name = f"10.213.{third}", f"cghan{third}"
        if not claim(f"subnet-{third}"):
            continue
        _remove(name)  # left by a run that was killed: nobody holds its claim
        if f"{network}." not in taken.stdout:
            return Neighbour(name, f"{network}.1", f"{network}.2")
    raise RuntimeError("no free subnet in 10.213.96.0/19 for another network namespace: ip -4 route")


def _remove(name: str) -> None:
    """Both ends go with the namespace, as soon as nothing runs in it; where it never came about, there is none."""
    if Path("/sys/class/net", device_of(name)).exists():
        ip("link", "delete", device_of(name))
    if Path("/run/netns", name).exists():
        ip("netns", "delete", name)

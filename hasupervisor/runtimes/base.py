"""The one small interface between the supervisor and whatever runs its instances."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from hasupervisor.model import Fact, Problem


class RuntimeTrouble(Exception):
    """The runtime as a whole cannot be asked: "cannot reach dockerd: no answer in 5 s". Says nothing of instances."""


class Refused(RuntimeTrouble):
    """The instances belong to another daemon; the text says to which, and the next command."""


class LaunchFailed(Exception):
    """One instance could not be started; the text says why in the runtime's words, its remains are removed."""


class PortTaken(LaunchFailed):
    """It could not be started because somebody else listens on its port: another port may do."""


class Stuck(Exception):
    """One instance could not be ended or removed within the deadline; its name and port stay taken."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What the supervisor chooses for a start; all else (image, command, volumes) is the adapter's configuration."""

    name: str
    port: int
    gpus: tuple[str, ...] = ()  # UUIDs


class Runtime(Protocol):
    """Starts, lists and ends instances. No method blocks the event loop; every one has a deadline of its own.

    Instances outlive the daemon: `list` after a restart of the daemon shows what runs, by labels or by files of the
    adapter's own, so that nothing has to be remembered elsewhere.
    """

    async def list(self) -> list[Fact]:
        """Every instance of this service, running or ended. Raises RuntimeTrouble."""

    async def ping(self) -> None:
        """Returns when the runtime answers anything at all; cheap enough for every second. Raises RuntimeTrouble.

        It is no more impatient than `list`: slow is not silent.
        """

    async def strangers(self) -> frozenset[str]:
        """Names that look like ours but are not ours (a container without our label). Raises RuntimeTrouble."""

    def problems(self) -> Sequence[Problem]:
        """What is wrong with single instances in the runtime's own books, as of the last list: told in `status`."""

    def changes(self) -> AsyncIterator[str]:
        """Yields the name of an instance each time something happened to it (ended, was paused, was removed).

        It may yield "" for "something was missed, list again". Ends only when `close` is called; a lost stream is
        opened again by the adapter, which then yields "".
        """

    async def start(self, launch: Launch) -> str:
        """Starts a new instance and returns its runtime_id.

        Raises LaunchFailed (PortTaken) or RuntimeTrouble; Stuck when it neither started nor could be removed.
        """

    async def stop(self, name: str, runtime_id: str, grace: float) -> str:
        """SIGTERM, SIGKILL after `grace` seconds, then removes the remains; returns its last output (last lines).

        An instance that is gone already is not an error. Raises Stuck or RuntimeTrouble.
        """

    async def kill(self, name: str, runtime_id: str) -> str:
        """SIGKILL at once, then as `stop`."""

    async def clear(self, name: str, runtime_id: str) -> str:
        """Removes what is left of an ended instance; returns its last output. Raises Stuck or RuntimeTrouble."""

    def logs(self, name: str, lines: int, follow: bool) -> AsyncIterator[str]:
        """The instance's output, line by line without line ends: the last `lines`, then new ones if `follow`.

        Raises KeyError when there is no such instance, RuntimeTrouble when it cannot be asked.
        """

    async def close(self) -> None:
        """Lets go of sockets, threads and tasks; instances are untouched."""

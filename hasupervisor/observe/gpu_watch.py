"""All senses of GPUs together: what NVML shows, what both logs report, and whose the processes are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hasupervisor.model import Fact
from hasupervisor.model.gpu import CardRecord, DriverState, DriverView, Gpus, Incident, KernelLogView, Xid
from hasupervisor.observe.gpu_recall import recall
from hasupervisor.observe.gpus import GpuSense
from hasupervisor.observe.kernel_log import KMSG, KernelLog
from hasupervisor.observe.owners import Owners, Sight
from hasupervisor.runtimes.keeper import boot_id


class GpuWatch:
    """Looks from `start` to `close`; `on_change` is called, in the event loop, when there is something to decide."""

    def __init__(self, on_change: Callable[[], None], kernel_log: Path = KMSG) -> None:
        self._nvml = GpuSense(on_change)
        self._kernel = KernelLog(on_change, kernel_log)
        self._owners = Owners()
        self._boot = boot_id()

    def start(self) -> None:
        """Begins to look; needs a running loop."""
        self._nvml.start()
        self._kernel.start()

    async def close(self) -> None:
        """Looks no more; a process that hangs in the driver is left behind."""
        self._kernel.close()
        await self._nvml.close()

    def look(self, facts: Sequence[Fact], records: Mapping[str, CardRecord]) -> Gpus:
        """All that is known now. Faults are handed out once: whoever looks has to act on them."""
        driver = recall(self._nvml.view(), records, self._boot)
        if not self._owners.comparable:
            driver = _without_processes(driver)
        pids = {process.pid for card in driver.cards if card.fact is not None for process in card.fact.processes}
        dead = frozenset(pid for pid in pids if self._owners.sight(pid) is Sight.GONE)
        owners = self._owners.learn(pids, facts) if pids else {}
        xids = (*self._kernel.take_xids(), *self._nvml.take_xids())
        return Gpus(
            driver=driver,
            kernel_log=self._kernel.view(),
            boot=self._boot,
            records=records,
            incidents=tuple(self._incident(xid, facts) for xid in xids),
            users={pid: name for pid, name in owners.items() if pid not in dead},
            dead=dead,
        )

    def kernel_log(self) -> KernelLogView | None:
        """Whether faults can be heard; None where there are no GPUs to hear of."""
        return self._kernel.view() if self._nvml.view().state is not DriverState.ABSENT else None

    def _incident(self, xid: Xid, facts: Sequence[Fact]) -> Incident:
        if xid.pid is None:
            return Incident(xid)
        owner = self._owners.of(xid.pid, facts)
        return Incident(xid, owner, foreign=owner is None and self._owners.sight(xid.pid) is Sight.SEEN)


def _without_processes(driver: DriverView) -> DriverView:
    """In a pid namespace of our own the driver lists none of the host's processes, or by numbers that we cannot use."""
    cards = (
        card if card.fact is None else replace(card, fact=replace(card.fact, processes=(), processes_at=None))
        for card in driver.cards
    )
    return replace(driver, cards=tuple(cards))

"""A host with graphics cards that are not there: the double of NVML, a kernel log of its own, and the real daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.doubles.nvml.cards import Card, NvmlDouble
from tests.real.daemon import BIN, PATIENT, Daemon, Document, Settings, daemon, wall

GIB = 1 << 30
CLEAR_S = 10.0
NEED: Settings = {"gpu": {"mode": "auto", "memory_gb": 13.0}}
"""One instance a card of 24 GB."""


class GpuHost:
    """The daemon of a test together with the cards that it sees and the kernel log that it reads."""

    def __init__(self, daemon: Daemon, nvml: NvmlDouble, log: Path) -> None:
        self.daemon, self.nvml = daemon, nvml
        self._temperature: int | None = None  # of all cards, once it was told
        os.mkfifo(log)
        # Held open to read as well: what is written while no daemon reads waits for the next one.
        self._log = os.open(log, os.O_RDWR | os.O_NONBLOCK)
        self._environment = {**nvml.environment, "CHATGLM_HA_KERNEL_LOG": str(log)}

    def close(self) -> None:
        os.close(self._log)

    def start(self, program: Sequence[str] = (str(BIN / "chatglm-had"),)) -> None:
        """Starts the daemon with these cards to see. `program`: another one than chatglm-had itself."""
        self.daemon.start(env=self._environment, program=program)

    # --- the cards ----------------------------------------------------------------------------------------------------

    def card(self, uuid: str) -> Card:
        """The card of that UUID."""
        return next(card for card in self.nvml.cards if card.uuid == uuid)

    def index(self, card: Card) -> int:
        """What people call it by."""
        return self.nvml.cards.index(card)

    def mend(self) -> None:
        """All cards are idle and well again, and the daemon has seen it."""
        told = [(card.numbers, card.failing, card.hanging, card.processes) for card in self.nvml.cards]
        mark = {"temperature": self._temperature}
        if self._temperature is not None and all(each == (mark, {}, set(), {}) for each in told):
            return
        for card in self.nvml.cards:
            card.numbers, card.failing, card.hanging, card.processes = {}, {}, set(), {}
        self.wait_until_seen()

    def wait_until_seen(self) -> None:
        """Tells what the cards are now, and waits until the daemon knows it: by a temperature that none of them had."""
        self._temperature = 30 if self._temperature is None else 30 + (self._temperature - 29) % 60
        for card in self.nvml.cards:
            card.numbers["temperature"] = self._temperature
        self.nvml.tell()

        def seen(status: Document) -> bool:
            shown = {gpu["uuid"]: gpu["temperature_c"] for gpu in status["gpus"]}
            return all(shown.get(card.uuid) == self._temperature for card in self.nvml.cards)

        self.daemon.wait_for(seen, "the cards are seen as they are now")

    def occupy(self, *, bytes_: int = 12 * GIB) -> None:
        """NVML lists every instance that runs now on the card that it was given."""
        for card in self.nvml.cards:
            card.processes.clear()
        for instance in self.daemon.status()["instances"]:
            for uuid in instance["gpus"]:
                self.card(uuid).processes[instance["pid"]] = bytes_
        self.wait_until_seen()

    def xid(self, card: Card, code: int, *, pid: int | None = None, words: str = "") -> float:
        """The kernel writes an Xid of that card. Returns when (wall clock)."""
        process = f"pid={pid}, name=python" if pid is not None else "pid='<unknown>', name=<unknown>"
        bus = card.bus.removeprefix("0000").removesuffix(".0").lower()
        return self.kernel(f"NVRM: Xid (PCI:{bus}): {code}, {words or process}")

    def kernel(self, line: str) -> float:
        """The kernel writes a line. Returns when (wall clock)."""
        os.write(self._log, f"4,1,1,-;{line}\n".encode())
        return time.time()

    def clear(self, card: Card) -> None:
        """What `chatglm-hactl gpu clear` asks for; it returns when a cycle has judged the card anew."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.daemon.socket)), timeout=CLEAR_S) as client:
            answer = client.post(f"http://ha/v1/gpus/{card.uuid}/clear", json={})
        assert answer.status_code == 200, answer.text

    # --- where instances are ------------------------------------------------------------------------------------------

    def places(self) -> dict[str, str]:
        """The card of every instance that has one."""
        return places(self.daemon.status())

    def shown(self, card: Card) -> Document:
        """The card as the status document shows it."""
        found: Document = next(gpu for gpu in self.daemon.status()["gpus"] if gpu["uuid"] == card.uuid)
        return found

    def problem_of(self, card: Card, *words: str, within: float = 20.0) -> Document:
        """Waits for a problem of that card that has these words, and returns it."""
        subject = f"GPU {self.index(card)}"

        def told(status: Document) -> Document | None:
            mine = [problem for problem in status["problems"] if problem["subject"] == subject]
            return next((p for p in mine if all(word in p["sentence"] for word in words)), None)

        return self.daemon.wait_for(told, f"{subject} has a problem with {words}", within)

    def no_problem_of(self, card: Card, within: float = 20.0) -> None:
        """Waits until nothing is the matter with that card."""
        subject = f"GPU {self.index(card)}"
        self.daemon.wait_for(
            lambda status: all(problem["subject"] != subject for problem in status["problems"]) and status,
            f"{subject} has no problem",
            within,
        )

    def note_of(self, card: Card, *words: str, since: float = 0.0, within: float = 20.0) -> Document:
        """Waits for an entry of the history about that card that has these words, and returns it."""
        return self.note(f"GPU {self.index(card)}", *words, since=since, within=within)

    def is_since(self, entry: Document, since: float) -> bool:
        """Whether an entry of the history was written then (Unix seconds) or later."""
        return at(entry) >= since - 0.001  # the history has milliseconds

    def note(self, subject: str, *words: str, since: float = 0.0, within: float = 20.0) -> Document:
        """Waits for an entry of the history that has these words, and returns it."""

        def told(_: Document) -> Document | None:
            mine = [e for e in self.daemon.history() if e["subject"] == subject and self.is_since(e, since)]
            return next((e for e in mine if all(word in e["sentence"] for word in words)), None)

        return self.daemon.wait_for(told, f"the history tells of {subject}: {words}", within, every=0.05)


def places(status: Document) -> dict[str, str]:
    """The card of every instance that has one."""
    return {i["name"]: i["gpus"][0] for i in status["instances"] if i["gpus"]}


def at(entry: Document) -> float:
    """Unix seconds of an entry of the history."""
    return wall(entry["at"])


@contextmanager
def gpu_host(ports: range, folder: Path, library: Path, *settings: Settings, cards: int = 8) -> Iterator[GpuHost]:
    """A daemon that is not started yet, on a host with so many idle cards of 24 GB."""
    nvml = NvmlDouble(folder / "nvml", library, cards)
    with daemon(ports, PATIENT, NEED, *settings) as started:
        host = GpuHost(started, nvml, folder / "kmsg")
        try:
            yield host
        finally:
            host.close()

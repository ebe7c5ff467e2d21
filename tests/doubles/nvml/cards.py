"""Graphics cards that are not there: builds the double of libnvidia-ml.so.1 (nvml.c) and says what its cards tell."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"
BUILD_S = 60.0
EVERY = "*"  # every call

LOST, RESET_REQUIRED, UNKNOWN = 15, 16, 999
NOT_LOADED, MISMATCH = 9, 18
"""Values of nvmlReturn_t."""


def build_library(folder: Path) -> Path:
    """Compiles the double into `folder`, which is what LD_LIBRARY_PATH has to name. A second or less."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ("-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", f"-Wl,-soname,{LIBRARY}")
    done = subprocess.run(
        ["gcc", *flags, "-o", str(folder / LIBRARY), str(SOURCE)],
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert done.returncode == 0, f"the double does not compile: {done.stderr}"
    return folder


@dataclass(slots=True)
class Card:
    """What one card tells. `numbers` are named in nvml.c; what is not set is that of an idle NVIDIA L4 with 24 GB."""

    uuid: str
    bus: str
    name: str = "NVIDIA L4"
    numbers: dict[str, int] = field(default_factory=dict)
    processes: dict[int, int] = field(default_factory=dict)  # pid -> bytes, -1: not told
    failing: dict[str, int] = field(default_factory=dict)  # function or EVERY -> nvmlReturn_t
    hanging: set[str] = field(default_factory=set)  # functions, or EVERY
    block: Path | None = None  # every call stats it

    def lines(self) -> list[str]:
        return [
            f"card {self.uuid}",
            f"name {self.name}",
            f"bus {self.bus}",
            *(f"{name} {value}" for name, value in self.numbers.items()),
            *(f"process {pid} {size}" for pid, size in self.processes.items()),
            *(f"fail {function} {code}" for function, code in self.failing.items()),
            *(f"hang {function}" for function in sorted(self.hanging)),
            *([f"block {self.block}"] if self.block is not None else []),
        ]


class NvmlDouble:
    """A machine with `count` cards. Change `cards`, `driver`, `init` or `hanging`, then `tell`."""

    def __init__(self, folder: Path, library: Path, count: int = 2) -> None:
        self._folder = folder
        self._library = library
        self.cards = [Card(f"GPU-00000000-0000-4000-8000-{n:012d}", f"00000000:{n + 1:02X}:00.0") for n in range(count)]
        self.driver = "550.163.01"
        self.init = 0  # nvmlReturn_t of nvmlInit
        self.hanging: set[str] = set()  # functions, whatever their card, or EVERY
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "xids").touch()
        self.tell()

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to find these cards instead of real ones. It counts when the process starts."""
        return {"LD_LIBRARY_PATH": str(self._library), "NVML_DOUBLE": str(self._folder)}

    @property
    def uuids(self) -> tuple[str, ...]:
        return tuple(card.uuid for card in self.cards)

    def tell(self) -> None:
        """The next call sees all of it, or none."""
        lines = [f"driver {self.driver}", f"init {self.init}", *(f"hang {function}" for function in self.hanging)]
        for card in self.cards:
            lines += card.lines()
        beside = self._folder / "cards.new"
        beside.write_text("\n".join(lines) + "\n")
        beside.replace(self._folder / "cards")

    def xid(self, card: Card, code: int) -> None:
        """An Xid happens on that card now."""
        with (self._folder / "xids").open("ab") as file:
            os.write(file.fileno(), f"{card.uuid} {code}\n".encode())

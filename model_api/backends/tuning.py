"""What was trained on top of a model and is put onto it while it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tuning:
    """Paths of checkpoints; None: there is none."""

    ptuning: Path | None = None  # P-Tuning v2
    lora: Path | None = None  # peft's LoRA

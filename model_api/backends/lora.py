"""LoRA adapters in peft's format, merged into the weights while these are loaded: W + scale x B A."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_api.backends.base import LoadError
from model_api.backends.weights import read_file

FILES = ("adapter_model.safetensors", "adapter_model.bin")
PART = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])(\.default)?\.weight")


@dataclass(frozen=True, slots=True)
class Pair:
    """What is added to one weight, in two factors: `down` [rank, columns], `up` [rows, rank]."""

    down: Tensor
    up: Tensor
    scale: float


class Adapter:
    """An adapter's changes by the name of the module whose weight they change."""

    def __init__(self, path: Path) -> None:
        """Reads an adapter's directory; raises LoadError with what in it is missing or unsupported."""
        self.path = path
        config = _read_config(path)
        self._transposed = bool(config.get("fan_in_fan_out"))
        self._base = str(config.get("base_model_name_or_path") or "a model that it does not name")
        file = next((path / name for name in FILES if (path / name).is_file()), None)
        if file is None:
            raise LoadError(f"LORA_PATH={path}: neither {FILES[0]} nor {FILES[1]} is there")
        self.pairs = _pairs(path, read_file(file), config)

    def check(self, modules: Iterable[str]) -> None:
        """Raises LoadError unless the model has every module that is changed; `modules`: the model's."""
        strangers = sorted(self.pairs.keys() - set(modules))
        if strangers:
            raise LoadError(
                f"{self._whose()}: this model has no {', '.join(strangers[:3])}"
                f"{f' and {len(strangers) - 3} more' if len(strangers) > 3 else ''}"
            )

    def merged(self, module: str, weight: Tensor) -> Tensor:
        """A module's weight with its change, computed in float32; raises LoadError where it does not fit."""
        pair = self.pairs.get(module)
        if pair is None:
            return weight
        change = pair.up.float() @ pair.down.float() * pair.scale
        change = (change.T if self._transposed else change).to(weight.device)
        if change.shape != weight.shape:
            raise LoadError(f"{self._whose()}: {module} is {list(weight.shape)} here and {list(change.shape)} there")
        return (weight.float() + change).to(weight.dtype)

    def merge_into(self, model: nn.Module) -> None:
        """Changes the weights of a loaded model; raises LoadError."""
        modules = dict(model.named_modules())
        weights = {name: module.weight for name, module in modules.items() if isinstance(_weight(module), Tensor)}
        self.check(weights)
        with torch.no_grad():
            for module in self.pairs:
                weight: Any = weights[module]
                weight.copy_(self.merged(module, weight))

    def _whose(self) -> str:
        return f"LORA_PATH={self.path}: the adapter was made for another model ({self._base}); set MODEL_PATH to it"


def _weight(module: nn.Module) -> object:
    return getattr(module, "weight", None)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"cannot read {file}: {error}; LORA_PATH must be an adapter's directory, as peft saves it"
        ) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise LoadError(f"{file}: peft_type {kind!r} is not supported, only 'LORA'; P-Tuning v2: set PTUNING_PATH")
    for key in ("use_dora", "modules_to_save", "trainable_token_indices"):
        if config.get(key):
            raise LoadError(f"{file}: {key} is not supported; merge the adapter with peft's merge_and_unload() first")
    return config


def _pairs(path: Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> dict[str, Pair]:
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = PART.fullmatch(name)
        if match is None:
            words = f"LORA_PATH={path}: {name} is no plain LoRA matrix"
            raise LoadError(f"{words}; merge the adapter with peft's merge_and_unload() first")
        halves.setdefault(match["module"], {})[match["part"]] = tensor
    pairs = {}
    for module, parts in halves.items():
        if parts.keys() != {"A", "B"} or parts["A"].shape[0] != parts["B"].shape[1]:
            raise LoadError(f"LORA_PATH={path}: {module} has not both its matrices; copy the adapter again")
        pairs[module] = Pair(parts["A"], parts["B"], _scale(config, module, parts["A"].shape[0]))
    if not pairs:
        raise LoadError(f"LORA_PATH={path}: the adapter is empty")
    return pairs


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """lora_alpha over the rank, or over its root; patterns give single modules an alpha of their own."""
    alpha = config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = own
            break
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def merging(adapter: Adapter, tensors: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """Published tensors, those that `adapter` changes with their change; raises LoadError where it does not fit."""
    for name, tensor in tensors:
        module, _, kind = name.rpartition(".")
        yield name, adapter.merged(module, tensor) if kind == "weight" else tensor

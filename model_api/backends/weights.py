"""The tensors of a directory by their published names, and putting them into a model, each in its place or none."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model_api.backends.base import LoadError
from model_api.backends.checks import check_loading
from model_api.backends.quantised import RowQuantised, dequantise, quantise

SINGLE = ("model.safetensors", "pytorch_model.bin")
SCALE = ".weight_scale"  # how the name of a quantised weight's scale ends
POINTER = b"version https://git-lfs"  # what git leaves in place of a large file that was not fetched

Renamed = Iterable[tuple[str, Tensor]]


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a directory's weights, safetensors where there are both; raises LoadError."""
    for single in SINGLE:
        index = directory / f"{single}.index.json"
        if index.is_file():
            return [present(directory / name) for name in _shards(index)]
        if (directory / single).is_file():
            return [present(directory / single)]
    raise LoadError(f"{directory}: no weights: neither {SINGLE[0]} nor {SINGLE[1]} is there, nor the index of shards")


def _shards(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"cannot read {index}: {type(error).__name__}: {error}; copy the file again") from None
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside or not names:
        raise LoadError(f"{index} names no files of its own directory; copy the file again")
    return sorted(names)


def present(file: Path) -> Path:
    """`file`, if it is there and is itself; raises LoadError."""
    if not file.is_file():
        raise LoadError(f"{file} is missing; copy the whole directory")
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise LoadError(f"{file} is only git's pointer to the file; run `git lfs pull` in {file.parent}")
    return file


def open_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a directory by name. They stay in their files until they are used; raises LoadError."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(directory):
        tensors.update(read_file(file))
    return tensors


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one file. A .bin may hold tensors and nothing else: no code in it is run; raises LoadError."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise LoadError(f"{file} holds more than tensors, or is damaged, and is not read: {_line(error)}") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise LoadError(f"cannot read {file}: {_line(error)}; copy the file again") from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise LoadError(f"{file} is no table of tensors")
    return dict(found)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def multiplied_out(tensors: Mapping[str, Tensor], bits: int, but: str = "") -> Renamed:
    """`tensors` one by one without the published INT8 and INT4: a weight that has a scale becomes float32.

    Those with `but` in their name stay as they are.
    """
    for name, tensor in tensors.items():
        if but and but in name:
            yield name, tensor
        elif not name.endswith(SCALE):
            scale = tensors.get(f"{name}_scale") if name.endswith(".weight") else None
            yield name, tensor if scale is None else dequantise(tensor, scale, bits)


def fill(
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    rename: Callable[[str, Tensor], Renamed],
    directory: Path,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Gives every parameter of `model`, built on the meta device, its tensor; `rename` says which go where.

    Modules that are RowQuantised take whole numbers with their scales as they are, and have others made into such.
    Raises LoadError if a tensor is missing, has no place or has another shape.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    unexpected: list[str] = []
    mismatched: list[str] = []
    seen: set[str] = set()
    for published, tensor in tensors:
        for name, part in rename(published, tensor):
            for target, value in _fitted(model, name, part, dtype, device):
                if target not in expected:
                    unexpected.append(published)
                elif value.shape != expected[target]:
                    mismatched.append(f"{published} {list(value.shape)} for {list(expected[target])}")
                    seen.add(target)
                else:
                    _put(model, target, value)
                    seen.add(target)
    missing = expected.keys() - seen
    check_loading(
        {"missing_keys": missing, "unexpected_keys": set(unexpected), "mismatched_keys": mismatched}, directory
    )


def _fitted(
    model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device
) -> Iterable[tuple[str, Tensor]]:
    """What a tensor becomes in the model: itself on the device in the model's dtype, or quantised with its scale.

    Always a copy: what is left in a mapped file would be lost with the file.
    """
    owner, _, last = name.rpartition(".")
    module = _module(model, owner)
    if isinstance(module, RowQuantised) and last == "weight":
        if tensor.is_floating_point():
            whole, scale = quantise(tensor.to(device), module.bits, dtype)
            return ((name, whole), (f"{name}_scale", scale))
        return ((name, tensor.to(device, copy=True)),)
    return ((name, tensor.to(device, dtype, copy=True)),)


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    if last in module._buffers:
        module._buffers[last] = value
    else:
        module._parameters[last] = nn.Parameter(value, requires_grad=False)

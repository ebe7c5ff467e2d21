"""From a model directory to a model that has proven it answers."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch

from model_api import embedded
from model_api.backends.base import LoadedModel, LoadError
from model_api.backends.proof import prove
from model_api.backends.tuning import Tuning
from model_api.manifest import DamagedModel, check_files
from model_api.settings import Settings

log = logging.getLogger(__name__)

SMALL = 20_000_000  # parameters under which one thread beats several


def load_model(settings: Settings) -> LoadedModel:
    """The model that `settings` name, on the GPU where there is one. Raises LoadError, DamagedModel or OSError."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    _check_precision(settings, device)
    if settings.model_path is not None:
        directory = settings.model_path
        checked = check_files(directory)
    else:
        directory, checked = _embedded(settings.model_cache)
    config = _read_config(directory)
    dtype = _dtype(settings.dtype, config, device)
    tuning = Tuning(settings.ptuning_path, settings.lora_path)
    checked += sum(check_files(path) for path in (tuning.ptuning, tuning.lora) if path and path.is_dir())
    model = _backend(directory, config, dtype, device, settings.quantize, tuning)
    _use_cores(model)
    prove(model)
    log.info(
        "loaded %s: %s, %.1f M parameters, %s on %s, %d tokens of context, %s",
        directory,
        model.family,
        model.parameters / 1e6,
        f"int{settings.quantize}" if settings.quantize else str(dtype).removeprefix("torch."),
        device,
        model.context,
        f"{checked} checksums right" if checked else "no SHA256SUMS to compare with",
    )
    return model


def _check_precision(settings: Settings, device: torch.device) -> None:
    if settings.quantize and device.type != "cuda":
        raise LoadError(f"QUANTIZE={settings.quantize} needs a CUDA GPU and none is visible; unset QUANTIZE")


def _embedded(cache: Path) -> tuple[Path, int]:
    try:
        directory = embedded.ensure_embedded(cache)
    except OSError as error:
        raise LoadError(
            f"cannot build the embedded model in {cache}: {error.strerror or error}; "
            "set MODEL_CACHE to a directory that can be written, or MODEL_PATH to a model"
        ) from None
    try:
        return directory, check_files(directory)
    except DamagedModel as error:
        log.warning("building the embedded model again: %s", error)
    try:
        embedded.discard_embedded(directory)
        directory = embedded.ensure_embedded(cache)
    except OSError as error:
        words = f"the embedded model in {directory} is damaged and cannot be built again: {error.strerror or error}"
        raise LoadError(f"{words}; remove the directory") from None
    return directory, check_files(directory)


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read {file}: {error}") from None
    if not isinstance(config, dict):
        raise LoadError(f"{file} is not a JSON object")
    return config


def _dtype(wanted: str, config: dict[str, Any], device: torch.device) -> torch.dtype:
    """`auto`: on a GPU what the checkpoint was saved in, on a CPU float32, which every CPU computes at full precision.

    CPUs with units for bfloat16 are quicker at that, several rows at once most of all, and need half the memory.
    """
    if wanted == "auto":
        saved = str(config.get("dtype") or config.get("torch_dtype") or "float16")
        wanted = saved if device.type == "cuda" else "float32"
    dtype = getattr(torch, wanted.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise LoadError(f"config.json names an unknown dtype {wanted!r}; set DTYPE")
    return dtype


def _backend(
    directory: Path, config: dict[str, Any], dtype: torch.dtype, device: torch.device, bits: int, tuning: Tuning
) -> LoadedModel:
    try:
        if config.get("model_type") == "chatglm":
            from model_api.backends import glm_family

            return glm_family.load(directory, config, dtype, device, bits, tuning)
        from model_api.backends import native

        return native.load(directory, config, dtype, device, bits, tuning)
    except (LoadError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Whatever transformers and safetensors raise over a broken directory: one sentence with the directory's name.
        raise LoadError(f"cannot load {directory}: {type(error).__name__}: {error}") from error


def _use_cores(model: LoadedModel) -> None:
    if model.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if model.parameters < SMALL else len(os.sched_getaffinity(0)))

"""What the server is told by its environment, checked as a whole before anything starts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

DTYPES = {
    "auto": "auto",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float32": "float32",
    "fp32": "float32",
}


class SettingsError(Exception):
    """One or more variables are wrong; each line names the variable and what was meant."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment of CONTRACT 3, parsed. Times are seconds, `max_context` is tokens (None: the model's own)."""

    model_path: Path | None  # None: the embedded tiny GLM
    model_name: str
    model_cache: Path
    ptuning_path: Path | None = None  # a P-Tuning v2 checkpoint on top of the model
    lora_path: Path | None = None  # a LoRA adapter to be merged into the model
    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one, named in the log
    dtype: str = "auto"
    quantize: int = 0  # bits: 0 (off), 8 or 4
    max_batch: int = 8  # requests decoded together
    max_queue: int = 32  # accepted requests that wait for a place in the batch
    max_wait: float = 60.0
    max_context: int | None = None
    api_keys: frozenset[str] = frozenset()  # empty: open to all who reach the port
    grace: float = 30.0  # from SIGTERM to leaving with requests unfinished
    drill: bool = False  # whether it may be told to be sick, see drill.py


class _Reader:
    """Reads variables one by one and keeps every complaint, so that all of them are told at once."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.complaints: list[str] = []

    def read(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        """The parsed value; an unset or empty variable means `default`. `parse` raises ValueError, what was meant."""
        text = self._env.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self.complaints.append(f"{name}={text!r}: {error}")
            return default


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"a whole number from {least} to {most} was meant") from None
        if not least <= value <= most:
            raise ValueError(f"must be from {least} to {most}")
        return value

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("a number of seconds was meant") from None
    if not math.isfinite(value) or not 0 <= value <= 86400:
        raise ValueError("must be from 0 to 86400 seconds")
    return value


def _dtype(text: str) -> str:
    if text.lower() not in DTYPES:
        raise ValueError(f"must be one of {', '.join(DTYPES)}")
    return DTYPES[text.lower()]


def _quantize(text: str) -> int:
    if text not in ("0", "4", "8"):
        raise ValueError("must be 0 (off), 8 or 4 (bits)")
    return int(text)


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 (off) or 1 (on)")
    return text == "1"


def _model_directory(text: str) -> Path | None:
    path = Path(text)
    if not path.is_dir():
        raise ValueError("no such directory; mount the model there, or leave MODEL_PATH empty for the embedded model")
    if not (path / "config.json").is_file():
        raise ValueError("has no config.json, so it is not a model directory")
    return path


def _checkpoint(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise ValueError("no such directory or file; mount the P-Tuning v2 checkpoint there, or unset PTUNING_PATH")
    return path


def _adapter(text: str) -> Path:
    path = Path(text)
    if not (path / "adapter_config.json").is_file():
        raise ValueError("has no adapter_config.json; an adapter's directory was meant, as peft saves it")
    return path


def _keys_from(text: str) -> frozenset[str]:
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"cannot read the key file: {reason}") from None
    keys = frozenset(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise ValueError("the key file has no key in it (one a line)")
    return keys


def default_cache(env: Mapping[str, str]) -> Path:
    """Where the embedded model is kept when MODEL_CACHE does not say: the user's cache directory."""
    base = env.get("XDG_CACHE_HOME", "").strip()
    if base and Path(base).is_absolute():
        return Path(base) / "chatglm-ha"
    return Path(env.get("HOME", "").strip() or tempfile.gettempdir()) / ".cache" / "chatglm-ha"


def from_environment(env: Mapping[str, str]) -> Settings:
    """Settings out of `env`; raises SettingsError with one line for every variable that is wrong."""
    reader = _Reader(env)
    read = reader.read
    model_path = read("MODEL_PATH", None, _model_directory)
    settings = Settings(
        model_path=model_path,
        model_name=read("MODEL_NAME", model_path.resolve().name if model_path else "chatglm-tiny", str),
        ptuning_path=read("PTUNING_PATH", None, _checkpoint),
        lora_path=read("LORA_PATH", None, _adapter),
        model_cache=read("MODEL_CACHE", default_cache(env), Path),
        host=read("HOST", "127.0.0.1", str),
        port=read("PORT", 8000, _whole(0, 65535)),
        dtype=read("DTYPE", "auto", _dtype),
        quantize=read("QUANTIZE", 0, _quantize),
        max_batch=read("MAX_BATCH", 8, _whole(1, 1024)),
        max_queue=read("MAX_QUEUE", 32, _whole(0, 100_000)),
        max_wait=read("MAX_WAIT", 60.0, _seconds),
        max_context=read("MAX_CONTEXT", None, _whole(16, 10_000_000)),
        api_keys=read("API_KEY_FILE", frozenset[str](), _keys_from) | read("API_KEY", frozenset[str](), _one_key),
        grace=read("GRACE", 30.0, _seconds),
        drill=read("DRILL", False, _switch),
    )
    if reader.complaints:
        raise SettingsError("\n".join(reader.complaints))
    return settings


def _one_key(text: str) -> frozenset[str]:
    return frozenset((text,))

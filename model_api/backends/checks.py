"""Did the weights arrive whole? What transformers only warns of, this server refuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from model_api.backends.base import LoadError

# Older checkpoints carry these computed tables; the models compute them again.
HARMLESS = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")


def check_loading(info: Mapping[str, Any], directory: Path) -> None:
    """Raises LoadError if a tensor was missing (it would be random numbers), unexpected, or of another shape."""
    missing = sorted(info.get("missing_keys") or ())
    unexpected = sorted(key for key in info.get("unexpected_keys") or () if not key.endswith(HARMLESS))
    mismatched = sorted(str(_name(key)) for key in info.get("mismatched_keys") or ())
    errors = [str(error) for error in info.get("error_msgs") or ()]
    complaints = [
        f"{words}: {_some(names)}"
        for words, names in (
            ("missing tensors, which would be random numbers", missing),
            ("tensors that the model has no place for", unexpected),
            ("tensors of another shape than config.json says", mismatched),
            ("errors", errors),
        )
        if names
    ]
    if complaints:
        raise LoadError(f"{directory}: the weights do not fit the model; {'; '.join(complaints)}")


def _name(key: object) -> object:
    """A mismatched key's name: some versions give (name, shape, shape)."""
    return key[0] if isinstance(key, (tuple, list)) else key


def _some(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"

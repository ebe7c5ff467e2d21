"""Turns what pydantic found wrong with one value into the sentence for a person."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from pydantic_core import ErrorDetails

from hasupervisor.config.schema import expected_text
from hasupervisor.config.values import MASK, looks_secret, toml

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|sec|m|min|h)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}


def sentence(error: ErrorDetails) -> str:
    """What is wrong and what was expected, without place and key."""
    value, kind, context = error["input"], error["type"], error.get("ctx", {})
    if len(error["loc"]) > 2 and looks_secret(str(error["loc"][-1])):
        value = MASK
    match kind:
        case "value_error":
            return str(context["error"])
        case "string_type":
            return expected_text(value)
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "int_type" | "int_from_float":
            return f"expected a whole number, got {toml(value)}"
        case "float_type":
            return f"expected a number, got {toml(value)}{_in_seconds(value)}"
        case "bool_type":
            return f"expected true or false, got {toml(value)}"
        case "tuple_type":
            return f'expected a list like ["one", "two"], got {toml(value)}'
        case "mapping_type" | "dict_type":
            return f'expected a table like {{ NAME = "value" }}, got {toml(value)}'
        case "literal_error":
            return _one_of(value, str(context["expected"]))
        case "greater_than":
            return f"must be above {context['gt']:g}, got {toml(value)}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}, got {toml(value)}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}, got {toml(value)}"
        case "finite_number":
            return f"expected a finite number, got {toml(value)}"
        case _:
            return f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {toml(value)}"


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    matches = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown_key(section: str, name: str, known: Mapping[str, Iterable[str]]) -> str | None:
    """The "section.key" that was probably meant: a near miss here, or the same word in another section."""
    if near := closest(name, known[section]):
        return near
    return next((f"{other}.{name}" for other, names in known.items() if name in names), None)


def _one_of(value: object, expected: str) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    near = closest(value, choices) if isinstance(value, str) else None
    hint = f"; did you mean {toml(near)}?" if near else ""
    return f"{toml(value)} is not one of {', '.join(choices)}{hint}"


def _in_seconds(value: object) -> str:
    if isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        return f"; times are seconds: write {float(found[1]) * _UNIT_SECONDS[found[2]]:g}"
    if isinstance(value, str) and re.fullmatch(r"[0-9.]+", value):
        return "; write it without quotes"
    return ""

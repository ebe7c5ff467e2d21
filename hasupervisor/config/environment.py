"""Settings from environment variables: CHATGLM_HA_SERVICE__MIN=3 is service.min = 3."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType

from hasupervisor.config.keys import all_keys, field_of
from hasupervisor.config.words import closest
from hasupervisor.model import Address

PREFIX = "CHATGLM_HA_"
# Of the same family, but no settings: chatglm-hactl reads them, and they may stand in the daemon's environment too.
OTHERS = frozenset({"CHATGLM_HA_SOCKET", "CHATGLM_HA_DEBUG", "CHATGLM_HA_KERNEL_LOG"})


def variable_for(key: str) -> str:
    section, _, name = key.partition(".")
    return f"{PREFIX}{section.upper()}__{name.upper()}"


def meant_by(variable: str) -> str | None:
    """The variable that was probably meant; the prefix, which all have in common, proves nothing."""
    near = closest(variable.removeprefix(PREFIX), [variable_for(key).removeprefix(PREFIX) for key in all_keys()])
    return f"{PREFIX}{near}" if near else None


def settings(env: Mapping[str, str]) -> Iterator[tuple[str, str, object]]:
    """(variable, "section.key", value) of each variable with our prefix; the key may be one that does not exist.

    A variable without the double underscore gives the key "".
    """
    known = set(all_keys())
    for variable in sorted(env):
        if not variable.startswith(PREFIX) or variable in OTHERS:
            continue
        section, separator, name = variable.removeprefix(PREFIX).lower().partition("__")
        key = f"{section}.{name}" if separator else ""
        yield variable, key, _value(env[variable], is_text=key in known and _is_text(key))


def _is_text(key: str) -> bool:
    return isinstance(field_of(key).default, str | Path | Address | range | NoneType)


def _value(raw: str, is_text: bool) -> object:
    """A TOML value; what is not one, and whatever belongs to a key of text, is taken as text as it stands."""
    try:
        table = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return raw
    value = table["value"]
    if len(table) > 1 or (is_text and not isinstance(value, str)):
        return raw
    return value

"""Writes the reference from the schema: the commented configuration file, and the page of the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from unicodedata import east_asian_width

from hasupervisor.config.keys import effect_of, field_of, is_used, sections
from hasupervisor.config.schema import Effect
from hasupervisor.config.values import plain, toml

HEADER = """\
# chatglm-ha: every key with its default. Times are seconds. A key may be left out.
# Where a value comes from: command line, then CHATGLM_HA_<SECTION>__<KEY>, then this file, then the default.
# Check it: chatglm-had --config FILE --check      Take it over: chatglm-hactl config reload
"""
_EFFECT_WORDS = {
    Effect.RELOAD: "reload",
    Effect.INSTANCE: "new instances",
    Effect.FIRST_START: "first start",
    Effect.RESTART: "restart",
}
_COLUMN = 44  # where the comments begin
_WIDTH = 118


def commented_file() -> str:
    """A configuration file of nothing but defaults, with the meaning of each key beside or above it."""
    blocks = [HEADER]
    for section, model in sections().items():
        lines = [f"[{section}]  # {_words(model.__doc__)}"]
        for name in model.model_fields:
            lines += _entry(name, f"{section}.{name}")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _entry(name: str, key: str) -> list[str]:
    setting, meaning = f"{name} = {default_text(key)}", _meaning(key)
    gap = _COLUMN - _columns(setting)
    if gap > 0 and _COLUMN + len(meaning) + 2 <= _WIDTH:
        return [f"{setting}{' ' * gap}# {meaning}"]
    return [*(f"# {line}" for line in wrap(meaning, _WIDTH - 2)), setting]


def _columns(text: str) -> int:
    """Its width on a terminal, where a Chinese character takes two columns."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def tables() -> str:
    """The same as Markdown, one table for each section, for docs/configuration.md."""
    return "\n".join(_table(section) for section in sections())


def default_text(key: str) -> str:
    """A key's default as one would write it in the file."""
    return toml(plain(field_of(key).get_default(call_default_factory=True)))


def _table(section: str) -> str:
    return "\n".join([f"## [{section}]", "", _words(sections()[section].__doc__), "", *_rows(section), ""])


def _rows(section: str) -> Iterator[str]:
    yield "| key | default | meaning | a change takes effect |"
    yield "| --- | --- | --- | --- |"
    for name in sections()[section].model_fields:
        key = f"{section}.{name}"
        meaning = _meaning(key).replace("|", "\\|").replace("<", "&lt;")
        yield f"| `{name}` | `{default_text(key)}` | {meaning} | {_EFFECT_WORDS[effect_of(key)]} |"


def _meaning(key: str) -> str:
    return f"{field_of(key).description}{'' if is_used(key) else ' (not used yet)'}"


def _words(docstring: str | None) -> str:
    return (docstring or "").strip()

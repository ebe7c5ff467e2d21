"""Questions about the schema itself: its sections and keys, their defaults, and when a change takes effect."""

from __future__ import annotations

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hasupervisor.config.schema import Config, Effect


def sections() -> dict[str, type[BaseModel]]:
    return {name: type(field.default) for name, field in Config.model_fields.items()}


def all_keys() -> list[str]:
    """Every "section.key", in the order of the reference."""
    return [f"{section}.{name}" for section, model in sections().items() for name in model.model_fields]


def field_of(key: str) -> FieldInfo:
    section, _, name = key.partition(".")
    return sections()[section].model_fields[name]


def value_of(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def effect_of(key: str) -> Effect:
    return Effect(str(_extra(key)["effect"]))


def is_used(key: str) -> bool:
    """False: the feature that uses it does not exist yet."""
    return bool(_extra(key)["used"])


def unused_keys(config: Config) -> list[str]:
    """What somebody set to another value than the default, and nothing uses yet: worth a line at start."""
    return [key for key in changed_keys(Config(), config) if not is_used(key)]


def retired_keys(config: Config) -> list[str]:
    """A sentence for each key that somebody set although it does nothing any more."""
    retired = [key for key in changed_keys(Config(), config) if _extra(key)["retired"]]
    return [f"{config.where(key)}: {key} is {field_of(key).description}" for key in retired]


def _extra(key: str) -> dict[str, object]:
    extra = field_of(key).json_schema_extra
    assert isinstance(extra, dict), key
    return dict(extra)


def changed_keys(old: Config, new: Config) -> list[str]:
    """The keys whose values differ, as "section.key", in the order of the reference."""
    return [key for key in all_keys() if value_of(old, key) != value_of(new, key)]


def restart_keys(old: Config, new: Config) -> list[str]:
    """Those of the changed keys that a running daemon cannot take over."""
    return [key for key in changed_keys(old, new) if effect_of(key) is Effect.RESTART]

"""The configuration: one TOML file, checked whole, every mistake told by file, line, key and what was meant."""

from hasupervisor.config.document import DEFAULT_PATH
from hasupervisor.config.keys import changed_keys, restart_keys, retired_keys, unused_keys
from hasupervisor.config.load import load, reload
from hasupervisor.config.problem import ConfigError, Problem
from hasupervisor.config.schema import Config

__all__ = [
    "DEFAULT_PATH",
    "Config",
    "ConfigError",
    "Problem",
    "changed_keys",
    "load",
    "reload",
    "restart_keys",
    "retired_keys",
    "unused_keys",
]

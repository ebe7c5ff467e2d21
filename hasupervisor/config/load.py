"""Reads a configuration from command line, environment, file and defaults, and says all that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from hasupervisor.config import environment, rules, words
from hasupervisor.config.document import DEFAULT_PATH, Document, read_document
from hasupervisor.config.keys import all_keys, restart_keys, sections, value_of
from hasupervisor.config.lines import KeyPath
from hasupervisor.config.privilege import lowest_port
from hasupervisor.config.problem import (
    COMMAND_LINE,
    DEFAULT,
    ConfigError,
    Place,
    Problem,
    file_place,
    variable_place,
)
from hasupervisor.config.schema import Config
from hasupervisor.config.values import toml


def load(
    path: Path | None,
    env: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
    *,
    lowest: int | None = None,
) -> Config:
    """The configuration in force: `overrides` ("section.key": value; the command line) win over `env`, over `path`.

    `path` None is the default path; the file has to exist either way. `lowest` is the lowest port that this process may
    listen on, by default the kernel's answer. Raises ConfigError with all problems.
    """
    reading = _Reading()
    try:
        reading.take_document(read_document(path))
    except ConfigError as error:
        reading.document_problems = error.problems
    reading.take_environment(env)
    reading.take_overrides(overrides or {})
    config = reading.validated()
    reading.apply_rules(config, lowest_port() if lowest is None else lowest)
    if problems := reading.all_problems():
        raise ConfigError(problems)
    config._origins = {f"{section}.{name}": place.text for (section, name), place in reading.places.items()}
    return config


def reload(
    old: Config,
    path: Path | None,
    env: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
    *,
    lowest: int | None = None,
) -> Config:
    """As `load`, for a running daemon: also refuses a change of what only a restart can change. Raises ConfigError."""
    new = load(path, env, overrides, lowest=lowest)
    problems = []
    for key in restart_keys(old, new):
        where = new.where(key)
        was, wanted = toml(value_of(old, key)), toml(value_of(new, key))
        problems.append(
            Problem(
                str(path or DEFAULT_PATH) if where == DEFAULT.text else where,
                key,
                f"{wanted} cannot replace {was} while the daemon runs; restart it (systemctl restart chatglm-ha), "
                f"or write {was} again",
            )
        )
    if problems:
        raise ConfigError(tuple(problems))
    return new


@dataclass
class _Reading:
    """One reading, while the sources are laid over one another."""

    table: dict[str, dict[str, object]] = field(default_factory=dict)
    places: dict[tuple[str, str], Place] = field(default_factory=dict)  # of every key that somebody set
    document: Document | None = None
    document_problems: tuple[Problem, ...] = ()
    problems: list[tuple[Place, Problem]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)  # "section.key" with a wrong value: the rules leave them alone

    # --- sources ---

    def take_document(self, document: Document) -> None:
        self.document = document
        for section, content in document.table.items():
            place = document.place((section,))
            if section not in sections():
                self._report(place, section, _unknown_section(section, content))
            elif not isinstance(content, dict):
                self._report(place, section, _not_a_section(section, content))
            else:
                for name, value in content.items():
                    self._set(section, name, value, document.place((section, name)))

    def take_environment(self, env: Mapping[str, str]) -> None:
        for variable, key, value in environment.settings(env):
            place = variable_place(variable)
            section, _, name = key.partition(".")
            if key in all_keys():
                self._set(section, name, value, place)
                continue
            near = environment.meant_by(variable)
            hint = f"; did you mean {near}?" if near else "; a setting is CHATGLM_HA_<SECTION>__<KEY>"
            self._report(place, key, f"unknown {'key' if key else 'variable'}{hint}")
        if env.get("DOCKER_HOST") and not self.table.get("docker", {}).get("host"):
            self._set("docker", "host", env["DOCKER_HOST"], variable_place("DOCKER_HOST"))

    def take_overrides(self, overrides: Mapping[str, object]) -> None:
        for key, value in overrides.items():
            section, _, name = key.partition(".")
            if section in sections():
                self._set(section, name, value, COMMAND_LINE)
            else:
                self._report(COMMAND_LINE, key, _unknown_section(section, {}))

    def _set(self, section: str, name: str, value: object, place: Place) -> None:
        known = {other: list(model.model_fields) for other, model in sections().items()}
        if name not in known[section]:
            near = words.unknown_key(section, name, known)
            self._report(place, f"{section}.{name}", "unknown key" + (f"; did you mean {near}?" if near else ""))
            return
        self.table.setdefault(section, {})[name] = value
        self.places[section, name] = place

    # --- checks ---

    def validated(self) -> Config:
        """The configuration, with the default in place of every wrong value (each of which is reported)."""
        try:
            return Config.model_validate(self.table)
        except ValidationError as failure:
            found = failure.errors(include_url=False)
            for error in found:
                path = error["loc"]
                if error["type"] == "too_short" and any(
                    other["loc"][: len(path)] == path != other["loc"] for other in found
                ):
                    continue  # it is short of what was refused, which is told
                section, name = str(path[0]), str(path[1])
                deeper = [str(part) for part in path[2:] if isinstance(part, str) and part != "[key]"]
                self._report(self._place(path), ".".join([section, name, *deeper]), words.sentence(error))
                self.broken.add(f"{section}.{name}")
        for key in self.broken:
            section, _, name = key.partition(".")
            self.table[section].pop(name, None)
        return Config.model_validate(self.table)

    def apply_rules(self, config: Config, lowest: int) -> None:
        def cite(key: str) -> str:
            place = self._origin(key)
            source = {DEFAULT.rank: " (the default)", 0: ""}.get(place.rank, f" ({place.text})")
            return f"{key} = {toml(value_of(config, key))}{source}"

        for finding in rules.findings(config, cite, lowest, self.broken):
            involved = {_top(key) for key in (*finding.told, *finding.also)}
            if involved & self.broken:
                continue
            set_by_someone = [key for key in finding.told if self._origin(key) != DEFAULT]
            blamed = (set_by_someone or list(finding.told))[0]
            self._report(self._place(tuple(blamed.split("."))), blamed, finding.told[blamed])

    # --- places ---

    def _origin(self, key: str) -> Place:
        section, name = _top(key).split(".")
        return self.places.get((section, name), DEFAULT)

    def _place(self, path: KeyPath) -> Place:
        origin = self.places.get((str(path[0]), str(path[1])), DEFAULT)
        if origin.rank == 0 and self.document:
            return self.document.place(path)
        if origin == DEFAULT and self.document:
            return file_place(self.document.name)
        return origin

    def _report(self, place: Place, key: str, text: str) -> None:
        self.problems.append((place, Problem(place.text, key, text)))

    def all_problems(self) -> tuple[Problem, ...]:
        ordered = sorted(self.problems, key=lambda entry: entry[0])
        return (*self.document_problems, *(problem for _, problem in ordered))


def _top(key: str) -> str:
    return ".".join(key.split(".")[:2])


def _unknown_section(name: str, content: object) -> str:
    if not isinstance(content, dict | list):
        owners = [section for section, model in sections().items() if name in model.model_fields]
        if owners:
            return f"a key outside of every section; did you mean {owners[0]}.{name}, under [{owners[0]}]?"
        return f"unknown key outside of every section; the sections are {', '.join(sections())}"
    near = words.closest(name, sections())
    return f"unknown section; did you mean [{near}]?" if near else f"unknown section; there are {', '.join(sections())}"


def _not_a_section(name: str, content: object) -> str:
    if isinstance(content, list):
        return f"there is one section of this name; write [{name}]"
    return f"is a section; write [{name}] on a line of its own and its keys below it"

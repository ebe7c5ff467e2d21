"""Mistakes of form: not TOML, keys and sections of nobody, files that cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hasupervisor.config import Config, ConfigError, document, load
from tests.config.conftest import Told

# what is wrong, the file, and the lines that a person reads, without the file's name in front
MISTAKES: list[tuple[str, str, list[str]]] = [
    (
        "a section is not closed",
        "[service\nmin = 2\n",
        ["1: not TOML: expected ']' at the end of a table declaration (column 9)"],
    ),
    (
        "a key in the manner of YAML",
        "[service]\nmin: 3\n",
        ["2: service.min: not TOML: a key and its value are joined by =; write min = 3"],
    ),
    (
        "text without quotes",
        "[service]\n\nruntime = docker\n",
        ['3: service.runtime: not TOML: text stands in quotes; write runtime = "docker"'],
    ),
    (
        "a range without quotes",
        "[service]\nports = 8000-8099\n",
        ['2: service.ports: not TOML: text stands in quotes; write ports = "8000-8099"'],
    ),
    (
        "a secret without quotes is not repeated",
        "[docker.env]\nAPI_KEY = abc123\n",
        ['2: docker.env.API_KEY: not TOML: text stands in quotes; write API_KEY = "***"'],
    ),
    ("no value", "[service]\nmin =\n", ["2: service.min: not TOML: there is no value after ="]),
    (
        "a string that does not end",
        '[service]\nname = "chatglm\nmin = 2\n',
        ["2: service.name: not TOML: the text has no closing quote"],
    ),
    (
        "a list that does not end",
        '[docker]\nvolumes = [\n  "/a:/b",\n',
        ["2: docker.volumes: not TOML: the list, table or text that begins here has no end"],
    ),
    (
        "a key given twice",
        "[service]\nmin = 1\nmax = 4\nmin = 2\n",
        ["4: service.min: given twice; the first is on line 2"],
    ),
    (
        "a section given twice",
        "[service]\nmin = 1\n[drain]\ntimeout = 3\n[service]\nmax = 4\n",
        ["5: service: given twice; the first is on line 1"],
    ),
    (
        "a section after its dotted keys",
        "service.min = 1\n[service]\nmax = 4\n",
        ["2: service: the section has begun above already; move these keys there, or remove [service]"],
    ),
    (
        "a slip in a key",
        "[autoscale]\nup_conections = 50\n",
        ["2: autoscale.up_conections: unknown key; did you mean up_connections?"],
    ),
    (
        "a key of another section",
        "[service]\nlevel = 'info'\n",
        ["2: service.level: unknown key; did you mean log.level?"],
    ),
    ("a key of nobody", "[service]\nzzz = 1\n", ["2: service.zzz: unknown key"]),
    ("a slip in a section", "[services]\nmin = 1\n", ["1: services: unknown section; did you mean [service]?"]),
    (
        "a section of nobody",
        "[zzz]\nmin = 1\n",
        [
            "1: zzz: unknown section; there are service, docker, process, gpu, health, repair, drain, autoscale, "
            "nginx, "
            "control, http, state, log"
        ],
    ),
    (
        "a key before every section",
        "# mine\ninstances = 3\n",
        ["2: instances: a key outside of every section; did you mean service.instances, under [service]?"],
    ),
    (
        "a section as a value",
        "service = 3\n",
        ["1: service: is a section; write [service] on a line of its own and its keys below it"],
    ),
    (
        "a section as one of many",
        "[[service]]\nmin = 1\n",
        ["1: service: there is one section of this name; write [service]"],
    ),
]


@pytest.mark.parametrize(("text", "lines"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_of_form_is_told_by_line_and_what_was_meant(told: Told, text: str, lines: list[str]) -> None:
    assert told(text) == lines


def test_bytes_that_are_not_utf8_are_told_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes("[health]\nprompt = '你好'\n".encode("gb18030"))
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(caught.value) == f"{file}:2: not UTF-8: byte 0xc4; save the file as UTF-8"


def test_a_file_that_is_not_there_is_named_with_the_next_command(tmp_path: Path) -> None:
    file = tmp_path / "konfig.toml"
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(caught.value) == f"{file}: there is no such file; see what there is with: ls -l {tmp_path}"


def test_without_the_default_file_nothing_is_assumed_and_the_way_to_get_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / "etc" / "config.toml"
    monkeypatch.setattr(document, "DEFAULT_PATH", default)
    with pytest.raises(ConfigError) as caught:
        load(None, {})
    command = f"mkdir -p {default.parent} && {sys.executable} -m hasupervisor.config > {default}"
    assert str(caught.value) == f"{default}: there is no such file; for one with every key and its default: {command}"
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    assert load(None, {}) == Config()


def test_a_file_that_this_user_may_not_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    file.chmod(0)
    with _not_root(), pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(caught.value) == (
        f"{file}: cannot be read: permission denied; see its owner and mode with: ls -ld {file}"
    )


@contextmanager
def _not_root() -> Iterator[None]:
    """Root may read everything; for a moment this process is nobody."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {})
    assert str(caught.value) == (
        f"{tmp_path}: cannot be read: is a directory; see its owner and mode with: ls -ld {tmp_path}"
    )

"""The written references agree with the schema, and the files that are shipped can be loaded."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasupervisor.config import Config, load
from hasupervisor.config.keys import all_keys, value_of
from hasupervisor.config.reference import commented_file
from hasupervisor.config.values import toml
from hasupervisor.model import Address
from hasupervisor.templates import template_dir
from tools.configdoc import page

ROOT = Path(__file__).resolve().parents[2]


def test_the_commented_file_is_what_the_schema_says() -> None:
    assert (ROOT / "config/config.toml").read_text(encoding="utf-8") == commented_file(), "run: make docs"


def test_the_page_is_what_the_schema_says() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == page(), "run: make docs"


def test_the_commented_file_is_the_defaults_and_names_every_key() -> None:
    config = load(ROOT / "config/config.toml", {}, lowest=1024)
    assert config == Config()
    assert all(config.where(key) != "default" for key in all_keys())


def test_the_module_prints_the_commented_file() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "hasupervisor.config"], capture_output=True, check=True, timeout=60, text=True
    )
    assert printed.stdout == commented_file()


def test_lines_of_the_commented_file_fit_a_terminal() -> None:
    assert max(map(len, commented_file().splitlines())) <= 120


def test_make_run_needs_no_root_no_docker_and_writes_only_below_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(ROOT / "config/embedded.toml", {}, lowest=1024)
    assert (config.service.runtime, config.service.instances, config.nginx.mode) == ("process", 2, "own")
    assert config.nginx.listen == Address("127.0.0.1", 8080)
    assert config.control.socket == tmp_path / ".run/control.sock"
    paths = [config.state.dir, config.log_dir, config.nginx.dir, config.control.socket]
    assert all(path.is_relative_to(tmp_path / ".run") for path in paths)


@pytest.mark.parametrize("key", all_keys())
def test_a_default_written_into_the_file_is_the_default(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    file = tmp_path / "config.toml"
    file.write_text(f"[{section}]\n{name} = {toml(value_of(Config(), key))}\n", encoding="utf-8")
    assert load(file, {}) == Config()


@given(
    st.recursive(
        st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(st.characters(codec="utf-8"))),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(st.characters(codec="utf-8")), inner)),
        max_leaves=10,
    )
)
def test_what_is_written_as_toml_is_read_as_the_same_value(value: object) -> None:
    assert tomllib.loads(f"value = {toml(value)}")["value"] == value


def test_the_nginx_templates_are_found_beside_the_package() -> None:
    assert sorted(path.name for path in template_dir().iterdir()) == sorted(
        path.name for path in (ROOT / "nginx").iterdir()
    )

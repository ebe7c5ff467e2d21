"""The role as text: ansible-lint's strictest profile, every section of the configuration, every value whole."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from hasupervisor import config
from hasupervisor.config.schema import Config
from tests.ansible.controller import FOLDER, PROGRAMS, environment, play_here
from tests.checkout import ROOT

ROLE = FOLDER / "roles" / "chatglm_ha"
PREFIX = "chatglm_ha_"
AWKWARD = "你好 \"quoted\" 'too' \\ back\nnext {{ no template }} # no comment"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def written(folder: Path, **variables: Any) -> tuple[Path, Path]:
    """The configuration and nginx's file that the role writes for these variables."""
    task = {
        "ansible.builtin.template": {"src": "{{ item }}.j2", "dest": f"{folder}/{{{{ item }}}}", "mode": "0600"},
        "loop": ["config.toml", "nginx.conf"],
    }
    (folder / "templates").symlink_to(ROLE / "templates")
    files = [str(ROLE / name / "main.yml") for name in ("defaults", "vars")]
    played = play_here(folder, [task], files, **variables)
    assert played.code == 0, played.output
    return folder / "config.toml", folder / "nginx.conf"


def test_the_role_passes_the_production_profile_of_ansible_lint(tmp_path: Path) -> None:
    command = [str(PROGRAMS / "ansible-lint"), "--offline", "--profile", "production", "--strict"]
    done = subprocess.run(
        command, cwd=FOLDER, env=environment(tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Profile 'production' was required, and it passed" in done.stderr


def test_it_needs_nothing_but_what_ansible_core_has() -> None:
    words = {
        "name",
        "when",
        "block",
        "rescue",
        "always",
        "loop",
        "loop_control",
        "vars",
        "register",
        "until",
        "retries",
    }
    words |= {"delay", "notify", "listen", "changed_when", "failed_when", "check_mode"}

    def modules(tasks: list[dict[str, Any]]) -> set[str]:
        inner = [modules(task[key]) for task in tasks for key in ("block", "rescue", "always") if key in task]
        return set().union(*tasks, *inner) - words

    found = set().union(*(modules(read(path)) for path in ROLE.glob("[th]a*s/*.yml")))
    assert found
    assert all(name.startswith("ansible.builtin.") for name in found), found


def test_every_variable_has_a_default_and_is_specified() -> None:
    specified = read(ROLE / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    assert set(specified) - {"chatglm_ha_version"} == set(read(ROLE / "defaults" / "main.yml"))


def test_every_section_of_the_configuration_has_its_dictionary() -> None:
    sections = set(Config.model_fields)
    assert set(read(ROLE / "vars" / "main.yml")["chatglm_ha_sections"]) == sections
    assert {PREFIX + name for name in sections} <= set(read(ROLE / "defaults" / "main.yml"))


def test_every_key_can_be_set_and_arrives_as_it_was_said(tmp_path: Path) -> None:
    wanted = tomllib.loads((ROOT / "config" / "config.toml").read_text(encoding="utf-8"))  # has every key
    wanted["health"] |= {"prompt": AWKWARD, "interval": 0.25}
    wanted["docker"] |= {"env": {"A": AWKWARD, "B": "{}"}, "command": ["--flag", AWKWARD]}
    file, _ = written(tmp_path, **{PREFIX + section: unsafe(keys) for section, keys in wanted.items()})
    assert tomllib.loads(file.read_text(encoding="utf-8")) == wanted
    assert config.load(file, {}).health.prompt == AWKWARD


def unsafe(value: Any) -> Any:
    """As `!unsafe` in a YAML file: not to be taken for a template."""
    if isinstance(value, dict):
        return {key: unsafe(one) for key, one in value.items()}
    if isinstance(value, list):
        return [unsafe(one) for one in value]
    return {"__ansible_unsafe": value} if isinstance(value, str) and "{{" in value else value


def test_a_key_that_is_null_and_a_section_without_keys_are_left_out(tmp_path: Path) -> None:
    file, _ = written(tmp_path, chatglm_ha_service={"min": None, "max": 4}, chatglm_ha_docker={"env": {"A": None}})
    assert "min" not in file.read_text()
    assert "[nginx]" not in file.read_text()
    loaded = config.load(file, {})
    assert (loaded.service.min, loaded.service.max, loaded.docker.env) == (2, 4, {})


def test_a_host_without_tls_gets_the_package_s_own_file(tmp_path: Path) -> None:
    _, site = written(tmp_path)
    assert site.read_text() == (ROOT / "deploy" / "host" / "nginx.conf").read_text()


@pytest.mark.parametrize(("listen", "gateway"), [(8080, "127.0.0.1:8080"), ("10.0.0.7:81", "10.0.0.7:81")])
def test_tls_leads_to_where_the_gateway_listens(tmp_path: Path, listen: object, gateway: str) -> None:
    tls = {"server_name": "chat.example.com", "certificate": "/c.pem", "key": "/k.pem"}
    _, site = written(tmp_path, chatglm_ha_nginx={"listen": listen}, chatglm_ha_tls=tls)
    assert f"proxy_pass http://{gateway};" in site.read_text()


def test_the_example_inventory_sets_what_exists_to_values_that_are_valid(tmp_path: Path) -> None:
    command = [str(PROGRAMS / "ansible-inventory"), "-i", str(FOLDER / "inventory.example.yml"), "--list"]
    done = subprocess.run(
        command, env=environment(tmp_path), cwd=FOLDER, capture_output=True, text=True, timeout=60, check=True
    )
    specified = read(ROLE / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    hosts = json.loads(done.stdout)["_meta"]["hostvars"]
    assert len(hosts) == 2
    for name, variables in hosts.items():
        ours = {key: value for key, value in variables.items() if key.startswith(PREFIX)}
        assert set(ours) <= set(specified)
        folder = tmp_path / name
        folder.mkdir()
        file, _ = written(folder, **ours)
        assert config.load(file, {}).docker.image == "chatglm-service:v1.1.0"

"""The environment: what is read from it, and how a wrong value is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model_api.settings import SettingsError, from_environment


def test_an_empty_environment_gives_the_promised_defaults(tmp_path: Path) -> None:
    settings = from_environment({"HOME": str(tmp_path)})
    assert (settings.host, settings.port, settings.dtype, settings.quantize) == ("127.0.0.1", 8000, "auto", 0)
    assert (settings.max_batch, settings.max_queue, settings.max_wait, settings.grace) == (8, 32, 60.0, 30.0)
    assert settings.model_path is None
    assert settings.model_name == "chatglm-tiny"
    assert settings.model_cache == tmp_path / ".cache" / "chatglm-ha"
    assert settings.max_context is None
    assert settings.api_keys == frozenset()
    assert settings.drill is False


def test_the_cache_follows_xdg(tmp_path: Path) -> None:
    assert from_environment({"XDG_CACHE_HOME": str(tmp_path)}).model_cache == tmp_path / "chatglm-ha"


def test_a_model_is_named_after_its_directory_unless_told_otherwise(tmp_path: Path) -> None:
    directory = tmp_path / "chatglm3-6b"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    assert from_environment({"MODEL_PATH": str(directory)}).model_name == "chatglm3-6b"
    assert from_environment({"MODEL_PATH": str(directory), "MODEL_NAME": "glm"}).model_name == "glm"


def test_keys_come_from_a_file_one_a_line_and_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the web team\nalpha\n\n  beta  \n")
    assert from_environment({"API_KEY_FILE": str(file), "API_KEY": "gamma"}).api_keys == {"alpha", "beta", "gamma"}


WRONG = [
    ("PORT", "http", "a whole number from 0 to 65535 was meant"),
    ("PORT", "70000", "must be from 0 to 65535"),
    ("MAX_BATCH", "0", "must be from 1 to 1024"),
    ("MAX_QUEUE", "-1", "must be from 0"),
    ("MAX_WAIT", "soon", "a number of seconds was meant"),
    ("MAX_WAIT", "nan", "must be from 0 to 86400 seconds"),
    ("GRACE", "-1", "must be from 0 to 86400 seconds"),
    ("MAX_CONTEXT", "8", "must be from 16"),
    ("DRILL", "yes", "must be 0 (off) or 1 (on)"),
    ("DTYPE", "int3", "must be one of auto, float16"),
    ("QUANTIZE", "2", "must be 0 (off), 8 or 4 (bits)"),
    ("MODEL_PATH", "/nonexistent/model", "no such directory"),
    ("API_KEY_FILE", "/nonexistent/keys", "cannot read the key file: No such file"),
]


@pytest.mark.parametrize(("name", "value", "meant"), WRONG)
def test_a_wrong_value_is_told_with_its_variable_and_what_was_meant(name: str, value: str, meant: str) -> None:
    with pytest.raises(SettingsError) as told:
        from_environment({name: value})
    assert f"{name}={value!r}: {meant}" in str(told.value)


def test_a_directory_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"MODEL_PATH=.*has no config\.json"):
        from_environment({"MODEL_PATH": str(tmp_path)})


def test_a_key_file_without_keys_is_refused_rather_than_open_to_all(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(SettingsError, match="has no key in it"):
        from_environment({"API_KEY_FILE": str(tmp_path / "keys")})


def test_the_process_tells_all_wrong_variables_at_once_and_exits_2() -> None:
    env = {"PORT": "x", "GRACE": "y", "MODEL_PATH": "/nonexistent", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-m", "model_api"], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert [line.split("=")[0] for line in done.stderr.splitlines()] == [
        "model_api: MODEL_PATH",
        "model_api: PORT",
        "model_api: GRACE",
    ]


def test_a_port_in_use_is_told_with_host_and_port() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "model_api"], env={"PORT": port}, capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 2
    assert f"cannot listen on HOST=127.0.0.1 PORT={port}: Address already in use" in done.stderr

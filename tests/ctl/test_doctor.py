"""`doctor`: it needs no daemon, says the worst first with what mends it, and its exit code says how bad it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ctl.conftest import Run
from tests.ctl.stand_in import StandIn
from tests.doubles.nvml.cards import MISMATCH, NvmlDouble

FINE = """\
[service]
runtime = "process"
ports = "20100-20119"
max = 4

[process]
command = ["/bin/sh", "-c", "exec sleep 60"]

[gpu]
mode = "off"

[nginx]
mode = "off"

[http]
listen = ""
"""


@pytest.fixture
def fine(folder: Path) -> Path:
    """A configuration that this machine can run: state in `folder`, plain processes, no nginx."""
    path = folder / "config.toml"
    path.write_text(f'{FINE}\n[state]\ndir = "{folder}/state"\n[control]\ngroup = ""\n')
    return path


def level_of(checks: list[dict[str, Any]], check: str) -> set[str]:
    return {one["level"] for one in checks if one["check"] == check}


def test_a_host_without_a_daemon_is_examined_and_that_is_no_failure(hactl: Run, fine: Path) -> None:
    result = hactl("doctor", "--config", str(fine), "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert (document["schema"], document["config"]) == (1, str(fine))
    checks = document["checks"]
    assert level_of(checks, "daemon") == {"warn"}
    assert document["level"] == "warn"
    for check in ("config", "socket", "process", "gpu", "nginx", "ports", "disk"):
        assert level_of(checks, check) == {"ok"}, check
    assert {"service", "limits", "clock", "security"} <= {one["check"] for one in checks}
    for one in checks:
        assert one["sentence"]
        assert (one["hint"] is None) == (one["level"] == "ok"), one


def test_what_is_wrong_comes_first_with_what_mends_it_and_exit_1(hactl: Run, fine: Path) -> None:
    fine.write_text(fine.read_text().replace("/bin/sh", "/bin/no-such-shell"))
    result = hactl("doctor", "--config", str(fine))
    assert result.returncode == 1
    verdict, empty, worst, hint, *rest = result.stdout.splitlines()
    assert verdict.startswith("FAIL 1 to mend, ")
    assert empty == ""
    assert worst.split() == [
        "fail",
        "process",
        "process.command:",
        "there",
        "is",
        "no",
        "program",
        "/bin/no-such-shell",
    ]
    assert hint == "    chatglm-hactl config check"
    shown = [line.split()[0] for line in rest if not line.startswith(" ")]
    assert shown == sorted(shown, key=["fail", "warn", "ok"].index)


def test_a_configuration_that_is_not_valid_is_exit_2_with_every_mistake(hactl: Run, fine: Path) -> None:
    fine.write_text("[service]\nmin = 4\nmax = 3\ninstancs = 2\n")
    result = hactl("doctor", "--config", str(fine), "--json")
    assert result.returncode == 2
    checks = json.loads(result.stdout)["checks"]
    wrong = [one["sentence"] for one in checks if one["check"] == "config"]
    assert len(wrong) == 2
    assert any(f"{fine}:3: service.max: 3 is below service.min = 4" in sentence for sentence in wrong), wrong
    assert level_of(checks, "clock"), "what needs no configuration is examined all the same"


def test_a_file_that_is_not_there_is_exit_2(hactl: Run, folder: Path) -> None:
    result = hactl("doctor", "--config", str(folder / "none.toml"))
    assert result.returncode == 2
    assert "none.toml" in result.stdout


def test_a_daemon_that_runs_is_asked_who_it_is_and_which_file_it_has(hactl: Run, daemon: StandIn, fine: Path) -> None:
    daemon.state.instead["/v1/config"] = (200, {"path": str(fine), "config": {}})
    daemon.state.instead["/v1/version"] = (200, {"version": "0.0.9", "api": 1, "pid": None, "started": None})
    document = json.loads(hactl("doctor", "--json").stdout)
    assert document["config"] == str(fine)
    (found,) = [one for one in document["checks"] if one["check"] == "daemon"]
    assert found["level"] == "warn"
    assert found["sentence"] == "chatglm-had 0.0.9 runs, 0.1.0 is installed"
    assert found["hint"].startswith("systemctl restart chatglm-ha")


@pytest.mark.parametrize(("answer", "level", "code"), [(0, "ok", 0), (MISMATCH, "fail", 1)])
def test_gpus_are_asked_by_a_process_of_their_own_and_its_log_does_not_mix_with_the_document(
    hactl: Run, fine: Path, nvml_library: Path, tmp_path: Path, answer: int, level: str, code: int
) -> None:
    fine.write_text(fine.read_text().replace('mode = "off"\n\n[nginx]', "\n[nginx]", 1))
    nvml = NvmlDouble(tmp_path / "nvml", nvml_library)
    nvml.init = answer
    nvml.tell()
    result = hactl("doctor", "--config", str(fine), "--json", **nvml.environment)
    checks = json.loads(result.stdout)["checks"]
    assert result.returncode == code
    driver, *_ = [one for one in checks if one["check"] == "gpu"]
    assert driver["level"] == level
    assert ("driver 550.163.01, 2 GPUs" in driver["sentence"]) == (level == "ok")

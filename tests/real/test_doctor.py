"""`chatglm-hactl doctor` beside a real daemon, a real dockerd and a real nginx, well and ill."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasupervisor.act.nginx.settings import NginxSettings
from hasupervisor.config import Config
from hasupervisor.config.schema import Docker, Service
from hasupervisor.doctor import engine as examined_engine
from hasupervisor.doctor import gateway
from hasupervisor.doctor.finding import Finding, Level
from tests.real.daemon import PATIENT, Daemon, Document, as_processes, daemon
from tests.real.dockerd import Engine
from tests.real.gatewaying import PrivateNginx


@pytest.fixture
def host(port_range: Callable[[int], range], standin_server: Path) -> Iterator[Daemon]:
    with daemon(port_range(20), PATIENT, as_processes(standin_server)) as host:
        yield host


def failed(document: Document) -> list[str]:
    return [check["sentence"] for check in document["checks"] if check["level"] == "fail"]


def sentences(document: Document, check: str) -> list[str]:
    return [one["sentence"] for one in document["checks"] if one["check"] == check]


def test_beside_a_daemon_that_serves_nothing_is_to_be_mended_and_its_ports_are_its_own(host: Daemon) -> None:
    host.start()
    host.wait_until_green()
    ran = host.hactl("doctor", "--json")
    assert (ran.code, failed(ran.document)) == (0, [])
    assert ran.document["config"] == str(host.config_file)
    assert sentences(ran.document, "ports")[:2] == [
        f"nginx.listen: nginx has {host.ports[0]}",
        f"http.listen: the daemon has {host.ports[2]}",
    ]
    assert any(words.startswith("the daemon may open") for words in sentences(ran.document, "limits"))


def test_a_port_that_somebody_else_has_is_told_before_the_daemon_is_started(host: Daemon) -> None:
    with socket.create_server(("127.0.0.1", host.ports[2])):
        ran = host.hactl("doctor", "--config", str(host.config_file), "--json")
    assert ran.code == 1
    (found,) = failed(ran.document)
    assert found.startswith(f"http.listen: {host.ports[2]} is held by ")
    assert found.endswith(f"(pid {os.getpid()})")


# --- dockerd ----------------------------------------------------------------------------------------------------------


def on(engine: Engine, image: str, volumes: tuple[str, ...] = ()) -> Config:
    docker = Docker.model_validate({"host": engine.host, "image": image, "volumes": volumes})
    return Config(service=Service(runtime="docker"), docker=docker)


async def test_an_engine_with_the_image_is_fine_and_tells_its_version(engine: Engine, standin_image: str) -> None:
    findings, found = await examined_engine.examine(on(engine, standin_image))
    assert found is not None
    assert {one.level for one in findings} == {Level.OK}
    assert findings[0].sentence.startswith(f"dockerd {found.info['ServerVersion']} at {engine.host}, cgroup driver ")
    assert found.root == engine.directory / "data"


async def test_an_image_that_is_not_here_and_a_folder_that_is_not_are_told(engine: Engine, tmp_path: Path) -> None:
    findings, _ = await examined_engine.examine(on(engine, "no-such-image:1", (f"{tmp_path}/models:/models:ro",)))
    told = {one.level: one for one in findings}
    assert told[Level.FAIL].hint == "docker pull no-such-image:1"
    assert f"there is no {tmp_path}/models on this host" in told[Level.WARN].sentence


async def test_an_engine_that_does_not_answer_is_to_be_mended_within_its_deadline(engine: Engine) -> None:
    with engine.frozen():
        (found,), nothing = await examined_engine.examine(on(engine, "any:1"))
    assert nothing is None
    assert found.level is Level.FAIL
    assert found.sentence == f"cannot reach dockerd at {engine.host}: no answer in 5 s"
    assert found.hint == "systemctl status docker"


# --- nginx ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path, nginx: PrivateNginx, port: int) -> NginxSettings:
    """The distribution's nginx with the daemon's file in place, empty as the installation leaves it."""
    (tmp_path / "ha").mkdir()
    (tmp_path / "ha" / "gateway.conf").touch()
    return NginxSettings(dir=tmp_path / "ha", mode="system", binary=str(nginx.binary), listen=f"127.0.0.1:{port}")


def bad(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if one.level is not Level.OK]


async def test_an_nginx_that_runs_and_includes_the_gateway_is_fine(
    settings: NginxSettings, nginx: PrivateNginx
) -> None:
    nginx.start()
    findings = await gateway.examine(settings)
    assert bad(findings) == []
    assert any(one.sentence == f"it runs (pid {nginx.master}) and can be reloaded" for one in findings)


async def test_an_nginx_that_does_not_run_is_to_be_started(settings: NginxSettings) -> None:
    (found,) = bad(await gateway.examine(settings))
    assert (found.level, found.hint) == (Level.FAIL, "systemctl start nginx")


async def test_an_include_that_is_missing_is_told_with_the_line_that_makes_it(
    settings: NginxSettings, nginx: PrivateNginx
) -> None:
    (nginx.conf_d / "ha.conf").write_text("")
    nginx.start()
    (found,) = bad(await gateway.examine(settings))
    assert found.level is Level.FAIL
    assert found.hint == f"echo 'include {settings.dir}/gateway.conf;' > {nginx.conf_d}/chatglm-ha.conf"


async def test_a_file_that_the_daemon_has_not_written_yet_is_no_failure(
    settings: NginxSettings, nginx: PrivateNginx
) -> None:
    nginx.start()
    (settings.dir / "gateway.conf").unlink()
    (found,) = bad(await gateway.examine(settings))
    assert found.level is Level.WARN
    assert "is not written yet, and nginx does not start without it" in found.sentence


async def test_a_site_that_wants_to_be_the_default_of_the_same_port_is_named(
    settings: NginxSettings, nginx: PrivateNginx
) -> None:
    nginx.start()
    site = nginx.conf_d / "default.conf"
    site.write_text(f"server {{ listen {settings.listen} default_server; }}\n")
    (found,) = bad(await gateway.examine(settings))
    assert (found.level, found.hint) == (Level.FAIL, f"rm {site}, or another port in nginx.listen")


async def test_a_mistake_in_nginxs_configuration_is_told_in_nginxs_words(
    settings: NginxSettings, nginx: PrivateNginx
) -> None:
    nginx.start()
    (nginx.conf_d / "broken.conf").write_text("servre { }\n")
    (found,) = bad(await gateway.examine(settings))
    assert found.level is Level.FAIL
    assert 'unknown directive "servre"' in found.sentence


async def test_an_nginx_that_is_not_installed_is_told(settings: NginxSettings, tmp_path: Path) -> None:
    nowhere = NginxSettings(dir=tmp_path, mode="own", binary=str(tmp_path / "nginx-none"))
    (found,) = bad(await gateway.examine(nowhere))
    assert (found.level, found.hint) == (Level.FAIL, "apt-get install nginx")

"""The Docker engine: does it answer, can it start what the configuration names, what does a restart of it cost?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound

from hasupervisor.config import Config
from hasupervisor.doctor.finding import Finding, fail, ok, warn
from hasupervisor.runtimes.base import RuntimeTrouble
from hasupervisor.runtimes.dockerd import Deadlines, Dockerd, said

CHECK = "docker"
OLDEST = (20, 10)  # the oldest engine that the tests have run with


@dataclass(frozen=True, slots=True)
class Engine:
    """What dockerd says of itself, `docker info`; `local` when its files and devices are this host's."""

    info: dict[str, Any]
    local: bool

    @property
    def root(self) -> Path | None:
        return Path(self.info["DockerRootDir"]) if self.local and self.info.get("DockerRootDir") else None

    @property
    def cgroup_driver(self) -> str:
        return str(self.info.get("CgroupDriver", ""))


async def examine(config: Config) -> tuple[list[Finding], Engine | None]:
    """The findings, and the engine where it answers; neither where instances are plain processes."""
    if config.service.runtime != "docker":
        return [], None
    dockerd = Dockerd(config.docker_host, Deadlines())
    try:
        info: dict[str, Any] = await dockerd.ask_engine("describe itself", lambda client: client.info())
        images = await dockerd.ask_engine("look for the image", lambda client: has_image(client, config.docker.image))
    except RuntimeTrouble as trouble:
        return [_no_answer(str(trouble))], None
    engine = Engine(info, dockerd.is_local)
    findings = [_version(engine, dockerd.host), _image(config.docker.image, found=images)]
    if engine.local:
        findings += [_live_restore(engine), *_volumes(config.docker.volumes)]
    return findings, engine


def _no_answer(words: str) -> Finding:
    """The adapter's own sentence, which mostly ends with the next command."""
    for command in ("systemctl status docker", "journalctl -u docker"):
        if words.endswith(command):
            return fail(CHECK, words.removesuffix(command).rstrip("; "), command)
    return fail(CHECK, words, "sudo chatglm-hactl doctor")


def has_image(client: docker.APIClient, name: str) -> bool | str:
    """Whether the engine has the image; its own words where it does not say."""
    try:
        client.inspect_image(name)  # type: ignore[no-untyped-call]  # the SDK decorates it
    except ImageNotFound:
        return False
    except APIError as error:
        return said(error)
    return True


def _version(engine: Engine, host: str) -> Finding:
    version = str(engine.info.get("ServerVersion", "unknown"))
    words = f"dockerd {version} at {host}, cgroup driver {engine.cgroup_driver or 'unknown'}"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return warn(CHECK, f"{words}: older than {oldest}, the oldest that this is tested with", "upgrade dockerd")
    return ok(CHECK, words)


def _image(name: str, *, found: bool | str) -> Finding:
    if found is True:
        return ok(CHECK, f"the image {name} is here")
    if found is False:
        return fail(
            CHECK, f"there is no image {name} here, and the daemon pulls none: docker.image", f"docker pull {name}"
        )
    return fail(CHECK, f"dockerd says of the image {name}: {found}", "docker images")


def _live_restore(engine: Engine) -> Finding:
    if engine.info.get("LiveRestoreEnabled"):
        return ok(CHECK, "live-restore is on: instances outlive a restart of dockerd")
    return warn(
        CHECK,
        "live-restore is off: a restart of dockerd stops every instance",
        'put {"live-restore": true} into /etc/docker/daemon.json, then: systemctl reload docker',
    )


def _volumes(volumes: tuple[str, ...]) -> list[Finding]:
    """docker makes an empty folder of a host path that is not there, and the model is missed only when it loads."""
    findings = []
    for volume in volumes:
        source = volume.partition(":")[0]
        if source.startswith("/") and not Path(source).exists():
            findings.append(
                warn(
                    CHECK,
                    f"docker.volumes: there is no {source} on this host: containers see an empty folder",
                    f"ls {source}",
                )
            )
    return findings

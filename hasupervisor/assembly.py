"""Turns the configuration into the settings that each part of the house is made from."""

from __future__ import annotations

import grp
import socket
from collections.abc import Mapping
from pathlib import Path

import structlog

from hasupervisor.act.nginx.settings import NginxSettings
from hasupervisor.config import Config
from hasupervisor.config.values import ANY_HOST
from hasupervisor.decide.autoscale.facts import Rules
from hasupervisor.descriptors import RESERVED, OpenFiles
from hasupervisor.drill.drills import DrillSettings
from hasupervisor.model import Address, GpuPolicy, Policy
from hasupervisor.model.gpu import GB
from hasupervisor.observe.answers import Dialect
from hasupervisor.observe.kernel_log import KMSG
from hasupervisor.observe.watch import ProbeSettings
from hasupervisor.report import log as logging
from hasupervisor.runtimes import keeper
from hasupervisor.runtimes.docker_launch import DockerSettings
from hasupervisor.runtimes.ownership import Ownership
from hasupervisor.runtimes.process_launch import ProcessSettings

log = structlog.get_logger(__name__)

WORKER_GROUPS = ("www-data", "nginx")
"""The groups that nginx's workers run as where a distribution packages it."""


def policy(config: Config) -> Policy:
    """The numbers that decisions use."""
    service, health, repair = config.service, config.health, config.repair
    return Policy(
        service=service.name,
        ports=service.ports,
        min=service.min,
        max=service.max,
        one_at_a_time=service.one_at_a_time,
        failures=health.failures,
        successes=health.successes,
        interval=health.interval,
        timeout=health.timeout,
        start_timeout=health.start_timeout,
        hang_after=health.hang_after,
        inference_timeout=health.inference_timeout,
        backoff=repair.backoff,
        backoff_max=repair.backoff_max,
        attempts=repair.attempts,
        window=repair.window,
        park_retry=repair.park_retry,
        stop_grace=repair.stop_grace,
        drain_timeout=config.drain.timeout,
        gpu=gpu_policy(config),
    )


def gpu_policy(config: Config) -> GpuPolicy | None:
    """How instances are placed on GPUs; None: they are not."""
    gpu = config.gpu
    if gpu.mode == "off":
        return None
    return GpuPolicy(
        need_bytes=int(gpu.memory_gb * GB),
        reserve_bytes=int(gpu.reserve_gb * GB),
        required=gpu.mode == "required",
        exclude=frozenset(gpu.exclude),
    )


def scaling_rules(config: Config) -> Rules:
    """What the autoscaler goes by."""
    numbers = {name: getattr(config.autoscale, name) for name in type(config.autoscale).model_fields}
    return Rules(min=config.service.min, max=config.service.max, **numbers)


def kernel_log(environment: Mapping[str, str]) -> Path:
    """Where the kernel's messages are read: a FIFO in its place is how faults are rehearsed."""
    return Path(environment.get("CHATGLM_HA_KERNEL_LOG", "") or KMSG)


def probe_settings(config: Config) -> ProbeSettings:
    """What instances are asked, and how often."""
    health = config.health
    return ProbeSettings(
        path=health.path,
        interval=health.interval,
        timeout=health.timeout,
        inference_interval=health.inference_interval,
        inference_timeout=health.inference_timeout,
        prompt=health.prompt,
        dialect=Dialect(health.dialect),
        progress_metric=health.progress_metric,
    )


def ownership(config: Config) -> Ownership | None:
    """Whose the containers are; processes are those of their state directory anyway."""
    return Ownership(config.state.dir, socket.gethostname()) if config.service.runtime == "docker" else None


def docker_settings(config: Config, owner: Ownership | None = None) -> DockerSettings:
    """What a container is made of."""
    docker = config.docker
    return DockerSettings(
        service=config.service.name,
        image=docker.image,
        host=config.docker_host,
        bind=config.service.bind,
        command=docker.command,
        container_port=docker.container_port,
        volumes=docker.volumes,
        env=docker.env,
        network=docker.network,
        shm_size=docker.shm_size,
        log_max_size=docker.log_max_size,
        log_max_files=docker.log_max_files,
        reach=docker.reach,
        owner=owner,
    )


def process_settings(config: Config, files: OpenFiles | None = None) -> ProcessSettings:
    """What a plain process is made of."""
    return ProcessSettings(
        run_dir=config.state.dir / "run",
        log_dir=config.log_dir,
        bind=config.service.bind,
        command=config.process.command,
        env=config.process.env,
        open_files=files.given if files is not None else None,
    )


def nginx_settings(config: Config, files: OpenFiles | None = None) -> NginxSettings:
    """How the gateway is written and told. `files`: what the daemon may open; it bounds how many requests may wait."""
    nginx = config.nginx
    hold_max = files.holdable(nginx.hold_max) if files is not None else nginx.hold_max
    if files is not None and hold_max < nginx.hold_max and nginx.mode != "off":
        log.warning(
            f"{hold_max} requests may wait at once, not {nginx.hold_max} (nginx.hold_max): the daemon may open "
            f"{files.limit} files, and needs {RESERVED} for the rest; raise `ulimit -Hn` (a unit: LimitNOFILE=65536)"
        )
    return NginxSettings(
        dir=nginx.dir,
        mode=nginx.mode,
        listen=str(nginx.listen.port) if nginx.listen.host == ANY_HOST else str(nginx.listen),
        server_name=nginx.server_name,
        binary=nginx.binary,
        reload=nginx.reload,
        tries=nginx.tries,
        max_fails=nginx.max_fails,
        fail_timeout=nginx.fail_timeout,
        max_in_flight=nginx.max_in_flight,
        hold=nginx.hold,
        hold_max=hold_max,
        paths=nginx.paths,
        health_path=config.health.path,
        access_log_socket=log_socket_path(config),
        worker_group=worker_group(config),
        boot=boot(),
    )


def drill_settings(config: Config) -> DrillSettings:
    """What a drill is made with."""
    health = config.health
    return DrillSettings(
        socket=config.control.socket,
        nginx=nginx_settings(config),
        in_containers=config.service.runtime == "docker",
        engine=config.docker_host,
        prompt=health.prompt,
        dialect=health.dialect,
        hang_after=health.hang_after,
        inference_timeout=health.inference_timeout,
        start_timeout=health.start_timeout,
        stop_grace=config.repair.stop_grace,
    )


def is_supervised(environment: Mapping[str, str], pid: int, parent: int) -> bool:
    """Whether somebody is seen who would start the daemon `pid` again, a child of `parent`, should it end.

    NOTIFY_SOCKET says that a service manager waits for word. INVOCATION_ID alone is inherited by every shell of a
    desktop session: it counts where systemd names this process, or is its parent.
    """
    if environment.get("NOTIFY_SOCKET"):
        return True
    named = environment.get("SYSTEMD_EXEC_PID")
    return bool(environment.get("INVOCATION_ID")) and (named == str(pid) or (named is None and parent == 1))


def configure_log(config: Config) -> None:
    """Sets the daemon's own log up. Raises report.log.CannotLog."""
    file = str(config.log.file) if config.log.file is not None else ""
    logging.configure(level=config.log.level, format=config.log.format, file=file)


def reachable(listen: Address) -> Address:
    """Where a listener is reached from this host."""
    return Address("127.0.0.1", listen.port) if listen.host == ANY_HOST else listen


def log_socket_path(config: Config) -> Path:
    """Where nginx's workers send their access log."""
    return config.nginx.dir.absolute() / "access.sock"


def runtime_directory(environment: Mapping[str, str]) -> Path | None:
    """The folder that systemd made for this unit: it is there while the unit runs or is started again."""
    first = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(first) if first else None


def boot() -> str:
    """Names this boot of the host; that of a container with an init of its own changes with its start as well."""
    try:
        started = keeper.start_ticks(1)
    except OSError:  # /proc hides it
        started = None
    return f"{keeper.boot_id()}-{started or 0}"


def worker_group(config: Config) -> str:
    """The group that must be able to write the log socket: the distribution's nginx has workers of another user."""
    if config.nginx.mode != "system":
        return ""
    known = {group.gr_name for group in grp.getgrall()}
    return next((name for name in WORKER_GROUPS if name in known), "")

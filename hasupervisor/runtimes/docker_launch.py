"""What a container of ours is made of, and in words why one could not be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import docker
from docker.types import DeviceRequest, LogConfig

from hasupervisor.runtimes.base import Launch
from hasupervisor.runtimes.ownership import Ownership

# Labels: what makes a container ours, and all that must be known of it when dockerd lists it but cannot inspect it.
SERVICE = "io.chatglm-ha.service"
NAME = "io.chatglm-ha.name"
BIND = "io.chatglm-ha.bind"
PORT = "io.chatglm-ha.port"
INSTANCE_PORT = "io.chatglm-ha.instance-port"  # where it listens on its own address
OWNER = "io.chatglm-ha.owner"  # the identity of the state directory whose daemon made it
PLACE = "io.chatglm-ha.owner-place"  # and where that directory is: HOST:PATH, for people
GPUS = "io.chatglm-ha.gpus"  # UUIDs, comma-joined

HOST_NETWORK = "host"


@dataclass(frozen=True, slots=True)
class DockerSettings:
    """How instances are run as containers; the names are those of the configuration (CONTRACT 2)."""

    service: str
    image: str
    host: str = ""  # empty: DOCKER_HOST, else unix:///var/run/docker.sock
    bind: str = "127.0.0.1"
    command: tuple[str, ...] = ()
    container_port: int = 8000
    volumes: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    network: str = "bridge"
    shm_size: str = "1g"
    log_max_size: str = "10m"
    log_max_files: int = 5
    reach: str = "auto"  # auto | direct | published
    owner: Ownership | None = None  # None: containers are told apart by their service alone


def create(client: docker.APIClient, settings: DockerSettings, launch: Launch) -> str:
    """Creates the container and returns its id. It blocks. Raises docker.errors.APIError."""
    on_host_network = settings.network == HOST_NETWORK
    port = launch.port if on_host_network else settings.container_port
    container = client.create_container(
        settings.image,
        name=launch.name,
        hostname=None if on_host_network else launch.name,
        command=list(settings.command) or None,
        environment=environment(settings, launch),
        ports=None if on_host_network else [port],
        labels={
            SERVICE: settings.service,
            NAME: launch.name,
            BIND: settings.bind,
            PORT: str(launch.port),
            INSTANCE_PORT: str(port),
            GPUS: ",".join(launch.gpus),
            **({OWNER: settings.owner.id, PLACE: settings.owner.place} if settings.owner is not None else {}),
        },
        host_config=host_config(client, settings, launch),
    )
    return str(container["Id"])


def environment(settings: DockerSettings, launch: Launch) -> dict[str, str]:
    """In a network of its own a container listens on all its addresses: who reaches them is up to the network."""
    if settings.network == HOST_NETWORK:
        return {**settings.env, "HOST": settings.bind, "PORT": str(launch.port)}
    return {**settings.env, "HOST": "0.0.0.0", "PORT": str(settings.container_port)}


def host_config(client: docker.APIClient, settings: DockerSettings, launch: Launch) -> dict[str, Any]:
    published: dict[int | str, Any] = {settings.container_port: (settings.bind, launch.port)}
    by_uuid = DeviceRequest(device_ids=list(launch.gpus), capabilities=[["gpu"]])
    config: dict[str, Any] = client.create_host_config(
        binds=list(settings.volumes) or None,
        network_mode=settings.network,
        port_bindings=None if settings.network == HOST_NETWORK else published,
        shm_size=settings.shm_size,
        log_config=LogConfig(
            type=LogConfig.types.JSON,
            config={"max-size": settings.log_max_size, "max-file": str(settings.log_max_files)},
        ),
        # None of dockerd's: they give up for good after one failed runtime hook, start an instance whose GPU is gone on
        # that GPU again, and know nothing of backing off or parking. The supervisor restarts.
        restart_policy={"Name": "no"},
        device_requests=[by_uuid] if launch.gpus else None,
        # No init (tini) before the server. It would not make stopping better: the model server is PID 1, started in
        # exec form, and handles SIGTERM itself; when PID 1 ends, the kernel ends all others in the container. It would
        # cost: the pid that dockerd shows would be tini's and not the one that the GPU driver names, and Debian's
        # docker.io only suggests the package with docker-init, without which every start fails.
        init=False,
    )
    return config


def is_port_taken(words: str) -> bool:
    """Whether dockerd's own words say that somebody else has the port."""
    low = words.lower()
    return "port is already allocated" in low or "address already in use" in low


def failure(settings: DockerSettings, launch: Launch, words: str) -> str:
    """Why a container could not be created or started, with the next command. `words`: dockerd's own."""
    low = words.lower()
    if "no such image" in low:
        return f"there is no image {settings.image} on this host: docker pull {settings.image}, or build it"
    if is_port_taken(words):
        taken = f"port {launch.port} on {settings.bind} is taken by something else"
        return f"{taken}: ss -ltnp 'sport = :{launch.port}' ({words})"
    if "could not select device driver" in low:
        return (
            f"dockerd has no GPU runtime ({words}): install nvidia-container-toolkit, then "
            "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker"
        )
    if f"network {settings.network.lower()} not found" in low:
        return f"there is no network {settings.network}: docker network create {settings.network}"
    return f"dockerd says: {words}; try docker run --rm {settings.image}"

"""The rules between keys: each finds combinations that cannot work, and says what was meant to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from hasupervisor.config.schema import Config
from hasupervisor.config.values import ANY_HOST
from hasupervisor.model import Address

# Ports beyond one for each instance: one for a replacement that starts while the old instance still drains, and one
# for an old instance that the runtime cannot end and whose port stays taken.
SPARE_PORTS = 2
# struct sockaddr_un has room for 108 bytes, the last of them zero.
MAX_SOCKET_PATH = 107
NGINX_SOCKETS = ("access.sock", "room.sock")  # in nginx.dir: the access log's, and where nginx asks the daemon

Cite = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One impossible combination, told from each key that could be changed.

    The first key that somebody set is the one that is blamed: a person looks for the mistake in what they wrote.
    """

    told: dict[str, str]  # "section.key" -> the sentence that stands behind it
    also: tuple[str, ...] = ()  # other keys that it depends on


def findings(config: Config, cite: Cite, lowest_port: int, unsure: Set[str]) -> Iterator[Finding]:
    """All that is wrong between keys.

    `cite` writes "service.min = 2 (the default)"; `lowest_port`: see `allowed`; `unsure` are keys whose own value is
    wrong and has been replaced by the default: findings about these may be yielded, and mean nothing.
    """
    yield from counts(config, cite, unsure)
    yield from ports(config, cite)
    yield from collisions(config, cite)
    yield from allowed(config, cite, lowest_port)
    yield from timing(config, cite)
    yield from scaling(config, cite)
    yield from containers(config, cite)
    yield from environments(config, cite)


def counts(config: Config, cite: Cite, unsure: Set[str]) -> Iterator[Finding]:
    service = config.service
    if service.max < service.min and not unsure & {"service.max", "service.min"}:
        yield _order(cite, "service.max", service.max, "service.min", service.min)
        return  # no number of instances would fit, and that is no second mistake
    if service.instances < service.min:
        yield _order(cite, "service.instances", service.instances, "service.min", service.min)
    if service.instances > service.max:
        over = _order(cite, "service.max", service.max, "service.instances", service.instances)
        yield Finding(dict(reversed(over.told.items())))  # it is more often the number of instances that is meant


def ports(config: Config, cite: Cite) -> Iterator[Finding]:
    service = config.service
    needed = service.max + SPARE_PORTS
    if len(service.ports) < needed:
        has = len(service.ports)
        why = "one each, one for a replacement while the old one drains, one for an old one that cannot be ended"
        yield Finding(
            {
                "service.ports": f"{has} ports are too few for {cite('service.max')}, which needs {needed}: {why}",
                "service.max": f"{service.max} needs {needed} ports, {cite('service.ports')} has {has}: {why}",
            }
        )


def collisions(config: Config, cite: Cite) -> Iterator[Finding]:
    """Two sockets of the daemon's on one port, or one of them among the instances' ports."""
    sockets: dict[str, Address] = {}
    if config.nginx.mode != "off":
        sockets["nginx.listen"] = config.nginx.listen
    if config.http.listen is not None:
        sockets["http.listen"] = config.http.listen
    names = list(sockets)
    for place, name in enumerate(names):
        for other in names[:place]:
            if sockets[name].port == sockets[other].port and _same_host(sockets[name].host, sockets[other].host):
                yield Finding({name: f"the same port as {cite(other)}", other: f"the same port as {cite(name)}"})
        if sockets[name].port in config.service.ports and _same_host(sockets[name].host, config.service.bind):
            yield Finding(
                {
                    name: f"port {sockets[name].port} is one of {cite('service.ports')}, which are for instances",
                    "service.ports": f"holds the port of {cite(name)}",
                },
                also=("service.bind",),
            )


def allowed(config: Config, cite: Cite, lowest_port: int) -> Iterator[Finding]:
    """What the kernel or safety forbids. Below `lowest_port` only root may listen."""
    if config.nginx.mode == "own" and config.nginx.listen.port < lowest_port:
        told = (
            f"only root may listen on a port below {lowest_port}; start the daemon as root, take a port from "
            f'{lowest_port} on, or leave it to the system\'s nginx (nginx.mode = "system")'
        )
        yield Finding({"nginx.listen": told, "nginx.mode": f'"own" cannot have {cite("nginx.listen")}: {told}'})
    sockets = {"control.socket": config.control.socket}
    if config.nginx.mode != "off":
        sockets["nginx.dir"] = config.nginx.dir / max(NGINX_SOCKETS, key=len)
    for key, socket in sockets.items():
        if len(str(socket).encode()) > MAX_SOCKET_PATH:
            limit = f"the {MAX_SOCKET_PATH} bytes that the kernel allows for a socket"
            yield Finding({key: f"{socket} would be longer than {limit}; choose a shorter path"})


def timing(config: Config, cite: Cite) -> Iterator[Finding]:
    health, repair = config.health, config.repair
    for key, value in (("health.hang_after", health.hang_after), ("health.start_timeout", health.start_timeout)):
        if value < health.timeout:
            yield _order(cite, key, value, "health.timeout", health.timeout)
    if repair.backoff_max < repair.backoff:
        yield _order(cite, "repair.backoff_max", repair.backoff_max, "repair.backoff", repair.backoff)
        return
    # `attempts` failures have attempts - 1 waits between them. If these alone outlast the window, the first is always
    # forgotten before the last, and an instance that can never work is never parked.
    waits = sum(min(repair.backoff * 2.0**n, repair.backoff_max) for n in range(min(repair.attempts - 1, 64)))
    if waits >= repair.window:
        told = f"{repair.attempts} attempts take at least {waits:g} s with these backoffs"
        yield Finding(
            {
                "repair.window": f"{repair.window:g} is too short, nothing would ever be parked: {told}",
                "repair.attempts": f"nothing would ever be parked: {told}, {cite('repair.window')}",
                "repair.backoff": f"nothing would ever be parked: {told}, {cite('repair.window')}",
            },
            also=("repair.backoff_max",),
        )


def scaling(config: Config, cite: Cite) -> Iterator[Finding]:
    scale = config.autoscale
    for up, down, name in (
        (scale.up_response_time_ms, scale.down_response_time_ms, "response_time_ms"),
        (scale.up_gpu_utilization, scale.down_gpu_utilization, "gpu_utilization"),
        (scale.up_connections, scale.down_connections, "connections"),
    ):
        if up <= down:
            high, low, why = f"autoscale.up_{name}", f"autoscale.down_{name}", "or it would scale up and down in turn"
            yield Finding(
                {high: f"{up} must be above {cite(low)}, {why}", low: f"{down} must be below {cite(high)}, {why}"}
            )
    if scale.evaluate < scale.sample:
        yield _order(cite, "autoscale.evaluate", scale.evaluate, "autoscale.sample", scale.sample)


def containers(config: Config, cite: Cite) -> Iterator[Finding]:
    network = config.docker.network
    if network in ("host", "none") or network.startswith("container:"):
        why = "nothing could reach an instance" if network == "none" else "every instance would want the same port"
        yield Finding({"docker.network": f'"{network}" cannot work, {why}; use "bridge" or a network of your own'})


def environments(config: Config, cite: Cite) -> Iterator[Finding]:
    """Variables that the daemon itself sets for each instance."""
    runtime = config.service.runtime
    env = config.process.env if runtime == "process" else config.docker.env
    for name in ("HOST", "PORT"):
        if name in config.process.env:
            yield Finding({f"process.env.{name}": "the daemon sets it for each instance; remove it"})
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        if name in env and config.gpu.mode != "off":
            yield Finding(
                {
                    f"{runtime}.env.{name}": f"the daemon chooses each instance's GPUs, {cite('gpu.mode')}; remove it, "
                    'or set gpu.mode = "off"'
                },
                also=("gpu.mode", "service.runtime"),
            )


def _order(cite: Cite, high: str, above: float, low: str, below: float) -> Finding:
    """`high` is below `low`, and must not be."""
    return Finding({high: f"{above} is below {cite(low)}", low: f"{below} is above {cite(high)}"})


def _same_host(one: str, other: str) -> bool:
    return one == other or ANY_HOST in (one, other) or {one, other} == {"localhost", "127.0.0.1"}

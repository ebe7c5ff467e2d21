"""The TCP ports that the daemon, nginx and the instances want: free, theirs already, or somebody else's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from hasupervisor.config import Config
from hasupervisor.doctor.finding import Finding, fail, ok, warn
from hasupervisor.observe.ports import taken_ports

CHECK = "ports"
SPARE = 2  # a replacement starts beside the one that it replaces


@dataclass(frozen=True, slots=True)
class Holder:
    """Who listens; pid None: a process that only root may see."""

    pid: int | None
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid is not None else self.name


def examine(config: Config, daemon: int | None) -> list[Finding]:
    """`daemon` is the pid of the daemon that runs, None where none does."""
    holders = _holders()
    wanted = []
    if config.nginx.mode != "off":
        wanted.append(_gateway(config, holders))
    if config.http.listen is not None:
        wanted.append(_daemons("http.listen", config.http.listen.port, holders, daemon))
    return [*wanted, _instances(config)]


def _holders() -> Mapping[int, Holder]:
    found: dict[int, Holder] = {}
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr:
            continue
        if connection.pid is None:
            found.setdefault(connection.laddr.port, Holder(None, "a program of another user"))
            continue
        try:
            name = psutil.Process(connection.pid).name()
        except psutil.NoSuchProcess:
            continue  # it has ended meanwhile
        found[connection.laddr.port] = Holder(connection.pid, name)
    return found


def _gateway(config: Config, holders: Mapping[int, Holder]) -> Finding:
    port = config.nginx.listen.port
    holder = holders.get(port)
    if holder is None:
        return ok(CHECK, f"nginx.listen: {port} is free")
    if holder.name.startswith("nginx"):
        return ok(CHECK, f"nginx.listen: nginx has {port}")
    return _taken("nginx.listen", port, holder)


def _daemons(key: str, port: int, holders: Mapping[int, Holder], daemon: int | None) -> Finding:
    holder = holders.get(port)
    if holder is None:
        return ok(CHECK, f"{key}: {port} is free")
    if daemon is not None and holder.pid == daemon:
        return ok(CHECK, f"{key}: the daemon has {port}")
    return _taken(key, port, holder)


def _taken(key: str, port: int, holder: Holder) -> Finding:
    if holder.pid is None:
        return warn(
            CHECK, f"{key}: {port} is held by {holder}; who it is only root can see", "sudo chatglm-hactl doctor"
        )
    return fail(CHECK, f"{key}: {port} is held by {holder}", f"end it, or give {key} another port")


def _instances(config: Config) -> Finding:
    ports = config.service.ports
    free = len(ports) - len(taken_ports(ports, config.service.bind))
    words = f"service.ports: {free} of {len(ports)} between {ports[0]} and {ports[-1]} are free"
    if free < SPARE:
        return fail(CHECK, f"{words}: no instance can be replaced", f"ss -ltnp 'sport >= :{ports[0]}', or more of them")
    return ok(CHECK, words)

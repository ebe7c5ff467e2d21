"""Renders nginx's files from the templates in nginx/, and reads an upstream.conf back."""

from __future__ import annotations

import math
import os
import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from hasupervisor.act.nginx.conffile import quoted
from hasupervisor.act.nginx.settings import OWN_NAME, NginxSettings, parse_listen, plain_name
from hasupervisor.model import Address, Route, Routing

UPSTREAM = "upstream.conf"
GATEWAY = "gateway.conf"
MAIN = "nginx.conf"

# nginx wants at least one server in an upstream. Port 9 is the discard service; `down` is never connected to.
PLACEHOLDER = Address("127.0.0.1", 9)

# nginx opens two descriptors for a proxied request; twice the 4096 connections of a worker, and room for its files.
WORKER_DESCRIPTORS = 16384


@dataclass(frozen=True, slots=True)
class Written:
    """What an upstream.conf says."""

    generation: int = 0
    routing: Routing = field(default_factory=Routing)

    @property
    def routed(self) -> frozenset[Address]:
        return frozenset(route.address for route in self.routing.routes)

    @property
    def everyone(self) -> frozenset[Address]:
        return frozenset(route.address for route in self.routing.everyone)


def templates(folder: Path) -> jinja2.Environment:
    """The templates of a folder; a name that a template does not get is an error, not an empty string.

    They are all read now: an upgrade that replaces the files must not change a running daemon in parts.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
        autoescape=False,  # nginx files, not pages
    )
    environment.filters["quoted"] = quoted
    for name in environment.list_templates(["j2"]):
        environment.get_template(name)
    return environment


def canonical(routing: Routing) -> Routing:
    """The same table in one order, everyone including the routed: what differs afterwards differs for nginx."""
    routes = tuple(sorted(set(routing.routes), key=lambda route: (route.name, route.address)))
    everyone = tuple(sorted({*routing.everyone, *routes}, key=lambda route: (route.name, route.address)))
    return Routing(routes=routes, everyone=everyone)


def upstream_conf(env: jinja2.Environment, settings: NginxSettings, routing: Routing, generation: int) -> str:
    """The routing table as nginx reads it. Never empty, whoever is routed."""
    table = canonical(routing)
    routed = {route.address for route in table.routes}
    return env.get_template("upstream.conf.j2").render(
        generation=generation,
        routes=table.routes,
        others=[route for route in table.everyone if route.address not in routed],
        everyone=table.everyone,
        placeholder=PLACEHOLDER,
        max_fails=settings.max_fails,
        fail_timeout=max(1, math.ceil(settings.fail_timeout)),  # nginx counts whole seconds here
        max_in_flight=settings.max_in_flight,
    )


def gateway_conf(
    env: jinja2.Environment,
    settings: NginxSettings,
    *,
    include_upstream: bool,
    room: bool,
    file_logs: Sequence[str],
) -> str:
    """The server block and what it needs.

    `include_upstream` is false where nginx's own configuration includes upstream.conf beside gateway.conf; `room` says
    that the daemon answers on nginx.room; `file_logs` are the arguments of further access_log lines.
    """
    listen = parse_listen(settings.listen)
    names = settings.server_name.split()
    return env.get_template("gateway.conf.j2").render(
        upstream_path=settings.dir / UPSTREAM if include_upstream else None,
        listen=listen.directive,
        default_server="_" in names,
        server_names=names if plain_name(settings.server_name) else [*names, OWN_NAME],
        tries=settings.tries,
        max_in_flight=settings.max_in_flight,
        room=settings.room if room else None,
        waiting=settings.waiting and room,
        hold_read=math.ceil(settings.hold) + 5,  # the daemon answers in time; this is for the day it hangs
        health_path=settings.health_path,
        socket=settings.access_log_socket,
        file_logs=list(file_logs),
    )


def main_conf(env: jinja2.Environment, settings: NginxSettings) -> str:
    """The whole nginx.conf of mode `own`."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    descriptors = WORKER_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WORKER_DESCRIPTORS)
    return env.get_template("nginx.conf.j2").render(
        dir=settings.dir,
        descriptors=descriptors,
        user="root" if os.geteuid() == 0 else None,  # without root, nginx runs as the daemon's user anyway
    )


_GENERATION = re.compile(r"\$ha_generation\s*\{\s*default\s+[\"']?(\d+)")
_BLOCK = re.compile(r"^\s*upstream\s+(\S+)\s*\{")
_SERVER = re.compile(r"^\s*server\s+([^\s:;]+):(\d+)([^;#]*);?\s*(?:#\s*(\S+))?")


def read_upstream(text: str) -> Written:
    """What an upstream.conf says, as far as it can be understood: a file edited by hand must not stop a start."""
    generation = _GENERATION.search(text)
    routes: list[Route] = []
    everyone: list[Route] = []
    block = ""
    for line in text.splitlines():
        if opening := _BLOCK.match(line):
            block = opening[1]
        if not (server := _SERVER.match(line)) or not 0 < int(server[2]) < 65536:
            continue
        address = Address(server[1], int(server[2]))
        if address == PLACEHOLDER:
            continue
        route = Route(server[4] or str(address), address)
        everyone.append(route)
        if block == "ha" and "down" not in server[3].split():
            routes.append(route)
    return Written(int(generation[1]) if generation else 0, canonical(Routing(tuple(routes), tuple(everyone))))

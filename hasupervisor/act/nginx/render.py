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

_NO_NAME = re.compile(r"[^\w.:-]")  # what no name of an instance has, and a comment must not have

# nginx opens two descriptors for a proxied request; twice the 4096 connections of a worker, and room for its files.
WORKER_DESCRIPTORS = 16384


@dataclass(frozen=True, slots=True)
class Written:
    """What an upstream.conf says."""

    generation: int = 0
    routing: Routing = field(default_factory=Routing)
    boot: str = ""  # in which it was written; "": it does not say

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
    environment.filters["plain"] = lambda name: _NO_NAME.sub("?", str(name))
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
        boot=settings.boot,
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
    error_logs: Sequence[tuple[str, str]],
) -> str:
    """The server block and what it needs.

    `include_upstream` is false where nginx's own configuration includes upstream.conf beside gateway.conf; `room` says
    that the daemon answers on its socket; `file_logs` are the arguments of further access_log lines, `error_logs` where
    this nginx's errors go, and from which level on.
    """
    listen = parse_listen(settings.listen)
    names = settings.server_name.split()
    waiting = settings.hold > 0 and room
    return env.get_template("gateway.conf.j2").render(
        upstream_path=settings.dir / UPSTREAM if include_upstream else None,
        listen=listen.directive,
        default_server="_" in names,
        server_names=names if plain_name(settings.server_name) else [*names, OWN_NAME],
        admission=admission(settings.paths),
        tries=settings.tries,
        silence=f"{math.ceil(settings.silence * 1000)}ms",
        max_in_flight=settings.max_in_flight,
        room=settings.room if room else None,
        sign=settings.sign,
        waiting=waiting,
        away=", and the daemon that would hold the request does not answer" if waiting else "",
        hold_read=math.ceil(settings.hold) + 5,  # the daemon answers in time; this is for the day it hangs
        health_path=settings.health_path,
        socket=settings.access_log_socket,
        file_logs=list(file_logs),
        error_logs=list(error_logs),
    )


# A path that a server might read otherwise than nginx: two slashes, a dot segment, a backslash, encoded or not; bytes
# that are in no UTF-8, by which some decoders come to these.
_ODD = r"^\S+ [^?]*(?:(?:/|%2[Ff]){2}|\\|%5[Cc]|%00|%[Cc][01]|(?:/|%2[Ff])(?:\.|%2[Ee]){1,2}(?:/|%2[Ff]|;|#|\?|$))"


def admission(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Patterns over "METHOD PATH", the first that fits decides, each with the status of a refusal; "" lets it pass.

    What fits none is refused with 404.
    """
    more = []
    for path in paths:
        begin = path.removesuffix("*")
        more.append((rf"^\S+ {re.escape(begin)}" + ("" if begin != path else r"(?:\?|$)"), ""))
    return [
        (_ODD, "404"),
        *more,
        (r"^POST /(?:\?|$)", ""),
        (r"^\S+ /(?:\?|$)", "405"),
        (r"^\S+ /v1/", ""),
    ]


def main_conf(env: jinja2.Environment, settings: NginxSettings) -> str:
    """The whole nginx.conf of mode `own`."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    descriptors = WORKER_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WORKER_DESCRIPTORS)
    return env.get_template("nginx.conf.j2").render(
        dir=settings.dir,
        descriptors=descriptors,
        user="root" if os.geteuid() == 0 else None,  # without root, nginx runs as the daemon's user anyway
    )


_BOOT = re.compile(r"^# boot (\S+?):? ", re.M)
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
    boot = _BOOT.search(text)
    routing = canonical(Routing(tuple(routes), tuple(everyone)))
    return Written(int(generation[1]) if generation else 0, routing, boot[1] if boot else "")

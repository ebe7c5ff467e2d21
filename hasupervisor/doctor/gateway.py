"""nginx: is it there, does it take its configuration, does it include ours, can it be told to reload?"""

from __future__ import annotations

import os
from pathlib import Path

from hasupervisor.act.nginx.conffile import directives, read_tree, real
from hasupervisor.act.nginx.helped import UNIT, HelperControl, control_for
from hasupervisor.act.nginx.layout import Layout, find_layout
from hasupervisor.act.nginx.process import find_master
from hasupervisor.act.nginx.program import COMMAND_DEADLINE_S, Control, Ran, command_line, run, words
from hasupervisor.act.nginx.render import GATEWAY
from hasupervisor.act.nginx.roomsocket import Unsafe, refuse_if_shared
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble
from hasupervisor.doctor.finding import Finding, fail, ok, warn

CHECK = "nginx"
AS_ROOT = "sudo chatglm-hactl doctor"


async def examine(settings: NginxSettings) -> list[Finding]:
    if settings.mode == "off":
        return [ok(CHECK, 'nginx.mode = "off": requests are routed by somebody else')]
    try:
        version = await run((*command_line(settings)[:1], "-v"), COMMAND_DEADLINE_S)
    except NginxTrouble as trouble:
        return [fail(CHECK, str(trouble), "apt-get install nginx")]
    findings = [
        ok(CHECK, f"{words(version.output).removeprefix('nginx version: ')}, nginx.mode = {settings.mode}"),
        *_folder(settings),
    ]
    return findings if settings.own else findings + await _system(settings)


def _folder(settings: NginxSettings) -> list[Finding]:
    """Who else could answer nginx in the daemon's place."""
    if not settings.dir.is_dir():
        return []  # the daemon makes it
    try:
        refuse_if_shared(settings.dir, settings.worker_group)
    except Unsafe as unsafe:
        said, _, command = str(unsafe).rpartition("; ")
        return [fail(CHECK, f"nginx.dir: {said}: no request waits until then", command)]
    return []


async def _system(settings: NginxSettings) -> list[Finding]:
    control = control_for(settings)
    try:
        layout = await find_layout(settings)
        tested = await control.test(None)
    except NginxTrouble as trouble:
        return [fail(CHECK, str(trouble), "nginx -t")]
    return [
        _include(settings, layout),
        *_rivals(settings, layout),
        _test(settings, tested),
        _reload(settings, layout, control),
    ]


def _include(settings: NginxSettings, layout: Layout) -> Finding:
    gateway = settings.dir / GATEWAY
    if layout.included:
        return ok(CHECK, f"{layout.main} includes {gateway}")
    return fail(
        CHECK,
        f"{layout.main} does not include {gateway}: nginx does not know the instances",
        f"echo 'include {gateway};' > {layout.main.parent}/conf.d/chatglm-ha.conf",
    )


def _rivals(settings: NginxSettings, layout: Layout) -> list[Finding]:
    """Who else wants to be the default server of the gateway's port, which nginx takes for a mistake."""
    if "_" not in settings.server_name.split():
        return []
    gateway = real(settings.dir / GATEWAY)
    found = []
    for path, source in read_tree(layout.main, {gateway: ""}).sources.items():
        for directive in filter(None, directives(source.text)):
            name, *arguments = [word.text for word in directive.words] or [""]
            if name == "listen" and arguments and "default_server" in arguments[1:]:
                found += [path] if arguments[0].rpartition(":")[2] == settings.listen.rpartition(":")[2] else []
    return [
        fail(
            CHECK,
            f"{path} has the default server of port {settings.listen.rpartition(':')[2]}, and so has the gateway",
            f"rm {path}, or another port in nginx.listen",
        )
        for path in dict.fromkeys(found)
    ]


def _test(settings: NginxSettings, tested: Ran) -> Finding:
    if tested.ok:
        return ok(CHECK, "it accepts its whole configuration")
    said = words(tested.output)
    if "Permission denied" in said and os.geteuid() != 0:
        return warn(CHECK, f"whether it accepts its configuration only root can see: {said}", AS_ROOT)
    gateway = settings.dir / GATEWAY
    if str(gateway) in said and not gateway.exists():
        return warn(
            CHECK,
            f"{gateway} is not written yet, and nginx does not start without it",
            "systemctl start chatglm-ha (it writes the file)",
        )
    return fail(CHECK, f"it does not accept its configuration: {said}", "nginx -t")


def _reload(settings: NginxSettings, layout: Layout, control: Control) -> Finding:
    master = find_master(layout)
    if master is None:
        return fail(CHECK, "it is not running", "systemctl start nginx")
    if settings.reload:
        return ok(CHECK, f"it runs (pid {master}) and is reloaded by nginx.reload = {settings.reload!r}")
    if isinstance(control, HelperControl):
        return ok(CHECK, f"it runs (pid {master}) and is reloaded by root's helper, {UNIT}")
    try:
        os.kill(master, 0)
    except ProcessLookupError:
        return fail(CHECK, f"{layout.pid} names pid {master}, which is gone", "systemctl restart nginx")
    except PermissionError:
        return warn(CHECK, f"it runs (pid {master}); whether the daemon may reload it only root can see", AS_ROOT)
    return ok(CHECK, f"it runs (pid {master}) and can be reloaded")


def folder(settings: NginxSettings) -> Path | None:
    """Where the daemon writes nginx's files; None where it writes none."""
    return None if settings.mode == "off" else settings.dir

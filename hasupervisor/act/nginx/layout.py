"""Where this nginx has its files: known for our own, found out for the distribution's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hasupervisor.act.nginx.conffile import Tree, quoted, read_tree, real
from hasupervisor.act.nginx.program import (
    COMMAND_DEADLINE_S,
    TEST_DEADLINE_S,
    build_options,
    command_line,
    main_file,
    run,
    words,
)
from hasupervisor.act.nginx.render import GATEWAY, MAIN, UPSTREAM
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble

SERIOUS = ("crit", "alert", "emerg")  # levels of an error log above "error"


@dataclass(frozen=True, slots=True)
class Layout:
    """Absolute paths of one nginx, and what its configuration has to do with our files."""

    own: bool
    main: Path
    pid: Path
    error_log: Path | None  # None: not a file
    error_logs: tuple[tuple[str, str], ...]  # target and level of each error_log line that holds for our server block
    file_logs: tuple[str, ...]  # access_log arguments that the gateway's server block repeats
    included: bool  # whether the main file leads to gateway.conf
    include_upstream: bool  # whether gateway.conf has to include upstream.conf itself
    watched: frozenset[Path]  # files and folders whose change may change the configuration
    main_is_default: bool = False  # the one that this nginx reads when it is told nothing


async def find_layout(settings: NginxSettings) -> Layout:
    """Reads the configuration as it is on disk now. Raises NginxTrouble when nginx cannot be asked."""
    if settings.own:
        return _own_layout(settings)
    # It names its file also where it may not read all of it: no right is needed for this.
    main = main_file((await run((*command_line(settings), "-t"), TEST_DEADLINE_S)).output)
    if main is None:
        raise NginxTrouble(f"{settings.binary} -t does not say which configuration file it reads: run it to see why")
    built = await run((*command_line(settings), "-V"), COMMAND_DEADLINE_S)
    if not built.ok:
        raise NginxTrouble(f"{settings.binary} -V: {words(built.output)}")
    return _system_layout(settings, main, build_options(built.output))


def _own_layout(settings: NginxSettings) -> Layout:
    folder = settings.dir
    tree = read_tree(folder / MAIN)
    return Layout(
        own=True,
        main=folder / MAIN,
        pid=folder / "nginx.pid",
        error_log=folder / "error.log",
        error_logs=((f"{folder}/error.log", "error"),),
        # The daemon alone moves this file aside: nobody writes to it while there is none.
        file_logs=(f"{quoted(folder / 'access.log')} ha buffer=64k flush=1s if=$ha_alive",),
        included=True,
        include_upstream=True,
        watched=frozenset(tree.watched),
    )


def _system_layout(settings: NginxSettings, main: Path, built: dict[str, str]) -> Layout:
    prefix = Path(built.get("prefix", "/usr/local/nginx"))
    gateway, upstream = real(settings.dir / GATEWAY), real(settings.dir / UPSTREAM)
    # Read as if both were empty: what is included from elsewhere shows, and a first start has no files yet.
    tree = read_tree(main, {gateway: "", upstream: ""})
    reached = {real(path): path for path in tree.reached}
    pid = tree.first("pid")
    return Layout(
        own=False,
        main=main,
        pid=prefix / (pid.arguments[0] if pid else built.get("pid-path", "logs/nginx.pid")),
        error_log=_error_log(tree, prefix, built),
        error_logs=_error_logs(tree, built),
        file_logs=_file_logs(tree, reached.get(gateway), built) if settings.access_log_socket else (),
        included=gateway in reached,
        include_upstream=upstream not in reached,
        watched=frozenset(tree.watched | {settings.dir / UPSTREAM}),
        main_is_default=main == prefix / built.get("conf-path", "conf/nginx.conf"),
    )


def _error_log(tree: Tree, prefix: Path, built: dict[str, str]) -> Path | None:
    setting = tree.first("error_log")
    target = setting.arguments[0] if setting else built.get("error-log-path", "logs/error.log")
    return None if target == "stderr" or target.startswith(("syslog:", "memory:")) else prefix / target


def _error_logs(tree: Tree, built: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Where errors of our requests go: the http block's own, else those of the whole nginx. From `error` on: below that
    nginx writes lines for requests that nothing is wrong with.
    """
    found = [setting for setting in tree.settings if setting.name == "error_log"]
    for context in (("http",), ()):
        if here := {setting.arguments[0]: setting.arguments[-1] for setting in found if setting.context == context}:
            return tuple((target, level if level in SERIOUS else "error") for target, level in here.items())
    return ((built.get("error-log-path", "logs/error.log"), "error"),)


def _file_logs(tree: Tree, gateway: Path | None, built: dict[str, str]) -> tuple[str, ...]:
    """The access_log lines that our server block would inherit if it had none of its own.

    nginx reads a format's name when it reads the line, so a format that is defined after our include is no use there:
    its line is kept with the predefined `combined`.
    """
    lines = [found for found in tree.settings if found.name == "access_log" and found.context == ("http",)]
    if not lines:
        return (f"{quoted(built.get('http-log-path', 'logs/access.log'))} combined",)
    before = tree.settings[: tree.reached[gateway]] if gateway else []
    known = {"combined"} | {found.arguments[0] for found in before if found.name == "log_format"}
    kept = []
    for line in lines:
        if line.arguments[0] == "off":
            continue
        if len(line.arguments) > 1 and line.arguments[1] not in known and "=" not in line.arguments[1]:
            options = " ".join(line.arguments[2:])
            kept.append(f"{quoted(line.arguments[0])} combined {options}".rstrip())
        else:
            kept.append(line.raw)
    return tuple(kept)

"""The program `chatglm-had`: reads the configuration, takes the locks, runs the house until a signal ends it."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import structlog

from hasupervisor import __version__, ambient, assembly, config
from hasupervisor.components import ComponentExited
from hasupervisor.config import Config, ConfigError
from hasupervisor.descriptors import raise_limit
from hasupervisor.house import House
from hasupervisor.lock import CannotTake, Held, lock_folder, take_socket
from hasupervisor.memory import TooNew
from hasupervisor.report.log import CannotLog, loop_failure
from hasupervisor.runtimes.base import Refused, RuntimeTrouble
from hasupervisor.runtimes.docker import adopt
from hasupervisor.runtimes.ownership import Alive, Ownership
from hasupervisor.sdnotify import Keeping, Notifier

log = structlog.get_logger(__name__)

EXIT_DONE, EXIT_FAILED, EXIT_CONFIGURATION = 0, 1, 2
PROGRAM = f"chatglm-had {__version__}"


class ConfigSource:
    """Where the configuration comes from; a reload asks it again."""

    def __init__(self, path: Path | None, environment: Mapping[str, str]) -> None:
        self._path = path
        self._environment = dict(environment)

    @property
    def name(self) -> str:
        return str(self._path or config.DEFAULT_PATH)

    def load(self) -> Config:
        """Raises ConfigError."""
        return config.load(self._path, self._environment)

    def reload(self, old: Config) -> Config:
        """Raises ConfigError, also for what a running daemon cannot change."""
        return config.reload(old, self._path, self._environment)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 it cannot run here or has failed, 2 usage or configuration."""
    options = _parser().parse_args(arguments)
    source = ConfigSource(options.config, os.environ)
    try:
        settings = source.load()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION
    if options.check:
        for sentence in config.retired_keys(settings):
            print(sentence, file=sys.stderr)
        print(f"{source.name}: ok")
        return EXIT_DONE
    try:
        assembly.configure_log(settings)
    except CannotLog as error:
        print(f"chatglm-had: {error}", file=sys.stderr)
        return EXIT_FAILED
    ambient.keep_from_children()
    files = raise_limit()
    supervised = assembly.is_supervised(os.environ, os.getpid(), os.getppid())
    notifier = Notifier.from_environment(os.environ)
    keeping = Keeping.from_environment(os.environ, notifier)
    try:
        with ExitStack() as held:
            held.callback(lock_folder(settings.state.dir, PROGRAM).release)
            if settings.nginx.mode != "off":
                held.callback(_lock_nginx(settings.nginx.dir))
            owner = assembly.ownership(settings)
            if options.adopt:
                return _adopt(settings, owner)
            if owner is not None:
                owner.hold()
                held.callback(owner.release)
            kept = partial(keeping.take, "control")
            control = take_socket(settings.control.socket, settings.control.group, PROGRAM, kept)
            held.callback(control.release, stays=keeping.lasts)
            keeping.give("control", control.path, control.socket)
            belongings = partial(House, files=files, owner=owner, supervised=supervised)
            house = partial(belongings, settings, source, notifier, keeping, control.socket)
            asyncio.run(_run(settings, source, notifier, house, stop_all=options.on_exit == "stop"))
    except (Held, CannotTake, TooNew, ComponentExited, Refused, Alive) as error:
        print(f"chatglm-had: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def _lock_nginx(folder: Path) -> Callable[[], None]:
    """One daemon alone writes nginx's files and answers nginx; returns how to let go. Raises Held.

    A folder that cannot be locked (a full disk, a file in its place) is the gateway's trouble, which it says and tries
    again: instances are looked after all the same.
    """
    try:
        return lock_folder(folder, PROGRAM, "nginx.dir", "daemon.lock").release
    except CannotTake as error:
        log.warning(f"nginx.dir is not locked against a second daemon: {error}")
        return lambda: None


def _adopt(settings: Config, owner: Ownership | None) -> int:
    """`--adopt`: makes the containers of other state directories this one's. Returns the exit code. Raises Refused."""
    if owner is None:
        print("instances that are processes belong to the state directory that their records are in: nothing to adopt")
        return EXIT_DONE
    try:
        adopted = asyncio.run(adopt(assembly.docker_settings(settings, owner)))
    except RuntimeTrouble as trouble:
        print(f"chatglm-had: {trouble}", file=sys.stderr)
        return EXIT_FAILED
    for words in adopted:
        print(words)
    print("now start the daemon: systemctl start chatglm-ha" if adopted else "there is nothing to take over")
    return EXIT_DONE


async def _run(
    settings: Config, source: ConfigSource, notifier: Notifier, build: Callable[[], House], *, stop_all: bool
) -> None:
    """Runs the house until SIGTERM or SIGINT; a second one cuts the ending short."""
    stopping, at_once = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (at_once if stopping.is_set() else stopping).set()
        notifier.stopping()

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(loop_failure)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    house = build()
    loop.add_signal_handler(signal.SIGHUP, house.reload_by_signal)
    log.info(f"{PROGRAM} begins", config=source.name, pid=os.getpid())
    for key in config.unused_keys(settings):
        log.warning(f"{key} is set, but this release does not use it yet", where=settings.where(key))
    for sentence in config.retired_keys(settings):
        log.warning(sentence)
    await house.run(stopping)
    if stop_all:
        await _unless(at_once, house)
    log.info("stopped", left_running=not stop_all)


async def _unless(at_once: asyncio.Event, house: House) -> None:
    """Ends what was started, in good order, unless a second signal comes first."""
    log.info("stopping what was started; again to leave at once")
    ending = asyncio.create_task(house.stop_everything(), name="stop everything")
    hurry = asyncio.create_task(at_once.wait(), name="second signal")
    await asyncio.wait([ending, hurry], return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if ending.done():
        ending.result()
        return
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    log.warning("left at once: some of what was started may still run; the next daemon takes it over")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatglm-had", description="Keeps this host's ChatGLM instances serving; see also chatglm-hactl -h."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"configuration (default {config.DEFAULT_PATH})")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit: 0 valid, 2 not")
    parser.add_argument(
        "--on-exit",
        choices=("leave", "stop"),
        default="leave",
        help="leave (the default): instances and nginx go on serving | stop: end what was started",
    )
    parser.add_argument(
        "--adopt",
        action="store_true",
        help="take over the containers of this service that the daemon of another state directory has started, "
        "one that is gone for good; then exit",
    )
    parser.add_argument("-V", "--version", action="version", version=PROGRAM)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Runs the nginx binary and other commands with a deadline, and finds nginx's own words in what they print."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from hasupervisor.act.nginx.conffile import read_tree, real
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble
from hasupervisor.act.nginx.stage import build_shadow

# `nginx -t` takes 3-8 ms; names that do not resolve take seconds each.
TEST_DEADLINE_S = 10.0
COMMAND_DEADLINE_S = 15.0

# nginx lives where the PATH of users who are not root does not look.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/nginx/sbin"
_LINE = re.compile(
    r"^(?:nginx: |\d{4}/\d\d/\d\d \d\d:\d\d:\d\d )"
    r"(?:\[(?P<level>\w+)\] )?(?:\d+#\d+: )?(?:\*\d+ )?(?P<text>.*)$"
)
_MAIN_FILE = re.compile(r"configuration file (?P<path>.+) (?:syntax is ok|test (?:is successful|failed))")


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended, and all that it printed."""

    code: int
    output: str

    @property
    def ok(self) -> bool:
        return self.code == 0


class Control(Protocol):
    """What may need rights that we do not have: judging the whole configuration, reloading, reading why not."""

    def stage(self, main: Path, texts: Mapping[str, str]) -> Path:
        """Lays the next files, by name, where `test` can judge them with all that `main` includes; nothing live is
        touched. It blocks. Raises OSError.
        """

    async def test(self, staged: Path | None) -> Ran:
        """`nginx -t` of what is on disk, or of what `stage` has returned. Raises NginxTrouble when it cannot be run."""

    async def reload(self, master: int) -> None:
        """Asks the master to reload. Raises NginxTrouble. Its return proves nothing."""

    async def refusals(self) -> str:
        """The [emerg] lines of an error log that we may not read; "" where we may. Raises NginxTrouble."""


@dataclass(frozen=True, slots=True)
class DirectControl:
    """Runs the binary itself; reloads by the configured command, else by SIGHUP to the master."""

    settings: NginxSettings

    def stage(self, main: Path, texts: Mapping[str, str]) -> Path:
        candidates = {real(self.settings.dir / name): text for name, text in texts.items()}
        return build_shadow(read_tree(main, candidates), candidates, self._shadow)

    async def test(self, staged: Path | None) -> Ran:
        which = ("-c", str(staged)) if staged else ()
        ran = await run((*command_line(self.settings), *which, "-t"), TEST_DEADLINE_S)
        return replace(ran, output=ran.output.replace(str(self._shadow), "")) if staged else ran

    async def reload(self, master: int) -> None:
        if self.settings.reload:
            await reload_by_command(self.settings.reload)
            return
        try:
            os.kill(master, signal.SIGHUP)
        except ProcessLookupError:
            raise NginxTrouble(f"nginx's master (pid {master}) is gone") from None
        except PermissionError:
            raise NginxTrouble(
                f"not allowed to signal nginx's master (pid {master}): systemctl start chatglm-ha-nginx.socket, "
                "then this daemon again; or set nginx.reload to a command that may, such as "
                '"sudo -n systemctl reload nginx"'
            ) from None

    async def refusals(self) -> str:
        return ""

    @property
    def _shadow(self) -> Path:
        return self.settings.dir / "stage"


async def reload_by_command(command: str) -> None:
    """nginx.reload, where it is set. Raises NginxTrouble."""
    ran = await run(shlex.split(command), COMMAND_DEADLINE_S)
    if not ran.ok:
        raise NginxTrouble(f"nginx.reload = {command!r} exited {ran.code}: {words(ran.output) or 'no output'}")


def command_line(settings: NginxSettings) -> tuple[str, ...]:
    """The binary, with what tells it which nginx is meant. Raises NginxTrouble when there is no such binary."""
    path = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    binary = shutil.which(settings.binary, path=path)
    if binary is None:
        raise NginxTrouble(
            f'nginx.binary = "{settings.binary}": no such program in {path}; install it (apt-get install nginx)'
        )
    if not settings.own:
        return (binary,)
    return (binary, "-p", str(settings.dir), "-c", str(settings.dir / "nginx.conf"))


async def run(command: Sequence[str], deadline: float, cwd: Path | None = None) -> Ran:
    """Runs a command in a session of its own, both streams as one text. Raises NginxTrouble: not run, or too late."""
    environment = {key: value for key, value in os.environ.items() if key != "NGINX"}  # NGINX: sockets of an upgrade
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise NginxTrouble(f"cannot run {command[0]}: {error.strerror or error}") from error
    try:
        async with asyncio.timeout(deadline):
            output, _ = await process.communicate()
    except TimeoutError:
        raise NginxTrouble(f"{' '.join(command)} did not end within {deadline:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return Ran(process.returncode or 0, output.decode(errors="replace"))


def words(output: str) -> str:
    """What nginx complains of, without its prefixes; if it names no error, the last line that it printed."""
    plain: list[str] = []
    serious: list[str] = []
    for line in output.splitlines():
        if not line.strip():
            continue
        found = _LINE.match(line.strip())
        text = found["text"] if found else line.strip()
        plain.append(text)
        # The compiled-in log of an nginx that is not root's: an alert that stops nothing.
        loud = found is not None and found["level"] in ("emerg", "alert", "crit", "error")
        if loud and "could not open error log file" not in text and text not in serious:
            serious.append(text)
    return "; ".join(serious[:3]) or (plain[-1] if plain else "")


def main_file(output: str) -> Path | None:
    """The main configuration file, which every `nginx -t` names."""
    found = _MAIN_FILE.search(output)
    return Path(found["path"]) if found else None


def build_options(output: str) -> dict[str, str]:
    """The `--name=value` options that `nginx -V` says it was built with; the last of a name wins."""
    line = next((line for line in output.splitlines() if line.startswith("configure arguments:")), "")
    try:
        arguments = shlex.split(line.partition(":")[2])
    except ValueError:
        arguments = line.split()
    pairs = (argument.partition("=") for argument in arguments if argument.startswith("--"))
    return {name.removeprefix("--"): value for name, equals, value in pairs if equals}

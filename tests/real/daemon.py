"""The real daemon as a process, in folders and on ports of its own, and the real chatglm-hactl to command it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from hasupervisor.runtimes import process_records
from tests.real.dockerd import Engine

T = TypeVar("T")
Document = dict[str, Any]
Settings = Mapping[str, Mapping[str, object]]

BIN = Path(sys.executable).parent
START_S = 30.0  # the daemon answers after a second here; the rest is for a machine that is busy
STOP_S = 20.0
ASK_S = 10.0
COMMAND_S = 90.0
PORTS = 20
DEFECT = re.compile(r"\bBUG\b|Traceback \(most recent call last\)")

PATIENT: Settings = {
    "health": {"interval": 0.5, "timeout": 1.0, "start_timeout": 60.0},
    "repair": {"backoff": 0.2, "stop_grace": 10.0},
}
"""What the tests of a whole host run with: probes often, so that a test waits seconds where users wait longer."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Document:
        found: Document = json.loads(self.out)
        return found


class Daemon:
    """One chatglm-had with a folder of its own; it can be killed and started again, and its instances go on.

    `settings` are sections of the configuration, laid over a small one of this test's own: process runtime unless they
    say otherwise, nginx of its own on `gateway`, pages on `pages`.
    """

    def __init__(self, ports: range, settings: Settings) -> None:
        # Not pytest's tmp_path: a Unix socket's path is limited to 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="chatglm-ha-"))
        self.config_file = self.folder / "config.toml"
        self.socket = self.folder / "control.sock"
        self.nginx = self.folder / "nginx"
        self.gateway, self.pages = f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[2]}"
        self.ports = ports
        self._log = self.folder / "daemon.log"
        self._defects_seen = 0
        self._process: subprocess.Popen[bytes] | None = None
        # Each question on a connection of its own: the daemon that answered the last one may be dead.
        transport = httpx.HTTPTransport(uds=str(self.socket), limits=httpx.Limits(max_keepalive_connections=0))
        self._client = httpx.Client(transport=transport, base_url="http://ha", timeout=ASK_S)
        self.config = _laid_over(
            {
                "service": {"runtime": "process", "instances": 2, "min": 1, "max": 6},
                "gpu": {"mode": "off"},
                "autoscale": {"enabled": False},  # a test says itself when its idle instances may go
                "nginx": {"mode": "own", "listen": f"127.0.0.1:{ports[0]}", "dir": str(self.nginx)},
                "control": {"socket": str(self.socket), "group": ""},
                "http": {"listen": f"127.0.0.1:{ports[2]}"},
                "state": {"dir": str(self.folder / "state")},
                "log": {"format": "json"},
            },
            {"service": {"ports": f"{ports[3]}-{ports[-1]}"}},
            settings,
        )
        self.configure()

    # --- its configuration --------------------------------------------------------------------------------------------

    def configure(self, changes: Settings | None = None) -> None:
        """Writes the configuration, with changes that stay; a daemon that runs is not told."""
        self.config = _laid_over(self.config, changes or {})
        self.config_file.write_text(toml(self.config))

    # --- its life -----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None, "the daemon does not run"
        return self._process.pid

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = (str(BIN / "chatglm-had"),),
    ) -> None:
        """Starts it, with more in its environment, and waits until it answers on its socket."""
        command = [*program, "--config", str(self.config_file), *arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment(), **(env or {})},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while self.ask() is None:
            ended = self._process.poll()
            assert ended is None, f"the daemon ended with {ended}:\n{self.log()[-3000:]}"
            assert time.monotonic() < deadline, f"the daemon does not answer in {START_S} s:\n{self.log()[-3000:]}"
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; returns its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: a crash."""
        self._end(signal.SIGKILL)

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def hang_up(self) -> None:
        """SIGHUP: read the configuration again."""
        os.kill(self.pid, signal.SIGHUP)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None, "the daemon does not run"
        process.send_signal(number)
        return process.wait(STOP_S)

    def close(self) -> None:
        """Ends it, its nginx and what its process runtime has started, and removes its folder."""
        self._client.close()
        try:
            if self.runs():
                self.stop()
        finally:
            self._process = None
            while left := self._left_behind():  # again: a master starts another worker for one that was killed first
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.folder)

    def _left_behind(self) -> set[int]:
        """nginx's master and workers run in our folder; keepers and instances are in the records."""
        records = process_records.read_all(self.folder / "state" / "run")
        ours = {
            who.pid for record in records for who in (record.keeper, record.process) if process_records.is_alive(who)
        }
        return ours | {process.pid for process in psutil.process_iter() if _runs_in(process, self.nginx)}

    # --- what it says -------------------------------------------------------------------------------------------------

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def log_since(self, mark: int) -> str:
        """What was logged after the first `mark` characters."""
        return self.log()[mark:]

    def assert_no_defects(self) -> None:
        """Fails when the log has got a line with BUG or a traceback since this was last asked."""
        new, self._defects_seen = self.log_since(self._defects_seen), len(self.log())
        bad = [line for line in new.splitlines() if DEFECT.search(line)]
        assert not bad, "the daemon's log has defects:\n" + "\n".join(bad)

    def ask(self) -> Document | None:
        """The status document, or None while nobody gives one."""
        try:
            answer = self._client.get("/v1/status")
        except httpx.TransportError:
            return None
        found: Document = answer.json()
        return found if answer.status_code == 200 else None

    def status(self) -> Document:
        said = self.ask()
        assert said is not None, f"the daemon does not answer:\n{self.log()[-3000:]}"
        return said

    def instance(self, name: str) -> Document:
        """One instance of the status document; fails where there is none."""
        return one(self.status(), name)

    def history(self) -> list[Document]:
        """The last entries of the history, oldest first."""
        lines = self._client.get("/v1/history?n=1000").text.splitlines()
        return [json.loads(line) for line in lines]

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by name and labels."""
        text = httpx.get(f"{self.pages}/metrics", timeout=ASK_S).text
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def wait_for(
        self, condition: Callable[[Document], T | None], what: str = "", within: float = 20.0, every: float = 0.02
    ) -> T:
        """Asks for the status until `condition(status)` says something true, and returns that."""
        deadline = time.monotonic() + within
        while True:
            status = self.ask()
            if status is not None and (found := condition(status)):
                return found
            if time.monotonic() > deadline:
                shown = in_short(status) if status is not None else "no answer"
                raise AssertionError(f"not within {within} s: {what or condition}; {shown}\n{self.log()[-4000:]}")
            time.sleep(every)

    def wait_until_green(self, serving: int = 2, within: float = 40.0) -> Document:
        """Waits until so many are wanted and serve, and nothing is wrong."""

        def settled(status: Document) -> Document | None:
            whole = status["health"] == "green" and status["serving"] == status["desired"] == serving
            gone = len(status["instances"]) == serving
            return status if whole and gone and status["settled"] and status["stale"] is None else None

        return self.wait_for(settled, f"{serving} serve, all green", within)

    def put_right(self, serving: int = 2) -> Document:
        """Ends whatever a test before has left (a pause, drains, another count), and waits until all is green."""
        if not self.runs():
            self.start()
        status = self.wait_for(lambda status: status["settled"] and status, "has asked everybody")
        if status["paused"]:
            self.hactl("resume")
        for name in [i["name"] for i in status["instances"] if "drained by hand" in i["reason"]]:
            self.hactl("undrain", name)
        if status["desired"] != serving:
            self.hactl("scale", str(serving), "--force")
        return self.wait_until_green(serving)

    # --- its tool and its files ---------------------------------------------------------------------------------------

    def hactl(self, *arguments: str, timeout: float = COMMAND_S) -> Ran:
        """Runs the real chatglm-hactl against this daemon."""
        return run([str(BIN / "chatglm-hactl"), "--socket", str(self.socket), *arguments], timeout)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Begins a chatglm-hactl that is waited for later: it waits itself."""
        command = [str(BIN / "chatglm-hactl"), "--socket", str(self.socket), *arguments]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def upstream(self) -> str:
        """upstream.conf as it is on disk."""
        return (self.nginx / "upstream.conf").read_text()

    def generation(self) -> int:
        """What nginx's workers answer."""
        return int(httpx.get(f"{self.gateway}/ha/generation", timeout=ASK_S).text)

    def post(self, prompt: str = "你好", timeout: float = 60.0) -> httpx.Response:
        """One request of a user through the gateway."""
        return httpx.post(f"{self.gateway}/", json={"prompt": prompt, "history": []}, timeout=timeout)


@contextmanager
def daemon(ports: range, *settings: Settings) -> Iterator[Daemon]:
    """A Daemon that is not started yet; whatever it has started by the end is ended, and its log has no defects."""
    daemon = Daemon(ports, _laid_over({}, *settings))
    try:
        yield daemon
        daemon.assert_no_defects()
    finally:
        daemon.close()


def on_docker(engine: Engine, image: str, env: Mapping[str, str] | None = None) -> Settings:
    """Settings for instances as containers of a test's own engine."""
    docker = {"host": engine.host, "image": image, "volumes": [], "env": dict(env or {}), "shm_size": "16m"}
    return {"service": {"runtime": "docker"}, "docker": docker}


def as_processes(server: Path, env: Mapping[str, str] | None = None) -> Settings:
    """Settings for stand-ins as plain processes; in their answers each calls itself by its port."""
    command = ["sh", "-c", f"exec {{python}} -S {server} $PORT"]
    return {"process": {"command": command, "env": dict(env or {})}}


def one(status: Document, name: str) -> Document:
    """The instance of that name in a status document."""
    found: Document = next(instance for instance in status["instances"] if instance["name"] == name)
    return found


def wall(stamp: str) -> float:
    """Unix seconds of a time in a document."""
    return datetime.fromisoformat(stamp).timestamp()


def in_short(status: Document) -> str:
    """A status in a few lines, for a failure's message."""
    lines = [f"{status['health']}: {status['summary']}, stale {status['stale']}, nginx {status['nginx']}"]
    lines += [f"  {i['name']} {i['state']} routed={i['routed']}: {i['reason']}" for i in status["instances"]]
    lines += [f"  ! {problem['subject']}: {problem['sentence']}" for problem in status["problems"]]
    return "\n".join(lines)


def run(command: list[str], timeout: float = COMMAND_S, env: Mapping[str, str] | None = None) -> Ran:
    """Runs a program to its end."""
    ended = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**environment(), **(env or {})},
    )
    return Ran(ended.returncode, ended.stdout, ended.stderr)


def environment() -> dict[str, str]:
    """This process's environment without what would configure a daemon."""
    foreign = ("DOCKER_HOST", "NOTIFY_SOCKET", "JOURNAL_STREAM", "WATCHDOG_USEC", "WATCHDOG_PID")
    return {key: value for key, value in os.environ.items() if key not in foreign and "CHATGLM" not in key}


def toml(config: Settings) -> str:
    """Sections as a TOML document."""
    lines: list[str] = []
    for section, keys in config.items():
        lines += [f"[{section}]", *(f"{key} = {_value(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _laid_over(*layers: Settings) -> dict[str, dict[str, object]]:
    """Sections laid over one another, the last one wins; a key whose value is None is left out."""
    config: dict[str, dict[str, object]] = {}
    for layer in layers:
        for section, keys in layer.items():
            config.setdefault(section, {}).update(keys)
    return {section: {k: v for k, v in keys.items() if v is not None} for section, keys in config.items()}


def _runs_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder) or f" {folder}/nginx.conf" in " ".join(process.cmdline())
    except psutil.Error:
        return False

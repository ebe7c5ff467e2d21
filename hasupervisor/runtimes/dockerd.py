"""Asks dockerd through the blocking SDK: every question in a thread with a deadline, every failure in words."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import docker
import requests
import urllib3
from docker.errors import APIError
from docker.utils import kwargs_from_env

from hasupervisor.runtimes.base import RuntimeTrouble
from hasupervisor.runtimes.lanes import Lanes, Overdue

T = TypeVar("T")

DEFAULT_HOST = "unix:///var/run/docker.sock"
ENGINE = "engine"
"""The lane of questions about dockerd as a whole; every other lane is an instance's name."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that each kind of call may take. A healthy dockerd needs milliseconds for all but create and start."""

    engine: float = 5.0  # list, version, info
    ping: float = 2.0
    inspect: float = 5.0
    create: float = 30.0
    start: float = 60.0  # runtime hooks run in it; without persistence mode the GPU driver wakes up for seconds
    term: float = 5.0
    kill: float = 15.0  # dockerd itself gives up on a process in D state after 12 s, and says so
    ended: float = 5.0  # from SIGKILL to the exit being known
    output: float = 5.0
    remove: float = 20.0


class NoAnswer(Exception):
    """One container gives no answer within the deadline, while dockerd answers about others."""


class Dockerd:
    """The connection to one engine. Its calls open a connection each: one that hangs is not met again in a pool."""

    def __init__(self, host: str, deadlines: Deadlines) -> None:
        self._options = kwargs_from_env()  # DOCKER_HOST and, for TCP, DOCKER_TLS_VERIFY, DOCKER_CERT_PATH
        if host:
            self._options["base_url"] = host
        self.host: str = self._options.get("base_url") or DEFAULT_HOST
        self._options["base_url"] = self.host
        self.deadlines = deadlines
        self._lanes = Lanes()
        self._version: str | None = None  # of the API, as negotiated; a client made with it costs 0.2 ms and no call

    @property
    def is_local(self) -> bool:
        return self.host.startswith(("unix://", "http+unix://", "/"))

    def forget(self) -> None:
        """dockerd may be another one now (restarted, upgraded): ask for its version again."""
        self._version = None

    def client(self, timeout: float | None) -> docker.APIClient:
        """A client for the calling thread alone; `timeout` seconds of silence end a call. It blocks: never in the loop.

        None: a stream that may be silent for ever.
        """
        if self._version is None:
            # The SDK hands the timeout on to requests, which takes fractions; its type says int.
            self._version = docker.APIClient(timeout=cast(int, self.deadlines.engine), **self._options).api_version
        return docker.APIClient(version=self._version, timeout=cast(int, timeout), **self._options)

    async def ask(self, lane: str, question: Callable[[docker.APIClient], T], deadline: float) -> T:
        """What `question(client)` returns.

        Raises RuntimeTrouble when dockerd as a whole gives no answer, NoAnswer when only this container does not, and
        APIError when dockerd answers no.
        """

        def call() -> T:
            client = self.client(deadline)
            try:
                return question(client)
            finally:
                client.close()

        try:
            # The client's own timeout ends most calls that hang; a second more, so that it comes first.
            return await self._lanes.call(lane, call, deadline + 1.0)
        except APIError:
            raise
        except (
            Overdue,
            OSError,
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            docker.errors.DockerException,
        ) as e:
            if lane != ENGINE and (isinstance(e, Overdue) or is_timeout(e)):
                await self.ping()
                raise NoAnswer(
                    f"dockerd gives no answer about it in {deadline:g} s, while it answers about others"
                ) from e
            raise RuntimeTrouble(in_words(e, self.host, deadline)) from e

    async def ping(self) -> None:
        """Returns when dockerd answers anything at all. Raises RuntimeTrouble."""
        await self.ask(ENGINE, lambda client: client.ping(), self.deadlines.ping)

    async def ask_engine(
        self, what: str, question: Callable[[docker.APIClient], T], deadline: float | None = None
    ) -> T:
        """As `ask`, of the engine as a whole: an answer "no" is RuntimeTrouble too. `what`: "list containers"."""
        try:
            return await self.ask(ENGINE, question, self.deadlines.engine if deadline is None else deadline)
        except APIError as e:
            raise RuntimeTrouble(f"dockerd at {self.host} cannot {what}: {said(e)}; journalctl -u docker") from e


def said(error: APIError) -> str:
    """dockerd's own words, on one line."""
    return " ".join(str(error.explanation or error).split())


def in_words(error: BaseException, host: str, seconds: float) -> str:
    """Why dockerd cannot be asked, and the next command."""
    reason = next((e for e in causes(error) if isinstance(e, OSError) and e.errno is not None), None)
    if isinstance(error, Overdue) or is_timeout(error):
        return f"cannot reach dockerd at {host}: no answer in {seconds:g} s; systemctl status docker"
    if isinstance(reason, PermissionError):
        who = user_name()
        return (
            f"permission denied on {host} for the user {who}: usermod -aG docker {who}, then log in again "
            "(the service: systemctl restart chatglm-ha)"
        )
    if isinstance(reason, FileNotFoundError):
        return f"cannot reach dockerd at {host}: no such socket: is docker running? systemctl status docker"
    if isinstance(reason, ConnectionRefusedError):
        return f"cannot reach dockerd at {host}: nobody listens there: is docker running? systemctl status docker"
    if reason is not None:
        return f"cannot reach dockerd at {host}: {os.strerror(reason.errno or 0)}; systemctl status docker"
    return f"cannot reach dockerd at {host}: {' '.join(str(error).split())}; systemctl status docker"


def user_name() -> str:
    """As whom this process runs; the number where it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def is_timeout(error: BaseException) -> bool:
    """Whether it is silence that ended a call; requests wraps it in one of several ways."""
    silent = (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)
    return any(isinstance(e, silent) for e in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what is wrapped in it, by `raise from` or (requests, urllib3) in its arguments."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__, *one.args, getattr(one, "reason", None)]

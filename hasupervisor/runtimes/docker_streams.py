"""dockerd's endless answers: the events of our containers, and a container's output as lines."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException
from docker.types.daemon import CancellableStream

from hasupervisor.runtimes import docker_launch as labels
from hasupervisor.runtimes.base import RuntimeTrouble
from hasupervisor.runtimes.dockerd import Dockerd, in_words
from hasupervisor.runtimes.lanes import Feed

BACKOFF, BACKOFF_MAX = 0.1, 5.0  # seconds between tries to open a lost stream of events

EVENTS = ("create", "start", "die", "oom", "pause", "unpause", "stop", "destroy", "rename")
"""The events after which a container is not as it was; exec, attach, top and the like are left out at the source."""

LOST = (OSError, requests.RequestException, urllib3.exceptions.HTTPError, DockerException)


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a container of ours; without a name: the stream was opened, something may have been missed."""

    name: str = ""
    container_id: str = ""
    action: str = ""
    exit_code: int | None = None  # with "die", as Docker counts


class Events:
    """One stream of events, opened again whenever it is lost."""

    def __init__(self, dockerd: Dockerd, service: str) -> None:
        self._dockerd = dockerd
        self._filters = {"type": "container", "label": f"{labels.SERVICE}={service}", "event": list(EVENTS)}
        self._stream: CancellableStream[Any] | None = None
        self._feed: Feed[Event] = Feed("docker events", self._produce, self._interrupt)

    def items(self) -> AsyncGenerator[Event, None]:
        return self._feed.items()

    def end(self) -> None:
        self._feed.end()

    def _produce(self, feed: Feed[Event]) -> None:
        pause = BACKOFF
        while not feed.left.is_set():
            # Suppressed: that dockerd cannot be asked is said by `list`, which is asked all the time.
            with suppress(*LOST):
                self._stream = self._dockerd.client(None).events(decode=True, filters=self._filters)
                pause = BACKOFF
                if not feed.emit(Event()):
                    return
                for message in self._stream:
                    if not feed.emit(event(message)):
                        return
            self._dockerd.forget()
            feed.left.wait(pause * random.uniform(0.5, 1.0))
            pause = min(BACKOFF_MAX, pause * 2)

    def _interrupt(self) -> None:
        close(self._stream)


def event(message: Mapping[str, Any]) -> Event:
    actor = message.get("Actor") or {}
    attributes = actor.get("Attributes") or {}
    code = str(attributes.get("exitCode", ""))
    return Event(
        name=str(attributes.get(labels.NAME, "")),
        container_id=str(actor.get("ID", "")),
        action=str(message.get("Action", "")),
        exit_code=int(code) if code.isdigit() else None,
    )


class Output:
    """A container's output, line by line, for one reader."""

    def __init__(self, dockerd: Dockerd, container_id: str, lines: int, follow: bool) -> None:
        self._dockerd, self._id, self._lines, self._follow = dockerd, container_id, lines, follow
        self._stream: CancellableStream[bytes] | None = None
        self._feed: Feed[str] = Feed(f"docker logs {container_id[:12]}", self._produce, self._interrupt)

    def items(self) -> AsyncGenerator[str, None]:
        return self._feed.items()

    def end(self) -> None:
        self._feed.end()

    def _produce(self, feed: Feed[str]) -> None:
        try:
            # The deadline is for the beginning of the answer; the SDK takes it off then, for output may be silent.
            client = self._dockerd.client(self._dockerd.deadlines.output)
            self._stream = client.logs(self._id, stream=True, follow=self._follow, tail=self._lines)
            if feed.left.is_set():  # before there was a stream that could be interrupted
                close(self._stream)
                return
            for line in lines_of(self._stream):
                if not feed.emit(line):
                    return
        except APIError as e:
            raise RuntimeTrouble(f"its output cannot be read: {e.explanation}; docker logs {self._id[:12]}") from e
        except LOST as e:
            if not feed.left.is_set():
                raise RuntimeTrouble(in_words(e, self._dockerd.host, self._dockerd.deadlines.output)) from e

    def _interrupt(self) -> None:
        close(self._stream)


def lines_of(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines without their ends, out of pieces that end anywhere; bytes that are no UTF-8 become U+FFFD."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r").decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def tail(client: docker.APIClient, container_id: str, lines: int) -> str:
    """The last lines of a container's output. It blocks."""
    return "\n".join(lines_of(iter([client.logs(container_id, tail=lines)])))


def close(stream: CancellableStream[Any] | None) -> None:
    """Wakes a thread that reads from the stream: shuts its socket down."""
    if stream is None:
        return
    # AttributeError: the answer has ended meanwhile and urllib3 has let go of the socket.
    with suppress(OSError, AttributeError):
        stream.close()

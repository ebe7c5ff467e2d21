"""Two daemons on one dockerd with one service name: the second refuses, and names the first."""

from __future__ import annotations

import structlog

from hasupervisor.model import Problem
from hasupervisor.runtimes.base import Refused
from hasupervisor.runtimes.docker_launch import DockerSettings
from hasupervisor.runtimes.docker_view import Foreign
from hasupervisor.runtimes.ownership import alive

log = structlog.get_logger(__name__)


def take_over(other: Foreign, settings: DockerSettings, engine: str) -> None:
    """Takes over the containers of a state directory that was lost: this one has its place. Raises Refused.

    Whoever holds the lock of the directory at that place is its daemon; the one before it cannot live any more, unless
    it lives in another mount namespace, which its name in the kernel tells.
    """
    owner = settings.owner
    assert owner is not None
    who = alive(other.identity, other.place)
    if other.place != owner.place or who is not None:
        raise Refused(refusal(other, settings.service, engine, who))
    owner.adopt(other.identity)
    log.warning(
        f"{_names(other)}: taken over from a state directory that was at {other.place} before, and is lost",
        service=settings.service,
    )


def adopt(other: Foreign, settings: DockerSettings, engine: str) -> str:
    """Takes over what a person says is to be taken over; returns the words for it. Raises Refused when it is alive."""
    owner, who = settings.owner, alive(other.identity, other.place)
    assert owner is not None
    if who is not None:
        raise Refused(
            f"the daemon with the state directory {other.place} runs ({who}), and keeps what it has started: "
            f"{_names(other)}; stop it first: systemctl stop chatglm-ha"
        )
    owner.adopt(other.identity)
    return f"{_names(other)}: taken over from the state directory {other.place}"


def refusal(other: Foreign, service: str, engine: str, who: str | None) -> str:
    lives = f", which runs ({who})" if who is not None else ""
    return (
        f"the service {service} on {engine} is that of the daemon with the state directory {other.place}{lives}: "
        f"{_names(other)}; give this one another service.name, or, once that daemon is gone for good, "
        "take over what it has started: chatglm-had --adopt"
    )


def beside(other: Foreign, service: str) -> Problem:
    """Another daemon that came later, or was started in the same moment: it is left alone."""
    words = f"another daemon, with the state directory {other.place}, runs the service {service} too: {_names(other)}"
    return Problem("dockerd", words, "give one of them another service.name, or stop it: systemctl stop chatglm-ha")


def _names(other: Foreign) -> str:
    return ", ".join(other.names)

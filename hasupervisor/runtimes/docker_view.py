"""Turns what dockerd lists and inspects into facts."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hasupervisor.model import Address, Fact, Phase
from hasupervisor.runtimes import docker_launch as labels
from hasupervisor.runtimes.docker_launch import HOST_NETWORK
from hasupervisor.runtimes.ownership import Ownership

Entry = Mapping[str, Any]
"""One container in the answer to GET /containers/json."""

PHASES = {
    "created": Phase.CREATED,
    "running": Phase.RUNNING,
    "restarting": Phase.RUNNING,
    "paused": Phase.PAUSED,
    "exited": Phase.EXITED,
    "dead": Phase.EXITED,  # its removal failed half-way
    "removing": Phase.REMOVING,
}
SIGNALLED = 128
"""Docker, as a shell, reports a process that died of signal N as exit code 128 + N."""

WILDCARDS = ("", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Details:
    """What only an inspection tells."""

    pid: int | None
    exit_code: int | None
    oom_killed: bool
    started_at: float | None  # monotonic
    image: str


def details(inspected: Mapping[str, Any], now: float, now_wall: float) -> Details:
    """From the answer to GET /containers/ID/json; `now` monotonic, `now_wall` Unix seconds of the same moment."""
    state = inspected["State"]
    started = wall_time(state.get("StartedAt", ""))
    has_ended = state.get("Status") in ("exited", "dead")
    return Details(
        pid=state.get("Pid") or None,
        exit_code=exit_code(int(state["ExitCode"])) if has_ended else None,
        oom_killed=bool(state.get("OOMKilled")),
        started_at=None if started is None else now - max(0.0, now_wall - started),
        image=str(inspected.get("Config", {}).get("Image", "")),
    )


def wall_time(stamp: str) -> float | None:
    """Unix seconds of dockerd's RFC 3339; None for its year 1, which means never."""
    if not stamp or stamp.startswith("0001-"):
        return None
    return datetime.fromisoformat(stamp).timestamp()


def exit_code(code: int) -> int:
    """As in model.Fact: negative for a death by signal."""
    return SIGNALLED - code if SIGNALLED < code <= SIGNALLED + 64 else code


def is_ours(entry: Entry, service: str, owner: Ownership | None = None) -> bool:
    """Whether we made it: it has every label that a start of ours writes, and no other daemon's identity.

    A release before wrote no identity: what has none is adopted.
    """
    found = entry.get("Labels") or {}
    if owner is not None and found.get(labels.OWNER, owner.id) not in owner.ids:
        return False
    numbers = found.get(labels.PORT, ""), found.get(labels.INSTANCE_PORT, "")
    return bool(found.get(labels.SERVICE) == service and found.get(labels.NAME) and all(n.isdecimal() for n in numbers))


@dataclass(frozen=True, slots=True)
class Foreign:
    """Containers of this service that belong to the daemon of another state directory."""

    identity: str
    place: str  # HOST:PATH of that directory
    names: tuple[str, ...]


def foreign(entries: Iterable[Entry], service: str, owner: Ownership | None) -> tuple[Foreign, ...]:
    """By the identity that they carry."""
    names: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        found = entry.get("Labels") or {}
        identity = found.get(labels.OWNER)
        if owner is not None and found.get(labels.SERVICE) == service and identity and identity not in owner.ids:
            names.setdefault((identity, found.get(labels.PLACE, "")), []).append(container_name(entry))
    return tuple(Foreign(identity, place, tuple(sorted(who))) for (identity, place), who in sorted(names.items()))


def instance_name(entry: Entry) -> str:
    return str(entry["Labels"][labels.NAME])


def network_of(entry: Entry) -> str:
    """The network that it was started in."""
    mode = str((entry.get("HostConfig") or {}).get("NetworkMode") or "bridge")
    return "bridge" if mode == "default" else mode


def container_name(entry: Entry) -> str:
    names = [name for name in entry.get("Names") or [""] if name.count("/") <= 1]  # the others are links of old
    return str(names[0]).removeprefix("/") if names else ""


def fact(entry: Entry, known: Details | None, direct: bool) -> Fact:
    """`known` None: not inspected yet, or it gives no answer. `direct`: nginx can reach a container's own address."""
    found = entry["Labels"]
    phase = PHASES.get(str(entry.get("State")), Phase.CREATED)
    endpoint = Address(found.get(labels.BIND) or "127.0.0.1", int(found[labels.PORT]))
    gpus = str(found.get(labels.GPUS, ""))
    return Fact(
        name=instance_name(entry),
        runtime_id=str(entry["Id"]),
        phase=phase,
        endpoint=endpoint,
        address=address(entry, endpoint, int(found[labels.INSTANCE_PORT]), direct),
        started_at=known.started_at if known else None,
        pid=known.pid if known else None,
        exit_code=exit_code_of(entry, known) if phase is Phase.EXITED else None,
        oom_killed=known.oom_killed if known else False,
        image=(known.image if known else "") or str(entry.get("Image", "")),
        gpus=tuple(gpus.split(",")) if gpus else (),
        inside_port=int(found[labels.INSTANCE_PORT]),
    )


def exit_code_of(entry: Entry, known: Details | None) -> int | None:
    """Inspected, or read from the list's "Exited (137) 3 seconds ago", which a stuck container still has."""
    if known is not None and known.exit_code is not None:
        return known.exit_code
    match = re.match(r"Exited \((\d+)\)", str(entry.get("Status", "")))
    return exit_code(int(match[1])) if match else None


def address(entry: Entry, endpoint: Address, instance_port: int, direct: bool) -> Address:
    """Where nginx and the probes reach it: its own address, or the port published on this host."""
    local = Address("127.0.0.1", endpoint.port) if endpoint.host in WILDCARDS else endpoint
    if not direct or network_of(entry) == HOST_NETWORK:
        return local
    networks = (entry.get("NetworkSettings") or {}).get("Networks") or {}
    own = next((n["IPAddress"] for n in networks.values() if n and n.get("IPAddress")), "")
    return Address(own, instance_port) if own else local


def now_both() -> tuple[float, float]:
    """This moment, monotonic and Unix seconds."""
    return time.monotonic(), time.time()

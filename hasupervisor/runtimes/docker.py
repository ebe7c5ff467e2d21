"""Instances as containers of a Docker engine."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import docker
import psutil
from docker.errors import APIError

from hasupervisor.model import Fact, Problem
from hasupervisor.runtimes import docker_launch, docker_owner, docker_view
from hasupervisor.runtimes.base import Launch, LaunchFailed, PortTaken, RuntimeTrouble, Stuck
from hasupervisor.runtimes.docker_launch import HOST_NETWORK, DockerSettings
from hasupervisor.runtimes.docker_streams import Event, Events, Output, tail
from hasupervisor.runtimes.docker_view import Details, Entry, network_of
from hasupervisor.runtimes.dockerd import Deadlines, Dockerd, NoAnswer, said
from hasupervisor.runtimes.ports import is_free

Entries = list[Entry]  # written down here: inside the class `list` is a method

TAIL_LINES = 50
LIST_WAITS = 1.0
"""Seconds that a list waits for the inspection of new containers; what comes later is in the next list."""
DETAILS_AGE = 60.0
"""Seconds until a container is inspected again without an event: the net under a missed one."""
INSPECT_AGAIN = 10.0
"""Seconds until an inspection that got no answer is tried again."""


class StillRuns(Stuck):
    """A container that was to be removed runs, as dockerd sees it."""


async def adopt(settings: DockerSettings) -> list[str]:
    """Makes what others have started of this service the owner's, and says what that is.

    Raises Refused when one of those daemons is seen to run, RuntimeTrouble when dockerd cannot be asked.
    """
    dockerd = Dockerd(settings.host, Deadlines())
    filters = {"label": f"{docker_launch.SERVICE}={settings.service}"}
    entries = await dockerd.ask_engine("list containers", lambda client: client.containers(all=True, filters=filters))
    others = docker_view.foreign(entries, settings.service, settings.owner)
    return [docker_owner.adopt(other, settings, dockerd.host) for other in others]


@dataclass(frozen=True, slots=True)
class _Known:
    state: str
    details: Details | None
    until: float  # monotonic


class DockerRuntime:
    """The Runtime (base.py) over one dockerd: `list` shows the containers that carry our service's label."""

    def __init__(
        self, settings: DockerSettings, deadlines: Deadlines | None = None, *, is_claimed: bool = False
    ) -> None:
        """`is_claimed`: it is known already that the containers of this service are this daemon's."""
        self._settings = settings
        self._deadlines = deadlines or Deadlines()
        self._dockerd = Dockerd(settings.host, self._deadlines)
        self._direct: dict[str, bool] = {}  # by network: whether a container's own address there can be reached
        self.is_claimed = is_claimed
        self._others: tuple[docker_view.Foreign, ...] = ()
        self._known: dict[str, _Known] = {}
        self._died: dict[str, int] = {}  # by container id: exit codes that events told, until it is started or removed
        self._inspections: dict[str, asyncio.Task[None]] = {}
        self._streams: set[Events | Output] = set()

    def reconfigure(self, settings: DockerSettings) -> None:
        """What instances started from now on are made of. Host, service and reach stay as they were."""
        self._settings = settings

    # --- seeing -------------------------------------------------------------------------------------------------------

    async def list(self) -> list[Fact]:
        everybody = await self._entries()
        self._claim(everybody)
        entries = self._with_deaths([entry for entry in everybody if self._is_ours(entry)])
        direct = {network: await self._reaches_directly(network) for network in {network_of(e) for e in entries}}
        await self._inspect_changed(entries)
        return [docker_view.fact(entry, self._details(entry), direct[network_of(entry)]) for entry in entries]

    async def claim(self) -> None:
        """Makes sure that the containers of this service are this daemon's. Raises Refused, RuntimeTrouble."""
        self._claim(await self._entries())

    def _claim(self, entries: Entries) -> None:
        """What others have at the first look is theirs, and reason enough to do nothing at all."""
        others = docker_view.foreign(entries, self._settings.service, self._settings.owner)
        if self.is_claimed or self._settings.owner is None:
            self._others = others
            return
        for other in others:
            docker_owner.take_over(other, self._settings, self._dockerd.host)
        self.is_claimed = True

    def _is_ours(self, entry: Entry) -> bool:
        return docker_view.is_ours(entry, self._settings.service, self._settings.owner)

    async def ping(self) -> None:
        await self._dockerd.ask_engine("answer a ping", lambda client: client.ping())

    async def strangers(self) -> frozenset[str]:
        service = self._settings.service
        filters = {"name": f"^/{re.escape(service)}-"}
        entries = await self._dockerd.ask_engine(
            "list containers", lambda client: client.containers(all=True, filters=filters)
        )
        looks_like_ours = re.compile(rf"{re.escape(service)}-\d+")
        others = (docker_view.container_name(entry) for entry in entries if not self._is_ours(entry))
        return frozenset(name for name in others if looks_like_ours.fullmatch(name))

    def problems(self) -> Sequence[Problem]:
        """Daemons that manage containers of the same service on the same dockerd: they came after this one."""
        return [docker_owner.beside(other, self._settings.service) for other in self._others]

    async def changes(self) -> AsyncIterator[str]:
        events = Events(self._dockerd, self._settings.service)
        self._streams.add(events)
        try:
            async with aclosing(events.items()) as items:
                async for event in items:
                    self._learn(event)
                    yield event.name
        finally:
            self._streams.discard(events)

    def _learn(self, event: Event) -> None:
        self._known.pop(event.container_id, None)
        if not event.name:  # dockerd was away, or we were: what was known before may be old
            self._known.clear()
            self._died.clear()
            self._direct.clear()
        elif event.action == "die" and event.exit_code is not None:
            self._died[event.container_id] = event.exit_code
        elif event.action in ("start", "destroy"):
            self._died.pop(event.container_id, None)

    def _with_deaths(self, entries: Entries) -> Entries:
        """The list, corrected: dockerd tells of a death before its own list knows of it."""
        dead = {key: {"State": "exited", "Status": f"Exited ({code}) just now"} for key, code in self._died.items()}
        return [{**e, **dead.get(e["Id"], {})} if e["State"] == "running" else e for e in entries]

    async def _entries(self) -> Entries:
        # The SDK's containers.list() would inspect each one, and one that is stuck would block them all.
        filters = {"label": f"{docker_launch.SERVICE}={self._settings.service}"}
        entries: Entries = await self._dockerd.ask_engine(
            "list containers", lambda client: client.containers(all=True, filters=filters)
        )
        return entries

    def _details(self, entry: Entry) -> Details | None:
        known = self._known.get(entry["Id"])
        return known.details if known is not None and known.state == entry["State"] else None

    async def _inspect_changed(self, entries: Entries) -> None:
        """Inspects what is new or changed since it was; waits a moment for the answers, never for one that hangs."""
        now = time.monotonic()
        present = {entry["Id"] for entry in entries}
        self._known = {key: known for key, known in self._known.items() if key in present}
        new: set[asyncio.Task[None]] = set()
        for entry in entries:
            key, state = str(entry["Id"]), str(entry["State"])
            known = self._known.get(key)
            is_fresh = known is not None and known.state == state and now < known.until
            if state == "created" or is_fresh or key in self._inspections:
                continue
            task = asyncio.create_task(self._inspect(docker_view.instance_name(entry), key, state))
            self._inspections[key] = task
            task.add_done_callback(lambda _, key=key: self._inspections.pop(key, None))  # type: ignore[misc]
            new.add(task)
        if new:
            await asyncio.wait(new, timeout=LIST_WAITS)

    async def _inspect(self, name: str, key: str, state: str) -> None:
        """Stores what an inspection tells. One without an answer leaves what was known, for a while."""
        try:
            inspected = await self._dockerd.ask(
                name, lambda client: client.inspect_container(key), self._deadlines.inspect
            )
        except (NoAnswer, RuntimeTrouble, APIError):  # gone, stuck, or said by the next list
            before = self._known.get(key)
            kept = before.details if before is not None and before.state == state else None
            self._known[key] = _Known(state, kept, time.monotonic() + INSPECT_AGAIN)
            return
        found = docker_view.details(inspected, *docker_view.now_both())
        # Spread, so that instances that were adopted together are not all inspected together ever after.
        fresh_until = time.monotonic() + DETAILS_AGE * random.uniform(0.5, 1.0)
        self._known[key] = _Known(str(inspected["State"]["Status"]), found, fresh_until)

    async def _reaches_directly(self, network: str) -> bool:
        """Whether nginx and the probes go to a container's own address there rather than to its published port.

        By the network that a container was started in: the setting may have changed since.
        """
        if self._settings.reach != "auto":
            return self._settings.reach == "direct"
        if network not in self._direct:
            self._direct[network] = await self._dockerd.ask_engine(
                "say what it is", lambda client: self._bridges_to_this_host(client, network)
            )
        return self._direct[network]

    def _bridges_to_this_host(self, client: docker.APIClient, network: str) -> bool:
        """Whether that network is a bridge of this very host. It blocks."""
        if not self._dockerd.is_local or network == HOST_NETWORK:
            return False
        engine = client.info()
        is_rootless = any("name=rootless" in option for option in engine.get("SecurityOptions") or [])
        if is_rootless or "Docker Desktop" in str(engine.get("OperatingSystem", "")):
            return False
        try:
            return bool(client.inspect_network(network)["Driver"] == "bridge")
        except APIError as e:
            if e.status_code in (400, 404):  # removed under its containers, or nothing that has addresses
                return False
            raise

    # --- starting -----------------------------------------------------------------------------------------------------

    async def start(self, launch: Launch) -> str:
        settings = self._settings
        if settings.network == HOST_NETWORK and self._dockerd.is_local and not is_free(settings.bind, launch.port):
            raise PortTaken(docker_launch.failure(settings, launch, "address already in use"))
        container_id = await self._create(settings, launch)
        try:
            await self._dockerd.ask(launch.name, lambda client: client.start(container_id), self._deadlines.start)
        except APIError as e:
            why = docker_launch.failure(settings, launch, said(e))
            await self._remove(launch.name, container_id, because=why)
            raise (PortTaken if docker_launch.is_port_taken(said(e)) else LaunchFailed)(why) from e
        except NoAnswer as e:
            raise Stuck(
                f"dockerd has not started it in {self._deadlines.start:g} s: a runtime hook or the GPU's driver hangs; "
                f"docker inspect {launch.name}, dmesg | grep -i nvrm"
            ) from e
        return container_id

    async def _create(self, settings: DockerSettings, launch: Launch) -> str:
        try:
            return await self._dockerd.ask(
                launch.name, lambda client: docker_launch.create(client, settings, launch), self._deadlines.create
            )
        except NoAnswer as e:
            # It may come into being all the same. `list` shows it then, by its label, and it can be cleared.
            raise LaunchFailed(f"dockerd has not created it in {self._deadlines.create:g} s; docker ps -a") from e
        except APIError as e:
            if "is already in use by container" in said(e):
                raise LaunchFailed(await self._who_has_the_name(launch.name)) from e
            raise LaunchFailed(docker_launch.failure(settings, launch, said(e))) from e

    async def _who_has_the_name(self, name: str) -> str:
        if name in await self.strangers():
            return (
                f"the name {name} is taken by a container that is not ours: docker inspect {name}, docker rename {name}"
            )
        return f"there is a container {name} of ours already: docker ps -a --filter name=^{name}$"

    # --- ending -------------------------------------------------------------------------------------------------------

    async def stop(self, name: str, runtime_id: str, grace: float) -> str:
        try:
            await self._signal(name, runtime_id, None, self._deadlines.term)
        except NoAnswer:
            return await self.kill(name, runtime_id)  # which has more time, and says Stuck if it is
        if not await self._has_ended(name, runtime_id, grace):
            return await self.kill(name, runtime_id)
        return await self._take_away(name, runtime_id)

    async def kill(self, name: str, runtime_id: str) -> str:
        # SIGKILL ends a process that is stopped (SIGSTOP) and a container that is paused as well.
        try:
            await self._signal(name, runtime_id, "SIGKILL", self._deadlines.kill)
        except NoAnswer as e:
            raise Stuck(f"SIGKILL: {e}; docker kill {name}, ps -o pid,stat,wchan,cmd -C containerd-shim-runc-v2") from e
        if not await self._has_ended(name, runtime_id, self._deadlines.ended):
            raise Stuck(f"alive {self._deadlines.ended:g} s after SIGKILL; ps -eo pid,stat,wchan,cmd | grep ' D'")
        return await self._take_away(name, runtime_id)

    async def clear(self, name: str, runtime_id: str) -> str:
        """As in base.py. One that somebody has started again meanwhile is left alone: the next list shows it."""
        try:
            return await self._take_away(name, runtime_id)
        except StillRuns:  # or dockerd has not heard of its end yet
            if await self._lives(name, runtime_id):
                return ""
            if not await self._has_ended(name, runtime_id, self._deadlines.ended):
                raise
        return await self._take_away(name, runtime_id)

    async def _lives(self, name: str, runtime_id: str) -> bool:
        """Whether it has a process that this host sees."""
        try:
            inspected = await self._dockerd.ask(
                name, lambda client: client.inspect_container(runtime_id), self._deadlines.inspect
            )
        except (NoAnswer, APIError):
            return False
        pid = inspected["State"].get("Pid")
        return bool(pid) and psutil.pid_exists(pid)

    async def _signal(self, name: str, runtime_id: str, signal: str | None, deadline: float) -> None:
        """`signal` None: what its image asks to be stopped with, SIGTERM where it asks for nothing."""

        def send(client: docker.APIClient) -> None:
            number = signal or client.inspect_container(runtime_id)["Config"].get("StopSignal") or "SIGTERM"
            client.kill(runtime_id, number)

        try:
            await self._dockerd.ask(name, send, deadline)
        except APIError as e:
            # 404: it is gone; 409: it does not run; either is what was wanted.
            if e.status_code not in (404, 409):
                raise Stuck(f"dockerd cannot signal it: {said(e)}; docker kill {name}") from e

    async def _has_ended(self, name: str, runtime_id: str, within: float) -> bool:
        """Whether it ends within so many seconds; a dockerd that goes away meanwhile is asked again."""
        deadline = time.monotonic() + within
        while True:
            left = max(0.1, deadline - time.monotonic())
            try:
                await self._dockerd.ask(name, lambda client, left=left: client.wait(runtime_id, left), left)  # type: ignore[misc]
                return True
            except NoAnswer:
                return False
            except RuntimeTrouble:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(min(0.5, left))
            except APIError as e:
                if e.status_code == 404:
                    return True
                raise Stuck(f"dockerd cannot wait for its end: {said(e)}; docker inspect {name}") from e

    async def _take_away(self, name: str, runtime_id: str) -> str:
        """Saves the last output and removes the container with its anonymous volumes."""
        try:
            output = await self._dockerd.ask(
                name, lambda client: tail(client, runtime_id, TAIL_LINES), self._deadlines.output
            )
        except NoAnswer:
            output = "(its last output could not be read in time)"
        except APIError as e:
            output = "" if e.status_code == 404 else f"(its last output could not be read: {said(e)})"
        await self._remove(name, runtime_id)
        return output

    async def _remove(self, name: str, runtime_id: str, because: str = "") -> None:
        """Removes an ended container. Raises Stuck, which begins with `because`."""
        before = f"{because}; and it " if because else "it "

        def remove(client: docker.APIClient) -> None:
            client.remove_container(runtime_id, v=True)

        try:
            await self._dockerd.ask(name, remove, self._deadlines.remove)
        except NoAnswer as e:
            raise Stuck(f"{before}cannot be removed: {e}; docker rm -f {name}") from e
        except APIError as e:
            if e.status_code == 409 and "already in progress" in said(e):
                raise Stuck(f"{before}is being removed already, and still there; docker ps -a") from e
            if e.status_code == 409 and "running container" in said(e):
                raise StillRuns(f"{before}cannot be removed: dockerd holds it for running; docker rm -f {name}") from e
            if e.status_code != 404:
                raise Stuck(f"{before}cannot be removed: {said(e)}; docker rm -f {name}") from e

    # --- output -------------------------------------------------------------------------------------------------------

    async def logs(self, name: str, lines: int, follow: bool) -> AsyncIterator[str]:
        found = [entry for entry in await self._entries() if self._is_ours(entry)]
        container_id = next((str(e["Id"]) for e in found if docker_view.instance_name(e) == name), None)
        if container_id is None:
            raise KeyError(name)
        try:  # a container that is stuck is found out here, with a deadline: the stream itself may be silent for ever
            await self._dockerd.ask(
                name, lambda client: client.inspect_container(container_id), self._deadlines.inspect
            )
        except NoAnswer as e:
            raise RuntimeTrouble(f"the output of {name} cannot be read: {e}; docker logs {name}") from e
        except APIError as e:
            raise KeyError(name) from e
        output = Output(self._dockerd, container_id, lines, follow)
        self._streams.add(output)
        try:
            async with aclosing(output.items()) as items:
                async for line in items:
                    yield line
        finally:
            self._streams.discard(output)

    async def close(self) -> None:
        for stream in self._streams:
            stream.end()
        inspections = list(self._inspections.values())
        for task in inspections:
            task.cancel()
        await asyncio.gather(*inspections, return_exceptions=True)

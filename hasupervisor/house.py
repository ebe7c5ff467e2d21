"""Puts the parts together for one configuration, runs them, and takes over a changed configuration while they run."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

import structlog

from hasupervisor import __version__, assembly, picture
from hasupervisor.act.nginx.gateway import Gateway
from hasupervisor.act.runner import Runner
from hasupervisor.autoscaler import Autoscaler, Senses
from hasupervisor.components import OptionalComponents, run_until_stopped
from hasupervisor.config import Config, ConfigError, changed_keys, retired_keys
from hasupervisor.config.keys import value_of
from hasupervisor.config.values import shown, toml
from hasupervisor.decide.autoscale.facts import Lesson, Sample
from hasupervisor.descriptors import OpenFiles
from hasupervisor.desk import Behind, OperatorDesk
from hasupervisor.drill.drills import Books, Drills
from hasupervisor.gateway_events import GatewayEvents
from hasupervisor.loop import Loop, Parts, Remembered
from hasupervisor.memory import MemoryTrouble, Scribe
from hasupervisor.model import GatewayView, Note, Outcome, Plan, State, Wants
from hasupervisor.observe.connections import InFlight
from hasupervisor.observe.cpu import CpuUse
from hasupervisor.observe.gpu_watch import GpuWatch
from hasupervisor.observe.identity import is_main_process
from hasupervisor.observe.instances import InstanceSense
from hasupervisor.observe.logsocket import open_log_socket, queue_warning
from hasupervisor.observe.machine import Machine
from hasupervisor.observe.ports import taken_ports
from hasupervisor.observe.probes import Probes
from hasupervisor.observe.traffic import Traffic
from hasupervisor.report import http
from hasupervisor.report.api import control_api
from hasupervisor.report.connection import Limits
from hasupervisor.report.log import set_level
from hasupervisor.report.metrics import Metrics
from hasupervisor.report.server import serve
from hasupervisor.runtimes.base import Refused, RuntimeTrouble
from hasupervisor.runtimes.docker import DockerRuntime
from hasupervisor.runtimes.ownership import Ownership
from hasupervisor.runtimes.process import ProcessRuntime
from hasupervisor.sdnotify import Keeping, Notifier

log = structlog.get_logger(__name__)

DURABLE = 1.0
"""Seconds that the beginning of a drill waits for the disk at most: the drill may end this daemon."""

REMEMBERED = 3 * 3600.0
"""Seconds of samples that the autoscaler takes over from the daemon before."""

LAST_WORDS = 2.0
"""Seconds for the memory to write what is left when the daemon stops."""


class Source(Protocol):
    """Where the configuration comes from."""

    @property
    def name(self) -> str: ...

    def reload(self, old: Config) -> Config:
        """Raises ConfigError."""


class House:
    """Everything that runs in one daemon. `run` once; then, if wanted, `stop_everything`."""

    def __init__(
        self,
        settings: Config,
        source: Source,
        notifier: Notifier,
        keeping: Keeping,
        control: socket.socket,
        *,
        files: OpenFiles,
        owner: Ownership | None = None,
        supervised: bool = False,
    ) -> None:
        """`owner`: whose the containers are. `supervised`: somebody would start the daemon again, should it end."""
        self._settings = settings
        self._files = files
        self._owner = owner
        self._source = source
        self._notifier = notifier
        self._control = control
        self._started_wall = time.time()
        self._is_ready = False
        self._has_served = False
        self._optional = OptionalComponents()
        self._runtime = self._new_runtime()
        self._scribe = Scribe(settings.state.dir / "state.db")
        self._gateway = Gateway(
            assembly.nginx_settings(settings, files),
            self._gateway_changed,
            self._requests_wait,
            keeper=keeping,
            lasting=assembly.runtime_directory(os.environ) if keeping.lasts else None,
        )
        self._gateway_before = GatewayView()
        self._gateway_events = GatewayEvents(self._note)
        has_gateway = settings.nginx.mode != "off"
        sock = _log_socket(settings, keeping)
        self._traffic = Traffic(sock, InFlight(), on_errors=self._wake, gateway=has_gateway)
        self._instances = InstanceSense(self._runtime, self._instances_changed)
        self._gpus = GpuWatch(self._wake, assembly.kernel_log(os.environ)) if settings.gpu.mode != "off" else None
        self._probes = Probes(assembly.probe_settings(settings), self._wake, idle=self._idle)
        self._runner = Runner(self._runtime, self._step_ended, time.monotonic)
        self._drills = Drills(
            settings.state.dir / "drills",
            lambda: assembly.drill_settings(self._settings),
            Books(self._note, partial(self._scribe.flush, DURABLE)),
            supervised=supervised,
        )
        self._loop: Loop | None = None
        self._autoscaler: Autoscaler | None = None
        self._metrics: Metrics | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Runs until `stopping` is set; instances and nginx stay. Raises ComponentExited, TooNew, Refused."""
        await self._claim()
        loop = await self._open()
        try:
            await run_until_stopped(stopping, self._parts_that_run(loop, stopping))
        finally:
            await self._close()

    def reload_by_signal(self) -> None:
        """SIGHUP: takes the configuration over, or says in the log why not."""
        if self._loop is None:
            return
        try:
            changed = self.reload()
        except ConfigError as error:
            log.error("the configuration is not valid; nothing was changed", problems=str(error).splitlines())
        else:
            self._loop.record_note(Note("config", "reload", ", ".join(changed) or "nothing has changed", "SIGHUP"))

    def reload(self) -> Sequence[str]:
        """Reads the configuration and applies it whole, or not at all. Raises ConfigError. Returns what changed.

        What may fail is in the first two lines: nothing is applied before them, and nothing after them asks the disk.
        """
        old, new = self._settings, self._source.reload(self._settings)
        words = [f"{key}: {_shown(old, key)} -> {_shown(new, key)}" for key in changed_keys(old, new)]
        self._settings = new
        if self._loop is not None:
            self._loop.policy = assembly.policy(new)
        if self._autoscaler is not None:
            self._autoscaler.judge.rules = assembly.scaling_rules(new)
        self._probes.reconfigure(assembly.probe_settings(new))
        self._gateway.reconfigure(assembly.nginx_settings(new, self._files))
        if isinstance(self._runtime, DockerRuntime):
            self._runtime.reconfigure(assembly.docker_settings(new, self._owner))
        else:
            self._runtime.reconfigure(assembly.process_settings(new, self._files))
        set_level(new.log.level)
        for sentence in retired_keys(new):
            log.warning(sentence)
        self._wake()
        return words

    async def stop_everything(self) -> None:
        """Ends what was started: the instances, each with its grace, then an nginx of our own."""
        before = self._runtime
        runtime = self._new_runtime(is_claimed=isinstance(before, DockerRuntime) and before.is_claimed)
        grace = self._settings.repair.stop_grace
        try:
            facts = await runtime.list()
            endings = [runtime.stop(fact.name, fact.runtime_id, grace) for fact in facts]
            for fact, end in zip(facts, await asyncio.gather(*endings, return_exceptions=True), strict=True):
                if isinstance(end, BaseException):
                    log.error(f"{fact.name} could not be ended: {end}")
                else:
                    log.info(f"{fact.name} is stopped")
        except RuntimeTrouble as trouble:
            log.error(f"the instances could not be ended: {trouble}")
        finally:
            await runtime.close()
        await self._gateway.shutdown()

    # --- opening and closing ------------------------------------------------------------------------------------------

    async def _claim(self) -> None:
        """Ends the daemon where the containers are another one's; a dockerd that is away now is asked by each list."""
        if isinstance(self._runtime, DockerRuntime):
            try:
                await self._runtime.claim()
            except Refused:
                raise
            except RuntimeTrouble as trouble:
                log.warning(f"it is not known yet whose the containers are: {trouble}")

    async def _open(self) -> Loop:
        known = await self._scribe.load(time.monotonic(), time.time())
        self._traffic.start()
        if self._settings.nginx.mode != "off" and (warning := queue_warning()) is not None:
            log.warning(warning)
        await self._gateway.start()
        remembered = Remembered(
            wants=known.wants or Wants(desired=self._settings.service.instances),
            records={record.name: record for record in known.records},
            operations=known.operations,
            cards={record.uuid: record for record in known.cards},
            is_first_start=known.wants is None,
        )
        self._loop = Loop(self._loop_parts(), assembly.policy(self._settings), remembered)
        self._autoscaler = await self._remembering(self._loop, known.lessons)
        self._gateway_events.begin(self._gateway.view())
        self._instances.start()
        if self._gpus is not None:
            self._gpus.start()
        return self._loop

    async def _remembering(self, loop: Loop, lessons: Sequence[Lesson]) -> Autoscaler:
        """The autoscaler, with what was sampled and learned before the daemon was started."""
        rules = assembly.scaling_rules(self._settings)
        senses = Senses(
            requests=self._traffic.tally if self._traffic.hears else None,
            machine=Machine().look,
            taken_ports=self._taken_ports,
            keeper=self._scribe,
            clock=time.monotonic,
            wall=time.time,
            decided=self._decided,
        )
        autoscaler = Autoscaler(loop, rules, senses)
        samples: list[Sample] = []
        try:
            samples = await self._scribe.samples(time.time() - REMEMBERED)
        except MemoryTrouble as trouble:
            log.warning(f"the autoscaler begins without its samples: {trouble}")
        autoscaler.judge.remember(samples, time.monotonic(), lessons)
        return autoscaler

    def _taken_ports(self, ports: range) -> frozenset[int]:
        """Ports that a new instance could not listen on, where it would listen now: the setting may be reloaded."""
        return taken_ports(ports, self._settings.service.bind)

    def _decided(self, direction: str, reason: str) -> None:
        if self._metrics is not None:
            self._metrics.decided(direction, reason)

    def _new_runtime(self, *, is_claimed: bool = False) -> DockerRuntime | ProcessRuntime:
        if self._settings.service.runtime == "docker":
            settings = assembly.docker_settings(self._settings, self._owner)
            return DockerRuntime(settings, is_claimed=is_claimed)
        return ProcessRuntime(assembly.process_settings(self._settings, self._files), self._note_record)

    def _loop_parts(self) -> Parts:
        return Parts(
            instances=self._instances,
            probes=self._probes,
            traffic=self._traffic,
            taken_ports=self._taken_ports,
            hands=self._runner,
            gateway=self._gateway,
            memory=self._scribe,
            clock=time.monotonic,
            wall=time.time,
            random=random.Random(),
            idle_since=CpuUse(is_its=self._is_process_of).look,
            gpus=self._gpus.look if self._gpus is not None else None,
        )

    def _parts_that_run(self, loop: Loop, stopping: asyncio.Event) -> dict[str, Coroutine[Any, Any, None]]:
        assert self._autoscaler is not None
        desk = OperatorDesk(
            Behind(
                loop=loop,
                gateway=self._gateway,
                runtime=self._runtime,
                scribe=self._scribe,
                drills=self._drills,
                autoscaler=self._autoscaler,
                snapshot=partial(picture.take, self._easel(loop, self._autoscaler)),
                config=lambda: self._settings,
                config_path=self._source.name,
                reload=self.reload,
                clock=time.monotonic,
                wall=time.time,
            )
        )
        self._metrics = Metrics(desk, __version__, self._traffic.tally)
        running: dict[str, Coroutine[Any, Any, None]] = {
            "memory": self._scribe.run(),
            "cycle": loop.run(self._cycled),
            "drills": self._optional.keep("drills", self._drills.run(), stopping),
            "control socket": serve(self._control, control_api(desk, stopping), stopping, Limits()),
        }
        listen = self._settings.http.listen
        if listen is not None:
            try:
                pages = http.bind(listen)
            except http.CannotListen as error:  # the pages are for looking; they are not worth the service
                self._optional.missing("pages", f"{error}; then: systemctl restart chatglm-ha")
            else:
                application = http.public_pages(desk, self._metrics, listen)
                running["pages"] = self._optional.keep(
                    "pages", serve(pages, application, stopping, http.LIMITS), stopping
                )
        return running

    def _easel(self, loop: Loop, autoscaler: Autoscaler) -> picture.Easel:
        return picture.Easel(
            loop=loop,
            scribe=self._scribe,
            config=lambda: self._settings,
            traffic=self._traffic.total,
            autoscaler=autoscaler,
            probe_trouble=self._probes.trouble,
            drill=self._drills.problem,
            troubles=lambda: [*self._optional.problems(), *self._runtime.problems()],
            clock=time.monotonic,
            wall=time.time,
            started_wall=self._started_wall,
        )

    async def _close(self) -> None:
        """Lets go of everything, in the order in which nothing is missed; instances and nginx go on."""
        await self._runner.close()
        await self._instances.close()
        if self._gpus is not None:
            await self._gpus.close()
        await self._probes.close()
        await self._gateway.close()
        self._traffic.close()
        await self._runtime.close()
        self._drills.close()
        await self._scribe.close(LAST_WORDS)

    # --- what the parts say -------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._loop is not None:
            self._loop.wake()

    def _instances_changed(self) -> None:
        facts = self._instances.view().facts
        self._traffic.follow(facts)
        self._gateway_events.met(facts)
        if self._loop is not None:
            self._loop.strangers(self._instances.strangers())
            self._loop.wake()

    def _gateway_changed(self) -> None:
        before, now = self._gateway_before, self._gateway.view()
        self._gateway_before = now
        if self._metrics is not None:
            if now.live_generation is not None and now.live_generation != before.live_generation:
                self._metrics.reloaded(ok=True)
            elif before.ok and not now.ok:
                self._metrics.reloaded(ok=False)
        if self._loop is not None:
            self._gateway_events.tell(before, now, self._instances.view().facts)
        self._wake()

    def _note(self, note: Note) -> None:
        if self._loop is not None:
            self._loop.record_note(note)

    def _note_record(self, name: str, words: str) -> None:
        """Something was done about an instance's files."""
        self._note(Note(name, "record", words))

    def _requests_wait(self) -> None:
        self._probes.hurry()

    def _step_ended(self, outcome: Outcome) -> None:
        if self._loop is not None:
            self._loop.took(outcome)

    def _is_process_of(self, name: str, pid: int) -> bool:
        fact = next((fact for fact in self._instances.view().facts if fact.name == name), None)
        return fact is not None and is_main_process(pid, fact.runtime_id, fact.started_at)

    def _idle(self, name: str) -> bool | None:
        fact = next((fact for fact in self._instances.view().facts if fact.name == name), None)
        return self._traffic.idle(fact.address) if fact is not None else None

    def _cycled(self, plan: Plan, seconds: float) -> None:
        """A cycle has ended: the only thing that feeds the watchdog. What else follows a cycle cannot starve it."""
        self._notifier.alive(plan.summary)
        self._optional.run("metrics", lambda: self._count(seconds))
        if self._autoscaler is not None:
            self._optional.run("autoscaler", self._autoscaler.look)
        looked = self._loop is not None and (self._loop.settled or self._instances.view().trouble is not None)
        if not self._is_ready and looked:
            self._is_ready = True
            self._notifier.ready(plan.summary)
            log.info("ready", summary=plan.summary)
        if not self._has_served and plan.instances and all(j.state is State.SERVING for j in plan.instances):
            self._has_served = True
            log.info(
                f"{plan.summary}: {self._address()}",
                try_it=f"chatglm-hactl --socket {self._settings.control.socket} status",
            )

    def _count(self, seconds: float) -> None:
        if self._metrics is None:
            return
        self._metrics.cycled(seconds)
        if self._loop is not None and self._loop.world is not None and self._loop.world.gpus is not None:
            self._metrics.faulted(self._loop.world.gpus)

    def _address(self) -> str:
        nginx = self._settings.nginx
        return "nginx is off" if nginx.mode == "off" else f"http://{assembly.reachable(nginx.listen)}/"


def _log_socket(settings: Config, keeping: Keeping) -> socket.socket | None:
    """Where nginx's access log arrives; None when there is no nginx, or nobody may write there."""
    if settings.nginx.mode == "off":
        return None
    path = assembly.log_socket_path(settings)
    group = assembly.worker_group(settings)
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o755)  # whatever the umask: nginx's workers have to reach the socket
        opened = open_log_socket(path, group=group, kept=partial(keeping.take, "access-log"))
        keeping.give("access-log", path, opened)
        return opened
    except OSError as error:
        log.error(f"nginx's access log cannot be read, so there are no traffic numbers: {error}")
        return None


def _shown(settings: Config, key: str) -> str:
    """As `config show` has it: what looks like a secret goes neither into the history nor into the log."""
    return toml(shown(key.partition(".")[2], value_of(settings, key)))

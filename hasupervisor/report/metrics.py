"""The daemon's numbers for Prometheus; names begin with chatglm_ha_, units are base units, no prompt is in a label."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from hasupervisor.model import Colour, OperationState, State
from hasupervisor.report.desk import Unavailable
from hasupervisor.report.document import is_routed
from hasupervisor.report.snapshot import Snapshot

CYCLE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Status(Protocol):
    """Where the picture of now comes from."""

    def status(self) -> Snapshot:
        """Raises Unavailable until the first cycle has ended."""


class Metrics:
    """What is counted as it happens, and what is read from the picture when somebody asks."""

    def __init__(self, desk: Status, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._cycles = Histogram(
            "chatglm_ha_cycle_duration_seconds",
            "How long a cycle of the daemon took",
            buckets=CYCLE_BUCKETS,
            registry=self._registry,
        )
        self._reloads = Counter(
            "chatglm_ha_nginx_reloads", "Reloads of nginx, by how they ended", ["result"], registry=self._registry
        )
        for result in ("ok", "failed"):
            self._reloads.labels(result)  # a series that appears with its first failure has no rate
        ProcessCollector(namespace="chatglm_ha", registry=self._registry)
        self._registry.register(_Pictured(desk, version))

    def cycled(self, seconds: float) -> None:
        """A cycle has ended."""
        self._cycles.observe(seconds)

    def reloaded(self, ok: bool) -> None:
        """A reload of nginx has been confirmed by the new generation, or has failed."""
        self._reloads.labels("ok" if ok else "failed").inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text in the format that `accept` asks for, and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type


class _Pictured(Collector):
    """The families that are read from the picture; before the first cycle there are none but build_info."""

    def __init__(self, desk: Status, version: str) -> None:
        self._desk = desk
        self._version = version

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily(
            "chatglm_ha_build", "What runs", value={"version": self._version, "python": platform.python_version()}
        )
        try:
            snapshot = self._desk.status()
        except Unavailable:
            return
        yield from _service(snapshot)
        yield from _instances(snapshot)
        yield from _gateway(snapshot)

    def describe(self) -> Iterable[Metric]:
        return ()


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"chatglm_ha_{name}", words, value=value)


def _service(snapshot: Snapshot) -> Iterable[Metric]:
    health = StateSetMetricFamily("chatglm_ha_health", "The verdict on the whole service")
    health.add_metric([], {colour.value: colour is snapshot.health for colour in Colour})
    yield health
    yield _gauge("desired_instances", "Instances that are wanted", snapshot.wants.desired)
    serving = sum(1 for judged in snapshot.instances if judged.state is State.SERVING)
    yield _gauge("serving_instances", "Instances that serve", serving)
    yield _gauge("paused", "1 while healing and scaling are held by a person", snapshot.wants.pause is not None)
    yield _gauge("settled", "0 while the daemon has just started and has not asked everybody", snapshot.settled)
    yield _gauge("problems", "Problems that a person should know", len(snapshot.problems))
    reachable = snapshot.runtime.trouble is None
    yield _gauge("runtime_up", "1 while the runtime (dockerd, say) answers", reachable)
    running = sum(1 for operation in snapshot.operations if operation.state is OperationState.RUNNING)
    yield _gauge("operations_running", "Long commands of people that are under way", running)
    yield _gauge("last_cycle_timestamp_seconds", "When the last cycle ended, Unix time", snapshot.cycled_wall)


def _instances(snapshot: Snapshot) -> Iterable[Metric]:
    states = StateSetMetricFamily("chatglm_ha_instance_state", "The state of an instance", labels=["instance"])
    routed = GaugeMetricFamily("chatglm_ha_instance_routed", "1 while nginx sends it requests", labels=["instance"])
    restarts = CounterMetricFamily("chatglm_ha_instance_restarts", "Lives begun after the first", labels=["instance"])
    in_flight = GaugeMetricFamily("chatglm_ha_instance_in_flight", "Requests it works on", labels=["instance"])
    for judged in snapshot.instances:
        name = judged.record.name
        states.add_metric([name], {state.value: state is judged.state for state in State})
        routed.add_metric([name], is_routed(judged, snapshot))
        restarts.add_metric([name], judged.record.restarts)
        if judged.traffic.in_flight_known:
            in_flight.add_metric([name], judged.traffic.in_flight)
    yield from (states, routed, restarts, in_flight)


def _gateway(snapshot: Snapshot) -> Iterable[Metric]:
    gateway = snapshot.gateway
    if gateway.off:
        return
    yield _gauge("nginx_up", "1 while nginx is as it should be", gateway.ok)
    yield _gauge("nginx_generation", "Generation of the configuration on disk", gateway.generation)
    if gateway.live_generation is not None:
        yield _gauge("nginx_live_generation", "Generation that its workers answer with", gateway.live_generation)
    yield _gauge("nginx_servers", "Instances in the generation that runs", gateway.servers)
    yield _gauge("nginx_old_workers", "Workers of earlier generations that finish their requests", gateway.old_workers)
    yield _gauge("held_requests", "Requests that wait for somebody who serves", gateway.held)
    ended = CounterMetricFamily(
        "chatglm_ha_held_requests_ended", "Requests that had to wait, by what became of them", labels=["result"]
    )
    ended.add_metric(["released"], gateway.released_total)
    ended.add_metric(["refused"], gateway.refused_total)
    yield ended

"""The daemon's numbers for Prometheus; names begin with chatglm_ha_, units are base units, no prompt is in a label."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from hasupervisor.decide.autoscale.gpus import fresh, used_bytes
from hasupervisor.model import Colour, OperationState, State
from hasupervisor.model.gpu import CardState, Gpus
from hasupervisor.report.desk import Unavailable
from hasupervisor.report.document import is_routed
from hasupervisor.report.gpus import xids
from hasupervisor.report.snapshot import Snapshot

REASONS = {
    "up": ("response_time_ms", "gpu_utilization", "connections", "turned_away", "in_flight", "queue", "bounds"),
    "down": ("idle", "bounds"),
    "held": ("held back",),
}
"""Why the autoscaler takes a step; a series that appears with its first step has no rate."""

CYCLE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Status(Protocol):
    """Where the picture of now comes from."""

    def status(self) -> Snapshot:
        """Raises Unavailable until the first cycle has ended."""


class Durations(Protocol):
    """Requests of one instance by how long they took, a count between each two bounds and above the last."""

    @property
    def counts(self) -> Sequence[int]: ...
    @property
    def sum_s(self) -> float: ...


class Requests(Protocol):
    """Users' requests that have ended, from the gateway's access log."""

    @property
    def buckets(self) -> Sequence[float]: ...
    @property
    def codes(self) -> Mapping[tuple[str, int], int]: ...
    @property
    def durations(self) -> Mapping[str, Durations]: ...


class Metrics:
    """What is counted as it happens, and what is read from the picture when somebody asks."""

    def __init__(self, desk: Status, version: str, requests: Requests | None = None) -> None:
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
        self._decisions = Counter(
            "chatglm_ha_scale_decisions",
            "Steps of the autoscaler, and those that something held back",
            ["direction", "reason"],
            registry=self._registry,
        )
        for direction, reasons in REASONS.items():
            for reason in reasons:
                self._decisions.labels(direction, reason)
        self._xids = Counter(
            "chatglm_ha_gpu_xid_errors",
            "Faults of GPUs in the kernel log, by its lines; as NVML tells them where that log cannot be read",
            ["gpu", "xid"],
            registry=self._registry,
        )
        ProcessCollector(namespace="chatglm_ha", registry=self._registry)
        self._registry.register(_Pictured(desk, version))
        if requests is not None:
            self._registry.register(_Logged(requests))

    def cycled(self, seconds: float) -> None:
        """A cycle has ended."""
        self._cycles.observe(seconds)

    def reloaded(self, ok: bool) -> None:
        """A reload of nginx has been confirmed by the new generation, or has failed."""
        self._reloads.labels("ok" if ok else "failed").inc()

    def decided(self, direction: str, reason: str) -> None:
        """The autoscaler has taken a step "up" or "down" for `reason`, or was "held" back."""
        self._decisions.labels(direction, reason).inc()

    def faulted(self, gpus: Gpus) -> None:
        """A cycle has looked at the GPUs, and heard of faults or not."""
        for uuid, code in xids(gpus):
            self._xids.labels(uuid, str(code)).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text in the format that `accept` asks for, and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type


class _Logged(Collector):
    """The families that are read from the gateway's access log."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def collect(self) -> Iterable[Metric]:
        codes = CounterMetricFamily(
            "chatglm_ha_http_requests", "Users' requests by the status they got", labels=["instance", "code"]
        )
        for (instance, code), count in self._requests.codes.items():
            codes.add_metric([instance, str(code)], count)
        yield codes
        durations = HistogramMetricFamily(
            "chatglm_ha_http_request_duration_seconds",
            "From a request's first byte to the last of its answer, waiting included",
            labels=["instance"],
        )
        bounds = [*(str(float(bound)) for bound in self._requests.buckets), "+Inf"]
        for instance, seen in self._requests.durations.items():
            totals = list(accumulate(seen.counts))
            durations.add_metric([instance], list(zip(bounds, totals, strict=True)), sum_value=seen.sum_s)
        yield durations

    def describe(self) -> Iterable[Metric]:
        return ()


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
        yield from _gpus(snapshot)

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


def _gpus(snapshot: Snapshot) -> Iterable[Metric]:
    """A card that cannot be asked has a state and no figures: the last ones would be taken for those of now."""
    if snapshot.gpus is None or not snapshot.gpus.cards:
        return
    names = InfoMetricFamily("chatglm_ha_gpu", "What the cards are called", labels=["gpu"])
    states = StateSetMetricFamily("chatglm_ha_gpu_state", "What is thought of a GPU", labels=["gpu"])
    used = _of_gpus("memory_used_bytes", "Memory in use, without what the driver has reserved for itself")
    total = _of_gpus("memory_total_bytes", "Memory that the card has")
    busy = _of_gpus("utilization_ratio", "Part of the time in which anything ran on it")
    heat = _of_gpus("temperature_celsius", "How hot its processor is")
    for judged in snapshot.gpus.cards:
        uuid, known, fact = judged.record.uuid, judged.view.fact, fresh(judged, snapshot.now)
        states.add_metric([uuid], {state.value: state is judged.state for state in CardState})
        if known is not None:
            names.add_metric([uuid], {"index": str(judged.view.index), "name": known.name, "bus": known.bus})
            total.add_metric([uuid], known.memory_total_bytes)
        if fact is not None:
            used.add_metric([uuid], used_bytes(fact))
        if fact is not None and fact.utilization is not None:
            busy.add_metric([uuid], fact.utilization)
        if fact is not None and fact.temperature_c is not None:
            heat.add_metric([uuid], fact.temperature_c)
    yield from (names, states, used, total, busy, heat)


def _of_gpus(name: str, words: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"chatglm_ha_gpu_{name}", words, labels=["gpu"])

"""The routing table wanted: who is in rotation, and every address of the service."""

from __future__ import annotations

from collections.abc import Sequence

from hasupervisor.model import Address, Fact, GatewayView, Judged, Phase, Record, Route, Routing, VerdictKind


def table(instances: Sequence[tuple[Record, Fact | None]]) -> Routing:
    """Routes of the instances that are in rotation, and of all whose process lives; ordered by name."""
    alive = sorted(
        ((record, fact) for record, fact in instances if fact is not None and fact.phase is Phase.RUNNING),
        key=lambda pair: pair[0].name,
    )
    return Routing(
        routes=tuple(Route(record.name, fact.address) for record, fact in alive if record.in_rotation),
        everyone=tuple(Route(record.name, fact.address) for record, fact in alive),
    )


def proofs(judged: Sequence[Judged]) -> tuple[tuple[Address, float], ...]:
    """Who may be sent a request that has waited, and when the question that it answered last was put."""
    return tuple(
        (j.fact.address, j.probe.asked_at)
        for j in judged
        if j.record.in_rotation
        and j.verdict.kind is VerdictKind.SERVING
        and j.fact is not None
        and j.probe is not None
        and j.probe.asked_at is not None
    )


def is_routed(address: Address, gateway: GatewayView, *, wanted: bool) -> bool:
    """Whether nginx is proven to send requests there; without nginx the wish is the fact."""
    return wanted if gateway.off else address in gateway.live - gateway.joining


def is_unrouted(address: Address, gateway: GatewayView) -> bool:
    """Whether nginx is proven to send no new requests there, from no worker."""
    return gateway.off or address not in gateway.live

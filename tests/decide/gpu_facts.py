"""Cards, instances and worlds with GPUs, for the tests of the decisions about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hasupervisor.model import (
    Address,
    Fact,
    GatewayView,
    GpuPolicy,
    Phase,
    Policy,
    ProbeView,
    Record,
    RuntimeView,
    Said,
    Seen,
    State,
    TrafficView,
    Wants,
    World,
)
from hasupervisor.model.gpu import (
    GB,
    CardRecord,
    CardView,
    DriverState,
    DriverView,
    GpuFact,
    GpuProcess,
    Gpus,
    Incident,
    KernelLogView,
    Source,
    Xid,
)

NOW = 6000.0
RESERVED = GB // 2  # by the driver
NEED = 13 * GB
POLICY = GpuPolicy(need_bytes=NEED, reserve_bytes=GB // 2)


def uuid(index: int) -> str:
    return f"GPU-00000000-0000-4000-8000-{index:012d}"


def bus(index: int) -> str:
    return f"0000:{index + 1:02x}:00"


def card(index: int, total_gb: int = 24, processes: Mapping[int, int | None] | None = None) -> CardView:
    """`processes`: pid -> GB that it holds; None: the driver does not tell."""
    held = processes or {}
    total = total_gb * GB
    fact = GpuFact(
        uuid(index),
        index,
        "NVIDIA L4",
        f"0000{bus(index)}.0".upper(),
        NOW,
        memory_total_bytes=total,
        memory_free_bytes=max(0, total - RESERVED - sum(size or 0 for size in held.values()) * GB),
        memory_reserved_bytes=RESERVED,
        processes=tuple(GpuProcess(pid, size * GB if size is not None else None) for pid, size in held.items()),
        processes_at=NOW,
    )
    return CardView(uuid(index), index, fact)


def driver(*cards: CardView, state: DriverState = DriverState.OK) -> DriverView:
    return DriverView(state, f"the driver is {state}", cards=cards)


def gpus(
    *cards: CardView,
    state: DriverState = DriverState.OK,
    users: Mapping[int, str] | None = None,
    incidents: Sequence[Incident] = (),
    records: Mapping[str, CardRecord] | None = None,
) -> Gpus:
    return Gpus(
        driver(*cards, state=state),
        KernelLogView(readable=True),
        boot="boot-1",
        records=records or {},
        incidents=tuple(incidents),
        users=users or {},
    )


def incident(code: int, index: int, instance: str | None = None, *, foreign: bool = False) -> Incident:
    pid = 4711 if instance is not None or foreign else None
    return Incident(Xid(code, NOW, Source.KERNEL, bus=bus(index), pid=pid, words="words"), instance, foreign)


def name(number: int) -> str:
    return f"chatglm-{number:02d}"


def serving(number: int, *on: int, **changes: object) -> Seen:
    """An instance that serves, on those cards."""
    one, port = name(number), 8000 + number
    runtime_id = f"{one}#1"
    record = Record(
        one,
        port,
        state=State.SERVING,
        since=NOW - 100.0,
        in_rotation=True,
        serving_since=NOW - 100.0,
        incarnation=runtime_id,
        met_at=NOW - 200.0,
    )
    seen = Seen(
        record,
        fact=Fact(
            one,
            runtime_id,
            Phase.RUNNING,
            Address("127.0.0.1", port),
            Address("127.0.0.1", port),
            started_at=NOW - 200.0,
            gpus=tuple(uuid(index) for index in on),
        ),
        probe=ProbeView(
            runtime_id, Said.HEALTHY, answered_at=NOW - 0.5, asked_at=NOW - 0.5, successes=9, prompt_ok=True
        ),
        traffic=TrafficView(),
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def wanted(number: int) -> Seen:
    """An instance that is to be started."""
    return Seen(Record(name(number), 8000 + number, since=NOW - 1.0))


def world(instances: Sequence[Seen], seen: Gpus | None, policy: GpuPolicy | None = POLICY, **changes: object) -> World:
    addresses = frozenset(s.fact.address for s in instances if s.fact is not None)
    made = World(
        now=NOW,
        now_wall=1_700_000_000.0,
        policy=Policy("chatglm", range(8000, 8100), 1, 12, gpu=policy),
        wants=Wants(len(instances)),
        runtime=RuntimeView(tuple(s.fact for s in instances if s.fact is not None), listed_at=NOW - 0.1),
        gateway=GatewayView(generation=3, live_generation=3, live=addresses, servers=len(addresses)),
        instances=tuple(instances),
        gpus=seen,
    )
    return replace(made, **changes)  # type: ignore[arg-type]

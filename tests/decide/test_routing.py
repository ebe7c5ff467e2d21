"""The table of routing: who is in the table, who may be sent a request that has waited, what nginx is proven to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasupervisor.decide.routing import is_routed, is_unrouted
from hasupervisor.model import Address, GatewayView, Phase, Seen
from tests.decide.facts import (
    NOW,
    decided,
    gone,
    hung,
    in_phase,
    instance,
    loading,
    probed,
    quiet,
    sick,
    silent,
    working,
)
from tests.decide.gpu_facts import name

TABLE: dict[str, tuple[Seen, bool, bool, bool]] = {
    # in the table; among everyone; proven for who waits. Another one serves beside it.
    "serves": (instance(1), True, True, True),
    "has missed one probe": (silent(instance(1), 1.0, misses=1), True, True, True),
    "loads": (loading(1, 5.0), False, True, False),
    "is silent with work in it": (silent(working(instance(1))), False, True, False),
    "hangs": (hung(1), False, True, False),
    "is sick": (sick(1), False, True, False),
    "is dead on its feet": (quiet(1), False, True, False),
    "cannot be asked any more": (probed(instance(1), answered_at=NOW - 60.0), True, True, False),
    "is frozen by hand": (in_phase(instance(1), Phase.PAUSED), False, False, False),
    "is being removed": (in_phase(instance(1), Phase.REMOVING), False, False, False),
    "has ended": (in_phase(instance(1), Phase.EXITED), False, False, False),
    "is gone": (gone(1), False, False, False),
}


@pytest.mark.parametrize("case", TABLE)
def test_one_that(case: str) -> None:
    seen, routed, known, proven = TABLE[case]
    found = decided([seen, instance(2)])
    address = Address("127.0.0.1", 8001)
    assert (name(1) in {r.name for r in found.routing.routes}) is routed
    assert (name(1) in {r.name for r in found.routing.everyone}) is known
    assert (address in dict(found.proofs)) is proven


A, B = Address("127.0.0.1", 8001), Address("127.0.0.1", 8002)
NGINX: dict[str, tuple[GatewayView, bool, bool, bool]] = {
    # A is wanted; is it routed? is it unrouted?
    "nginx is proven to send there": (GatewayView(live=frozenset({A})), True, True, False),
    "not every worker does yet": (GatewayView(live=frozenset({A}), joining=frozenset({A})), True, False, False),
    "nginx sends there, unwanted": (GatewayView(live=frozenset({A})), False, True, False),
    "nginx has let go of it": (GatewayView(live=frozenset({B})), False, False, True),
    "there is no nginx, it is wanted": (GatewayView(off=True), True, True, True),
    "there is no nginx, it is not wanted": (GatewayView(off=True), False, False, True),
}


@pytest.mark.parametrize("case", NGINX)
def test_what_is_proven_when(case: str) -> None:
    gateway, wanted, routed, unrouted = NGINX[case]
    assert (is_routed(A, gateway, wanted=wanted), is_unrouted(A, gateway)) == (routed, unrouted)


# --- a new daemon -----------------------------------------------------------------------------------------------------


def fresh(**record: object) -> Seen:
    """One of which a new daemon knows what the disk has kept, before anybody has asked it."""
    seen = instance(1)
    kept = replace(seen.record, in_rotation=False, serving_since=None, incarnation=None, met_at=None)
    return replace(seen, probe=None, record=replace(kept, **record))  # type: ignore[arg-type]


LIFE = f"{name(1)}#1"
SINCE = NOW - 100.0  # it was started 200 s ago
START: dict[str, tuple[Seen, bool, bool]] = {
    # nginx off: is it in rotation at the start of the daemon?
    "this life has served": (fresh(proven=LIFE, serving_since=SINCE), True, True),
    "the life before it has": (fresh(proven=f"{name(1)}#0", serving_since=SINCE), True, False),
    "nobody has seen it serve": (fresh(), True, False),
    "the container was started anew since": (fresh(proven=LIFE, serving_since=NOW - 300.0), True, False),
    "nginx does not route it": (fresh(proven=LIFE, serving_since=SINCE), False, False),
}


@pytest.mark.parametrize("case", START)
def test_at_the_start_of_the_daemon_when(case: str) -> None:
    seen, off, routed = START[case]
    gateway = GatewayView(off=off)
    found = decided([seen], gateway=gateway, settled=False)
    assert bool(found.routing.routes) is routed


def test_one_that_has_served_and_is_not_routed_at_the_start_is_no_loader_that_can_be_too_late() -> None:
    found = decided([fresh(proven=LIFE, serving_since=SINCE)], gateway=GatewayView(), settled=False)
    assert found.instances[0].record.serving_since == NOW

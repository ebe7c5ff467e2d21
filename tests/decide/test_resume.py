"""What a daemon that has just started takes over: who stays in rotation before anybody has been asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasupervisor.model import Address
from tests.decide.facts import NOW, decided, instance, one
from tests.decide.gpu_facts import world

THIS, ANOTHER = "this life", "the life before"
MET = 100.0  # seconds that the life has run

# Whether nginx's table has its address, which life an earlier daemon has seen serve, nginx.mode = "off" -> in rotation
TABLE: dict[str, tuple[bool, str | None, bool, bool]] = {
    "routed, and seen to serve": (True, THIS, False, True),
    "routed; nothing is remembered of it": (True, None, False, True),
    "routed is its address, but another life was seen to serve there": (True, ANOTHER, False, False),
    "not routed, though seen to serve": (False, THIS, False, False),
    "no gateway, seen to serve": (False, THIS, True, True),
    "no gateway, another life was seen to serve": (False, ANOTHER, True, False),
    "no gateway, nothing is remembered": (False, None, True, False),
}


@pytest.mark.parametrize("case", TABLE)
def test_a_new_daemon_finds_one_that_is(case: str) -> None:
    routed, proven, off, expected = TABLE[case]
    seen = instance()
    assert seen.fact is not None
    runtime_id = seen.fact.runtime_id if proven == THIS else proven
    record = replace(
        seen.record,
        incarnation=None,
        in_rotation=False,
        met_at=None,
        proven=runtime_id,
        serving_since=NOW - MET / 2 if proven is not None else None,
    )
    fact = replace(seen.fact, started_at=NOW - MET)
    addresses: frozenset[Address] = frozenset([fact.address]) if routed else frozenset()
    before = world([seen], None, None)
    found = decided(
        [replace(seen, record=record, fact=fact, probe=None)],
        settled=False,
        routed_at_start=addresses,
        gateway=replace(before.gateway, off=off),
    )
    assert one(found, 1).record.in_rotation is expected

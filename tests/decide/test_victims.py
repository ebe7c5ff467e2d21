"""Who goes when fewer are wanted: what serves nobody, then the worst card, then the least work, then the newest."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from hasupervisor.decide.scaling import card_ranks, membership, victims
from hasupervisor.model import (
    Address,
    Fact,
    GatewayView,
    Phase,
    Policy,
    ProbeView,
    Progress,
    Record,
    RuntimeView,
    Said,
    Seen,
    State,
    TrafficView,
    Wants,
    World,
)
from hasupervisor.model.gpu import CardJudged, CardRecord, CardState, CardView

NOW = 1_000.0
POLICY = Policy("chatglm", range(8000, 8010), 1, 6)
BUSY = "busy, nobody knows how much"


def instance(number: int, work: int | str | None = 0, *, serves: bool = True) -> Seen:
    """`work`: what it says itself; None: only the kernel's connections are known, none; BUSY: not even these."""
    name, address = f"chatglm-{number:02d}", Address("127.0.0.1", 8000 + number)
    record = Record(name, address.port, state=State.SERVING if serves else State.PARKED, in_rotation=serves)
    progress = Progress(in_flight=min(work, 4), queued=max(0, work - 4)) if isinstance(work, int) else None
    return Seen(
        record,
        Fact(name, f"{name}@1", Phase.RUNNING, address, address, started_at=1.0),
        ProbeView(f"{name}@1", Said.HEALTHY, answered_at=NOW, progress=progress),
        TrafficView(in_flight_known=work != BUSY),
    )


@pytest.mark.parametrize(
    ("works", "ranks", "order"),
    [
        pytest.param([0, 0, 0], {}, [3, 2, 1], id="all the same: the newest"),
        pytest.param([0, 2, 4], {}, [1, 2, 3], id="the least to do before the newest"),
        pytest.param([0, 1, 0], {}, [3, 2, 1], id="a single request is none"),
        pytest.param([4, 5, 7], {}, [3, 2, 1], id="a request more or less is the same"),
        pytest.param([4, 8, 3], {}, [3, 1, 2], id="twice as many is not the same"),
        pytest.param([2, 0, 40], {3: 1}, [3, 2, 1], id="a suspect card before little to do"),
        pytest.param([2, 2, 2], {1: 2, 2: 1}, [1, 2, 3], id="the worst card first"),
        pytest.param([0, None, BUSY], {}, [2, 1, 3], id="connections count where it says nothing, the unknown is last"),
        pytest.param([90, BUSY, 7], {}, [3, 1, 2], id="who may have anything to do is last"),
        pytest.param([-1, 0, 5], {3: 3}, [1, 3, 2], id="who does not serve goes before the worst card"),
        pytest.param([-1, -1, 0], {1: 1}, [1, 2, 3], id="the worst card first also among those that do not serve"),
    ],
)
def test_those_that_cost_least_go_first(works: list[int | str | None], ranks: dict[int, int], order: list[int]) -> None:
    """A work of -1: it does not serve."""
    staying = [instance(n, 0 if w == -1 else w, serves=w != -1) for n, w in enumerate(works, 1)]
    named = {f"chatglm-{number:02d}": rank for number, rank in ranks.items()}
    for shuffled in itertools.permutations(staying):
        found = victims(shuffled, len(works), POLICY, NOW, named)
        assert found == tuple(f"chatglm-{number:02d}" for number in order)


def test_only_as_many_go_as_are_too_many() -> None:
    staying = [instance(n) for n in (1, 2, 3)]
    assert victims(staying, 0, POLICY, NOW) == ()
    assert victims(staying, 2, POLICY, NOW) == ("chatglm-03", "chatglm-02")


def test_names_are_compared_by_their_number_and_not_as_text() -> None:
    assert victims([instance(9), instance(10), instance(100)], 2, POLICY, NOW) == ("chatglm-100", "chatglm-10")


def test_what_an_instance_said_long_ago_is_not_what_it_has_to_do() -> None:
    first, second = instance(1, 0), instance(2, 1)
    assert first.probe is not None
    old = replace(first, probe=replace(first.probe, answered_at=NOW - 60), traffic=TrafficView(in_flight=9))
    assert victims([old, second], 1, POLICY, NOW) == ("chatglm-02",)


def test_an_instance_is_as_badly_off_as_its_worst_card() -> None:
    def card(uuid: str, state: CardState, *names: str, reason: str | None = None) -> CardJudged:
        return CardJudged(CardView(uuid, 0), CardRecord(uuid), state, reason, instances=names)

    cards = (
        card("GPU-1", CardState.OK, "chatglm-01", "chatglm-02"),
        card("GPU-2", CardState.SUSPECT, "chatglm-02", reason="one more fault and it is quarantined"),
        card("GPU-3", CardState.QUARANTINED, "chatglm-03", reason="by hand"),
        card("GPU-4", CardState.LOST, "chatglm-04", reason="fell off the bus"),
        card("GPU-5", CardState.OK, "chatglm-05", reason="throttled in 7 of the last 10 minutes"),
    )
    ranks = card_ranks(cards)
    assert sorted(ranks, key=lambda name: ranks[name]) == [f"chatglm-0{n}" for n in (1, 5, 2, 3, 4)]
    assert ranks["chatglm-01"] == 0


def test_the_membership_marks_the_one_on_the_bad_card_although_it_is_the_oldest_and_the_busiest() -> None:
    seen = (instance(1, 6), instance(2), instance(3))
    gateway = GatewayView(generation=1, live_generation=1)
    world = World(NOW, 2e9, POLICY, Wants(2), RuntimeView(tuple(s.fact for s in seen if s.fact), NOW), gateway, seen)
    assert [s.record.name for s in membership(world).instances if s.record.leaving] == ["chatglm-03"]
    marked = membership(world, {"chatglm-01": 1})
    assert [s.record.name for s in marked.instances if s.record.leaving] == ["chatglm-01"]
    assert [note.sentence for note in marked.notes] == ["leaves: scaled down to 2"]

"""Who may get requests: everybody of the old and the new table, until the workers are proven to run the new one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hasupervisor.act.nginx.backoff import Backoff
from hasupervisor.act.nginx.proof import Proof
from hasupervisor.act.nginx.render import Written
from hasupervisor.model import Address, Route, Routing

ONE, TWO, THREE = (Address("127.0.0.1", port) for port in (8001, 8002, 8003))


def written(generation: int, *routed: Address, others: tuple[Address, ...] = ()) -> Written:
    routes = tuple(Route(f"chatglm-{address.port}", address) for address in routed)
    return Written(generation, Routing(routes, routes + tuple(Route("other", address) for address in others)))


def test_a_table_on_its_way_adds_to_who_is_live_and_only_its_proof_takes_away() -> None:
    proof = Proof()
    proof.confirm(written(1, ONE, TWO))
    assert (proof.live, proof.joining, proof.servers) == ({ONE, TWO}, frozenset(), 2)
    proof.widen(frozenset({TWO, THREE}))
    assert (proof.live, proof.joining) == ({ONE, TWO, THREE}, {ONE, THREE})
    assert not proof.complete
    proof.confirm(written(2, TWO, THREE))
    assert (proof.live, proof.joining, proof.generation) == ({TWO, THREE}, frozenset(), 2)


def test_a_master_that_runs_something_else_than_the_disk_may_know_anybody() -> None:
    proof = Proof()
    proof.doubt(6, written(7, ONE, others=(TWO,)))
    assert (proof.live, proof.generation, proof.complete) == ({ONE, TWO}, 6, False)


def test_workers_without_a_master_may_go_on_with_whom_they_know() -> None:
    proof = Proof()
    proof.confirm(written(1, ONE, TWO))
    proof.lose_master()
    assert (proof.live, proof.generation, proof.servers, proof.complete) == ({ONE, TWO}, None, 0, False)


@given(st.lists(st.sets(st.sampled_from([ONE, TWO, THREE])), min_size=1, max_size=6))
def test_whatever_tables_fail_on_their_way_nobody_falls_out_of_who_is_live(tables: list[set[Address]]) -> None:
    proof = Proof()
    proof.confirm(written(1, ONE))
    for table in tables:
        proof.widen(frozenset(table))
    assert proof.live == frozenset({ONE}).union(*tables)
    assert proof.by_all <= frozenset({ONE}).intersection(*tables)


def test_the_wait_doubles_to_its_limit_and_a_new_reason_ends_it() -> None:
    backoff = Backoff()
    backoff.try_at_once()
    assert backoff.retry_at is None  # nothing has failed: nothing is to be tried
    waits = []
    for _ in range(6):
        backoff.fail()
        assert backoff.retry_at is not None
        later = backoff.retry_at
        backoff.try_at_once()
        waits.append(round(later - backoff.retry_at))
    assert waits == [1, 2, 4, 8, 10, 10]
    backoff.clear()
    assert (backoff.retry_at, backoff.failures) == (None, 0)

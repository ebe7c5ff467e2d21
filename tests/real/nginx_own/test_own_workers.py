"""A worker of nginx's that hangs: told with its pid, waited for without reloads, and in nobody's way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from hasupervisor.act.nginx import process
from tests.real.gatewaying import Instance, Watched, addresses, ask, master_of, table
from tests.real.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_defect_is_logged")


@contextmanager
def hung_worker(watched: Watched) -> Iterator[int]:
    """One of the workers that take requests is stopped; it goes on at the end."""
    master = master_of(watched.settings)
    assert master is not None
    stuck = min(process.workers(master) or ())
    os.kill(stuck, signal.SIGSTOP)
    try:
        yield stuck
    finally:
        with suppress(ProcessLookupError):
            os.kill(stuck, signal.SIGCONT)


def workers_of(watched: Watched) -> set[int]:
    master = master_of(watched.settings)
    assert master is not None
    return {child.pid for child in psutil.Process(master).children()}


async def test_a_hung_worker_is_told_and_waited_for_without_another_reload(
    watched: Watched, trio: list[Instance]
) -> None:
    before = (await watched.route(table(*trio))).generation
    with hung_worker(watched) as stuck:
        watched.gateway.want(table(*trio[:2]))
        view = await watched.until(lambda view: not view.ok, within=15)
        assert view.reason is not None
        assert f"kill [{stuck}]" in view.reason
        assert (view.generation, view.live_generation) == (before + 1, before + 1)
        workers = workers_of(watched)
        # Longer than three of the tries that were reloads before: 1, 2 and 4 s after the first.
        seen = len(watched.views)
        with pytest.raises(AssertionError, match="not within"):
            await eventually(lambda: workers_of(watched) != workers, "another reload", within=8.0, every=0.05)
        assert watched.gateway.view().generation == before + 1
        assert all(not view.ok for _, view in watched.views[seen:])
    view = await watched.until(lambda view: view.ok and view.live == addresses(*trio[:2]), within=5)
    assert view.generation == before + 1


async def test_beside_a_hung_worker_each_change_is_one_reload_and_who_is_in_every_worker_s_table_has_joined(
    watched: Watched, trio: list[Instance]
) -> None:
    before = (await watched.route(table(*trio[:2]))).generation
    with hung_worker(watched) as stuck:
        # One dies and comes back: the hung worker knows it as well, so every worker that takes requests does.
        watched.gateway.want(table(trio[0]))
        await watched.until(lambda view: not view.ok and view.live_generation == before + 1, within=15)
        assert watched.gateway.view().joining == addresses(trio[1])
        watched.gateway.want(table(*trio[:2]))
        view = await watched.until(lambda view: not view.joining and view.live_generation == before + 2, within=15)
        assert (view.ok, view.live) == (False, addresses(*trio[:2]))
        assert f"kill [{stuck}]" in str(view.reason)
        # Another one is unknown to the hung worker: it gets requests, and has not joined everywhere.
        watched.gateway.want(table(*trio))
        view = await watched.until(lambda view: view.live_generation == before + 3, within=15)
        assert (view.live, view.joining) == (addresses(*trio), addresses(trio[2]))
        assert view.generation == before + 3
        assert (await ask(watched.port, "POST /", "{}")).status == 200
    await watched.until(lambda view: view.ok and not view.joining and view.live == addresses(*trio), within=5)
    assert watched.gateway.view().generation == before + 3


async def test_a_hung_worker_that_a_person_kills_is_forgotten_at_once(watched: Watched, trio: list[Instance]) -> None:
    await watched.route(table(*trio))
    with hung_worker(watched) as stuck:
        watched.gateway.want(table(trio[0]))
        await watched.until(lambda view: not view.ok, within=15)
        os.kill(stuck, signal.SIGKILL)
        view = await watched.until(lambda view: view.ok and view.live == addresses(trio[0]), within=5)
        assert not view.joining


async def test_where_another_server_block_answers_nginx_is_not_reloaded_every_few_seconds(
    watched: Watched, trio: list[Instance]
) -> None:
    before = (await watched.route(table(trio[0]))).generation
    other = watched.dir / "conf.d" / "other.conf"
    # Read before ours: of two with one name nginx takes the first, and `nginx -t` is content.
    other.write_text(f"server {{ listen {watched.settings.listen}; server_name chatglm-ha.internal; return 204; }}\n")
    watched.gateway.want(table(*trio))
    view = await watched.until(lambda view: not view.ok, within=15)
    assert "answers, but not as this gateway (status 204" in str(view.reason)
    # One more when the new file has been noticed; in that time there were three.
    made = set(workers_of(watched))
    with pytest.raises(AssertionError, match="not within"):
        await eventually(lambda: made.update(workers_of(watched)), "", within=16.0, every=0.05)
    assert len(made) <= 4, "of two workers each"
    other.unlink()
    view = await watched.until(lambda view: view.ok and view.live == addresses(*trio))
    assert view.generation == before + 1

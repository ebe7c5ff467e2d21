"""After a boot: whoever has an instance's address by then gets nothing, before the daemon has proven anybody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hasupervisor.act.nginx.gateway import Gateway
from hasupervisor.act.nginx.render import read_upstream
from hasupervisor.act.nginx.settings import NginxSettings
from tests.real.gatewaying import Instance, PrivateNginx, addresses, ask, running, table
from tests.real.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_defect_is_logged")

BEFORE, AFTER = "1f-1", "2e-1"  # two boots


async def test_a_table_of_another_boot_is_not_routed_by_an_nginx_that_starts_with_it(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    async with running(replace(settings, boot=BEFORE), ports[0]) as watched:
        await watched.route(table(*trio))
        assert read_upstream(watched.upstream).boot == BEFORE
        generation = watched.gateway.view().generation
    # The host is booted. Strangers have the three addresses by now, and dockerd does not answer: nothing is wanted yet.
    async with running(replace(settings, boot=AFTER), ports[0]) as watched:
        assert watched.gateway.on_disk() == frozenset()
        view = await watched.until(lambda view: view.ok and view.live_generation == generation + 1)
        assert (view.live, view.servers) == (frozenset(), 0)
        assert (await ask(ports[0], "POST /", '{"prompt":"secret"}')).status == 503
        assert sum(instance.taken for instance in trio) == 0
        await watched.route(table(trio[1]))
        assert (await ask(ports[0], "POST /", "{}")).json["name"] == trio[1].name


async def test_the_distribution_s_nginx_that_a_boot_has_started_before_the_daemon_is_told_at_once(
    settings: NginxSettings, ports: range, trio: list[Instance], nginx: PrivateNginx, tmp_path: Path
) -> None:
    settings = replace(settings, mode="system", dir=tmp_path / "ha", binary=str(nginx.binary), boot=BEFORE)
    settings.dir.mkdir()
    (settings.dir / "gateway.conf").touch()
    nginx.start()
    async with running(settings, ports[0]) as watched:
        await watched.route(table(*trio))
    async with running(replace(settings, boot=AFTER), ports[0]) as watched:
        await watched.until(lambda view: view.ok and view.live == frozenset())
        assert (await ask(ports[0], "POST /", "{}")).status == 503


async def test_a_start_in_the_same_boot_or_after_an_upgrade_un_routes_nothing(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    for earlier, now in (("", BEFORE), (BEFORE, BEFORE)):
        first = Gateway(replace(settings, boot=earlier), lambda: None)
        await first.start()
        first.want(table(*trio))
        await eventually(lambda gateway=first: gateway.view().servers == 3, "three are routed")
        await first.close()
        async with running(replace(settings, boot=now), ports[0]) as watched:
            assert watched.gateway.on_disk() == addresses(*trio)
            assert watched.gateway.view().live == addresses(*trio)
            assert (await ask(ports[0], "POST /", "{}")).status == 200

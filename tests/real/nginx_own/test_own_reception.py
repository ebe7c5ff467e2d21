"""Between nginx and the daemon: a folder that is everybody's, an nginx that does not see the daemon's sign of life."""

from __future__ import annotations

import asyncio

import pytest

from hasupervisor.act.nginx.settings import NginxSettings
from tests.real.gatewaying import Instance, Watched, ask, running, table
from tests.real.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_defect_is_logged")


async def test_in_a_folder_that_everybody_may_write_to_nginx_does_not_ask_and_serves_all_the_same(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    settings.dir.mkdir()
    settings.dir.chmod(0o777)
    async with running(settings, ports[0]) as watched:
        watched.gateway.want(table(*trio))
        view = await watched.until(lambda view: view.servers == 3)
        assert not view.ok
        assert view.reason is not None
        assert view.reason.endswith(f"chmod o-w {settings.dir}")
        assert (await ask(ports[0], "POST /", "{}")).status == 200
        assert (await ask(ports[0], "GET /health")).json == {"status": "healthy", "serving": 3}
        settings.dir.chmod(0o755)
        (settings.dir / "conf.d" / "touched.conf").touch()  # it is looked at again with the next change
        await watched.until(lambda view: view.ok)
        await eventually(lambda: "room.sock" in watched.gateway.files()["gateway.conf"], "nginx asks the daemon")


async def test_an_nginx_that_does_not_see_the_sign_asks_the_daemon_all_the_same(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(*trio))
    sign = watched.dir / "alive"
    sign.unlink()
    sign.symlink_to("/proc/0")  # as a /proc with hidepid=2 looks to nginx's workers
    health = await ask(watched.port, "GET /health")
    assert health.json["daemon"] == "not answering"
    await eventually(sign.exists, "the daemon has noticed", within=20.0)
    health = await ask(watched.port, "GET /health")
    assert health.json == {"status": "healthy", "serving": 3}


async def test_what_nginx_keeps_of_files_elsewhere_does_not_hide_whether_the_daemon_lives(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    (settings.dir / "conf.d").mkdir(parents=True)
    (settings.dir / "conf.d" / "cache.conf").write_text(
        "open_file_cache max=100; open_file_cache_valid 60s; open_file_cache_errors on; disable_symlinks on;\n"
    )
    async with running(settings, ports[0]) as watched:
        await watched.route(table(*trio))
        for target in ((settings.dir / "alive").readlink(), "/proc/0", (settings.dir / "alive").readlink()):
            (settings.dir / "alive").unlink()
            (settings.dir / "alive").symlink_to(target)
            health = await ask(ports[0], "GET /health")
            assert ("daemon" in health.json) == (target == "/proc/0")


async def test_requests_in_flight_when_the_daemon_ends_are_answered(watched: Watched, trio: list[Instance]) -> None:
    trio[0].how = "slow"
    await watched.route(table(trio[0]))
    asked = asyncio.create_task(ask(watched.port, "POST /", "{}"))
    await eventually(lambda: trio[0].taken == 1, "it is at work")
    await watched.gateway.close()
    trio[0].release.set()
    assert (await asked).status == 200

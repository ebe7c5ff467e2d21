"""The distribution's nginx, whose main file is anywhere and includes ours: judged whole, never started by us."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import certifi
import pytest

from hasupervisor.act.nginx import process
from hasupervisor.act.nginx.render import read_upstream
from hasupervisor.act.nginx.settings import NginxSettings
from tests.real.gatewaying import Instance, PrivateNginx, addresses, ask, running, table
from tests.real.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_defect_is_logged")


@pytest.fixture
def ports(port_range: Callable[[int], range]) -> range:
    return port_range(6)


@pytest.fixture
def settings(tmp_path: Path, ports: range, nginx: PrivateNginx) -> NginxSettings:
    return NginxSettings(
        dir=tmp_path / "ha",
        mode="system",
        binary=str(nginx.binary),
        listen=f"127.0.0.1:{ports[0]}",
        server_name="chatglm.example.com",
    )


@pytest.fixture
async def pair(ports: range) -> AsyncIterator[tuple[Instance, Instance]]:
    one, two = Instance(ports[2], "chatglm-01"), Instance(ports[3], "chatglm-02")
    await one.start()
    await two.start()
    yield one, two
    await one.stop()
    await two.stop()


async def test_nginx_is_not_started_by_us_and_serves_the_table_as_soon_as_a_person_starts_it(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance]
) -> None:
    async with running(settings, ports[0]) as watched:
        watched.gateway.want(table(*pair))
        view = await watched.until(lambda view: not view.ok and view.generation == 1)
        assert view.reason == "nginx is not running: systemctl start nginx"
        assert view.live_generation is None
        assert nginx.master is None
        # The file is tested and in place all the same, so that a start serves the right table.
        assert read_upstream(watched.upstream).routed == addresses(*pair)
        nginx.start()
        view = await watched.until(lambda view: view.ok)
        assert (view.live, view.live_generation, view.servers) == (addresses(*pair), 1, 2)
        assert (await ask(ports[0], "POST /", "{}")).status == 200


async def test_tables_reach_a_running_nginx_through_a_chain_of_includes(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance]
) -> None:
    nginx.main.write_text(nginx.main.read_text().replace(f"{nginx.conf_d}/*", "conf.d/*"))
    # conf.d/*.conf (relative) -> ha.conf -> a relative file -> gateway.conf by its plain path
    (nginx.conf_d / "ha.conf").write_text("include snippets/ha.inc;\n")
    (nginx.main.parent / "snippets").mkdir()
    (nginx.main.parent / "snippets" / "ha.inc").write_text(f"include '{settings.dir}/gateway.conf';  # ours\n")
    # Paths relative to the main file, and above it, that the stage must not lose.
    (nginx.main.parent / "certs").mkdir()
    (nginx.main.parent / "certs" / "ca.pem").symlink_to(certifi.where())
    (nginx.folder / "shared").mkdir()
    (nginx.folder / "shared" / "types.inc").write_text("default_type text/plain;\n")
    (nginx.conf_d / "other.conf").write_text(
        "include ../shared/types.inc;\n"
        f"server {{\n  listen 127.0.0.1:{ports[4]};\n  location / {{\n    proxy_pass https://127.0.0.1:{ports[5]};\n"
        "    proxy_ssl_verify on;\n    proxy_ssl_trusted_certificate certs/ca.pem;\n  }\n}\n"
    )
    settings.dir.mkdir()
    (settings.dir / "gateway.conf").touch()
    nginx.start()
    before = nginx.master
    async with running(settings, ports[0]) as watched:
        view = await watched.route(table(*pair))
        assert view.servers == 2
        await watched.route(table(pair[0]))
        assert (await ask(ports[0], "POST /", "{}")).json["name"] == "chatglm-01"
    assert nginx.master == before


async def test_an_nginx_that_includes_both_files_is_served_as_well(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance]
) -> None:
    (nginx.conf_d / "ha.conf").write_text(
        f"include {settings.dir}/upstream.conf;\ninclude {settings.dir}/gateway.conf;\n"
    )
    async with running(settings, ports[0]) as watched:
        watched.gateway.want(table(*pair))
        await watched.until(lambda view: view.generation == 1)
        nginx.start()
        await watched.until(lambda view: view.ok)
        assert f"include {settings.dir}" not in watched.gateway.files()["gateway.conf"]
        assert (await ask(ports[0], "POST /", "{}")).status == 200


async def test_a_symbolic_link_in_conf_d_is_an_include_too(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance]
) -> None:
    (nginx.conf_d / "ha.conf").unlink()
    (nginx.conf_d / "chatglm.conf").symlink_to(settings.dir / "gateway.conf")
    async with running(settings, ports[0]) as watched:
        watched.gateway.want(table(*pair))
        await watched.until(lambda view: view.generation == 1)
        nginx.start()
        await watched.until(lambda view: view.ok)


async def test_a_main_file_that_does_not_include_the_gateway_is_said_with_the_line_to_add(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance]
) -> None:
    (nginx.conf_d / "ha.conf").write_text("# nothing yet\n")
    nginx.start()
    async with running(settings, ports[0]) as watched:
        watched.gateway.want(table(*pair))
        view = await watched.until(lambda view: not view.ok)
        wanted = f"add the line `include {settings.dir}/gateway.conf;` inside its http {{ }} block"
        assert view.reason == f"{nginx.main} does not include the gateway: {wanted}"
        assert await watched.gateway.test() == (False, view.reason)
        assert not (settings.dir / "upstream.conf").exists()
        (nginx.conf_d / "ha.conf").write_text(f"include {settings.dir}/gateway.conf;\n")
        await watched.until(lambda view: view.ok and view.live == addresses(*pair))


async def test_a_syntax_error_in_anybodys_file_stops_reloads_with_its_true_place_and_recovers(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance]
) -> None:
    settings.dir.mkdir()
    (settings.dir / "gateway.conf").touch()
    nginx.start()
    async with running(settings, ports[0]) as watched:
        await watched.route(table(*pair))
        live, conf = watched.upstream, nginx.conf_d / "ha.conf"
        good = conf.read_text()
        conf.write_text(good + "upstream broken { server ; }\n")
        view = await watched.until(lambda view: not view.ok)
        watched.gateway.want(table(pair[0]))
        ok, said = await watched.gateway.reload()
        assert not ok
        # conf.d/ha.conf is copied for the stage: the words must name the file that a person can mend.
        assert said == f'invalid number of arguments in "server" directive in {conf}:2'
        assert view.reason == said
        assert watched.upstream == live
        assert (await ask(ports[0], "GET /ha/generation")).body == "1\n"
        conf.write_text(good)
        await watched.until(lambda view: view.ok and view.live == addresses(pair[0]))


async def test_nginx_restarted_or_killed_by_others_is_followed(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance]
) -> None:
    settings.dir.mkdir()
    (settings.dir / "gateway.conf").touch()
    nginx.start()
    async with running(settings, ports[0]) as watched:
        await watched.route(table(*pair))
        nginx.stop()
        view = await watched.until(lambda view: not view.ok)
        assert view.reason == "nginx is not running: systemctl start nginx"
        assert (view.live, view.servers) == (addresses(*pair), 0)
        # Who leaves meanwhile is out as soon as the file says so: no worker is left that could send anything there.
        watched.gateway.want(table(pair[0]))
        await watched.until(lambda view: view.generation == 2 and view.live == addresses(pair[0]))
        nginx.start()
        view = await watched.until(lambda view: view.ok)
        assert (view.live_generation, view.live) == (2, addresses(pair[0]))
        await watched.route(table(*pair))


async def test_the_reload_command_is_used_and_its_failure_is_told(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance], tmp_path: Path
) -> None:
    settings.dir.mkdir()
    (settings.dir / "gateway.conf").touch()
    nginx.start()
    command = tmp_path / "reload"
    command.write_text("#!/bin/sh\necho sorry, not today >&2\nexit 3\n")
    command.chmod(0o755)
    async with running(replace(settings, reload=f"{command} now"), ports[0]) as watched:
        watched.gateway.want(table(*pair))
        view = await watched.until(lambda view: not view.ok)
        assert view.reason == f"nginx.reload = '{command} now' exited 3: sorry, not today"
        # The file was tested, so it stays; until it is proven, old and new may both get requests.
        assert (view.generation, view.live) == (1, addresses(*pair))
        command.write_text(f'#!/bin/sh\nexec "{nginx.binary}" -s reload\n')
        view = await watched.until(lambda view: view.ok)
        assert (view.generation, view.live_generation) == (1, 1)


async def test_a_reload_that_the_master_refuses_is_told_in_its_own_words(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance]
) -> None:
    settings.dir.mkdir()
    (settings.dir / "gateway.conf").touch()
    # `nginx -t` knows nothing of the zones that run: that one of them gets another key, only the master sees.
    zone = nginx.conf_d / "zone.conf"
    zone.write_text("limit_req_zone $binary_remote_addr zone=mine:1m rate=1r/s;\n")
    nginx.start()
    async with running(settings, ports[0]) as watched:
        await watched.route(table(*pair))
        zone.write_text("limit_req_zone $server_name zone=mine:1m rate=1r/s;\n")
        watched.gateway.want(table(pair[0]))
        view = await watched.until(lambda view: not view.ok and view.generation == 2)
        assert view.reason is not None
        assert view.reason.startswith("nginx refused generation 2: ")
        assert '"mine"' in view.reason
        assert (view.live_generation, view.live) == (1, addresses(*pair))
        zone.unlink()
        await watched.until(lambda view: view.ok and view.live == addresses(pair[0]))


async def test_the_distributions_log_is_kept_beside_the_log_socket(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance], tmp_path: Path
) -> None:
    settings.dir.mkdir()
    (settings.dir / "gateway.conf").touch()
    nginx.start()
    async with running(replace(settings, access_log_socket=tmp_path / "access.sock"), ports[0]) as watched:
        await watched.route(table(*pair))
        await ask(ports[0], "POST /for-the-log", "{}")
        log = nginx.folder / "access.log"
        await eventually(lambda: "POST /for-the-log HTTP/1.1" in log.read_text(), "the line is written")


async def test_another_program_on_the_address_is_not_taken_for_the_gateway(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance]
) -> None:
    stranger = Instance(ports[0], "stranger")
    settings.dir.mkdir()
    (settings.dir / "gateway.conf").touch()
    nginx.start()
    await stranger.start()
    try:
        async with running(settings, ports[0]) as watched:
            watched.gateway.want(table(*pair))
            view = await watched.until(lambda view: not view.ok and view.generation == 1)
            assert view.live_generation is None
            assert view.reason is not None
            assert "Address already in use" in view.reason
            await stranger.stop()
            await watched.until(lambda view: view.ok)
    finally:
        await stranger.stop()


async def test_workers_killed_under_a_running_master_are_no_business_of_ours(
    settings: NginxSettings, ports: range, nginx: PrivateNginx, pair: tuple[Instance, Instance]
) -> None:
    settings.dir.mkdir()
    (settings.dir / "gateway.conf").touch()
    nginx.start()
    async with running(settings, ports[0]) as watched:
        await watched.route(table(*pair))
        master = nginx.master
        assert master is not None
        old = process.workers(master) or frozenset()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: len((process.workers(master) or frozenset()) - old) == 2, "the master replaces them")
        assert (await ask(ports[0], "POST /", "{}")).status == 200
        await watched.route(table(pair[1]))

"""An nginx of our own, whatever happens to its files: what is live stays, and what is wanted comes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasupervisor.act.nginx.render import read_upstream
from hasupervisor.act.nginx.settings import NginxSettings
from tests.real.gatewaying import Instance, Watched, addresses, ask, refused, running, table
from tests.real.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_defect_is_logged")


async def test_a_broken_file_stops_every_reload_until_it_is_mended_by_hand(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(*trio))
    live, before = watched.upstream, watched.gateway.view().generation
    broken = watched.dir / "conf.d" / "mine.conf"
    broken.write_text("server {\n    bogus on;\n}\n")
    view = await watched.until(lambda view: not view.ok)  # noticed although no routing has changed
    assert view.reason == f'unknown directive "bogus" in {broken}:2'

    watched.gateway.want(table(*trio[:2]))
    await watched.until(lambda view: not view.ok and view.reason is not None)
    ok, said = await watched.gateway.reload()
    assert (ok, said) == (False, view.reason)
    assert watched.upstream == live
    assert watched.gateway.view().live == addresses(*trio)
    assert (await ask(watched.port, "GET /ha/generation")).body == f"{before}\n"

    broken.unlink()
    view = await watched.until(lambda view: view.ok and view.live == addresses(*trio[:2]))
    assert view.generation == before + 1


async def test_a_broken_file_of_ours_is_the_same_until_a_person_asks_for_it_to_be_written_anew(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(*trio))
    gateway_conf = watched.dir / "gateway.conf"
    good = gateway_conf.read_text()
    gateway_conf.write_text(good + "bogus;\n")
    view = await watched.until(lambda view: not view.ok)
    assert view.reason is not None
    assert str(gateway_conf) in view.reason
    assert gateway_conf.read_text() == good + "bogus;\n"
    ok, said = await watched.gateway.reload()
    assert ok, said
    assert gateway_conf.read_text() == good
    await watched.until(lambda view: view.ok)


async def test_what_a_person_adds_to_our_files_stays_while_the_routing_changes(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(trio[0]))
    gateway_conf = watched.dir / "gateway.conf"
    mine = gateway_conf.read_text().replace("client_max_body_size 64m", "client_max_body_size 128m")
    gateway_conf.write_text(mine)
    await watched.route(table(*trio))
    assert gateway_conf.read_text() == mine


async def test_an_upstream_file_edited_by_hand_is_replaced(watched: Watched, trio: list[Instance]) -> None:
    view = await watched.route(table(*trio))
    (watched.dir / "upstream.conf").write_text("not nginx at all {{{\n")
    after = await watched.until(lambda now: now.ok and now.generation > view.generation and watched.proven(now))
    assert after.live == addresses(*trio)
    assert read_upstream(watched.upstream).routed == addresses(*trio)


async def test_garbage_left_on_disk_does_not_stop_a_start(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    settings.dir.mkdir()
    (settings.dir / "upstream.conf").write_bytes(b"geo $ha_generation { default 41; }\nupstream ha {\n  ser\xff\x00{")
    (settings.dir / "gateway.conf").write_text("}}}")
    async with running(settings, ports[0]) as watched:
        assert watched.gateway.on_disk() == frozenset()
        view = await watched.route(table(trio[0]))
        assert view.generation > 41
        assert (await ask(watched.port, "POST /", "{}")).status == 200


async def test_a_file_that_cannot_be_written_is_said_and_tried_again(watched: Watched, trio: list[Instance]) -> None:
    await watched.route(table(*trio))
    live = watched.upstream
    blocker = watched.dir / ".upstream.conf.new"  # where the new file is made before it takes the old one's place
    blocker.mkdir()
    watched.gateway.want(table(trio[0]))
    view = await watched.until(lambda view: not view.ok)
    assert view.reason == f"cannot write {blocker}: Is a directory"
    assert watched.upstream == live
    assert view.live == addresses(*trio)
    blocker.rmdir()
    await watched.until(lambda view: view.ok and view.live == addresses(trio[0]))


async def test_a_file_in_place_of_the_folder_is_said_and_recovered_from(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    settings.dir.write_text("in the way")
    async with running(settings, ports[0]) as watched:
        view = await watched.until(lambda view: not view.ok)
        assert view.reason == f"cannot write {settings.dir}: File exists"
        watched.gateway.want(table(trio[0]))
        settings.dir.unlink()
        await watched.until(lambda view: view.ok and view.live == addresses(trio[0]))


async def test_other_settings_are_taken_over_while_it_runs(
    watched: Watched, ports: range, trio: list[Instance]
) -> None:
    await watched.route(table(*trio))
    moved = replace(watched.settings, listen=f"127.0.0.1:{ports[7]}", tries=2)
    watched.gateway.reconfigure(moved)
    await eventually(lambda: not refused(ports[7]), "the new port answers")
    await watched.until(lambda view: view.ok and watched.proven(view))
    assert (await ask(ports[7], "POST /", "{}")).status == 200
    assert "proxy_next_upstream_tries 2;" in watched.gateway.files()["gateway.conf"]

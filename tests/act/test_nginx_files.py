"""nginx's files: what is rendered is read back, what people wrote is understood, and a crash leaves no half of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasupervisor.act.nginx.conffile import directives, read_tree, real
from hasupervisor.act.nginx.files import rotate, write_atomically
from hasupervisor.act.nginx.program import build_options, main_file, words
from hasupervisor.act.nginx.render import canonical, gateway_conf, read_upstream, templates, upstream_conf
from hasupervisor.act.nginx.settings import NginxSettings, parse_listen, plain_name
from hasupervisor.act.nginx.stage import build_shadow
from hasupervisor.model import Address, Route, Routing
from hasupervisor.templates import template_dir

SETTINGS = NginxSettings(dir=Path("/var/lib/chatglm-ha/nginx"))
ENV = templates(template_dir())

addresses = st.builds(
    Address,
    st.from_regex(r"(10\.\d{1,3}\.\d{1,3}\.\d{1,3}|[a-z][a-z0-9-]{0,10}\.example)", fullmatch=True),
    st.integers(10, 65535),
)
routes = st.builds(Route, st.from_regex(r"[a-z][a-z0-9]{0,8}-\d\d", fullmatch=True), addresses)
tables = st.lists(routes, max_size=8, unique_by=(lambda route: route.address, lambda route: route.name)).flatmap(
    lambda everyone: st.builds(
        Routing,
        st.lists(st.sampled_from(everyone), unique=True).map(tuple) if everyone else st.just(()),
        st.just(tuple(everyone)),
    )
)


# --- upstream.conf ----------------------------------------------------------------------------------------------------


@given(tables, st.integers(1, 10**9), st.integers(0, 5), st.integers(0, 64))
def test_a_table_is_read_back_from_the_file_as_it_was_written(
    table: Routing, generation: int, max_fails: int, max_in_flight: int
) -> None:
    settings = NginxSettings(dir=Path("/x"), max_fails=max_fails, max_in_flight=max_in_flight)
    written = read_upstream(upstream_conf(ENV, settings, table, generation))
    assert written.generation == generation
    assert written.routing == canonical(table)


@given(tables)
def test_the_upstream_block_is_never_empty(table: Routing) -> None:
    text = upstream_conf(ENV, SETTINGS, table, 1)
    assert "    server " in text.split("upstream ha {")[1].split("}")[0]


@given(st.text(max_size=300))
def test_any_text_at_all_is_read_without_an_error(text: str) -> None:
    read_upstream(text)
    list(directives(text))


def test_a_file_edited_by_hand_is_understood_as_far_as_it_goes() -> None:
    written = read_upstream(
        """
        geo $ha_generation { default "17"; }
        upstream ha { zone ha 256k;
            server   10.0.0.1:8000 max_fails=3 fail_timeout=30s;
            server 10.0.0.2:8001 down; # chatglm-02 is ill
            # server 10.0.0.3:8002; # chatglm-03
            server unix:/run/x.sock;
            server 10.0.0.4:99999;
        """
    )
    assert written.generation == 17
    assert written.routing.routes == (Route("10.0.0.1:8000", Address("10.0.0.1", 8000)),)
    assert written.everyone == {Address("10.0.0.1", 8000), Address("10.0.0.2", 8001)}


# --- gateway.conf -----------------------------------------------------------------------------------------------------


def gateway_text(settings: NginxSettings, *, room: bool = True) -> str:
    return gateway_conf(
        ENV, settings, include_upstream=True, room=room, file_logs=(), error_logs=(("/x/error.log", "error"),)
    )


def test_the_catch_all_name_is_the_default_server_and_any_other_name_is_not() -> None:
    assert 'listen "80" default_server backlog' in gateway_text(SETTINGS)
    named = gateway_text(NginxSettings(dir=Path("/x"), server_name="chatglm-api.example.com"))
    assert 'listen "80" backlog' in named
    assert 'server_name "chatglm-api.example.com";' in named


def test_a_pattern_for_a_name_gets_a_plain_name_beside_it_to_be_asked_by() -> None:
    text = gateway_text(NginxSettings(dir=Path("/x"), server_name="*.example.com ~^llm"))
    assert 'server_name "*.example.com" "~^llm" "chatglm-ha.internal";' in text


def test_a_request_is_retried_even_if_it_is_a_post() -> None:
    text = gateway_text(NginxSettings(dir=Path("/x"), tries=4))
    assert "proxy_next_upstream error timeout http_500 http_502 http_503 http_504 non_idempotent;" in text
    assert "proxy_next_upstream_tries 4;" in text


def test_without_a_room_health_asks_the_instances_at_once() -> None:
    assert "ha_daemon" in gateway_text(SETTINGS)
    assert "ha_daemon" not in gateway_text(SETTINGS, room=False)


@pytest.mark.parametrize(
    ("text", "directive", "host", "port", "source"),
    [
        ("80", "80", "127.0.0.1", 80, "127.0.0.1"),
        ("*:81", "*:81", "127.0.0.1", 81, "127.0.0.1"),
        ("0.0.0.0:82", "0.0.0.0:82", "127.0.0.1", 82, "127.0.0.1"),
        ("127.0.0.1:8080", "127.0.0.1:8080", "127.0.0.1", 8080, "127.0.0.1"),
        ("10.1.2.3:80", "10.1.2.3:80", "10.1.2.3", 80, "127.0.0.1"),
        ("[::]:80", "[::]:80", "::1", 80, "::1"),
        ("[fd00::1]:80", "[fd00::1]:80", "fd00::1", 80, "::1"),
        ("localhost:80", "localhost:80", "localhost", 80, None),
    ],
)
def test_the_gateway_is_asked_from_loopback_wherever_it_listens(
    text: str, directive: str, host: str, port: int, source: str | None
) -> None:
    listen = parse_listen(text)
    assert (listen.directive, listen.host, listen.port, listen.source) == (directive, host, port, source)


@pytest.mark.parametrize("text", ["", "http", "127.0.0.1", "127.0.0.1:", ":80", "80000", "0", "a:b"])
def test_an_address_that_is_none_is_refused_with_what_was_meant(text: str) -> None:
    with pytest.raises(ValueError, match="a port or host:port is meant"):
        parse_listen(text)


def test_the_plain_name_is_the_first_that_is_no_pattern() -> None:
    assert plain_name("*.a.com .b.com ~^c d.com e.com") == "d.com"
    assert plain_name("_") is None


# --- nginx's own files ------------------------------------------------------------------------------------------------


def test_directives_are_found_through_quotes_comments_variables_and_lua() -> None:
    text = """
    # include not/this.conf;
    map "$a{;" ${b}c { "~^x\\"y{2}$" 'it''s'; } include "a b.conf";
    content_by_lua_block { if x then return "}" end; include = {1} }
    include two;}
    """
    found = [tuple(word.text for word in one.words) for one in directives(text) if one is not None]
    assert ("include", "a b.conf") in found
    assert ("include", "two") in found
    assert not any("not/this.conf" in word for one in found for word in one)
    for one in directives(text):
        for word in one.words if one is not None else ():
            assert text[word.start : word.end].strip("\"'").replace("\\", "") == word.text


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A configuration that leads to ours by a relative pattern, then an absolute pattern, then a plain path."""
    etc = tmp_path / "etc" / "nginx"
    (etc / "conf.d").mkdir(parents=True)
    (tmp_path / "etc" / "ssl").mkdir()
    (tmp_path / "etc" / "ssl" / "key.pem").write_text("key")
    (tmp_path / "opt").mkdir()
    (tmp_path / "ha").mkdir()
    (etc / "mime.types").write_text("types { }")
    (etc / "nginx.conf").write_text("pid x.pid; http { include mime.types; include conf.d/*.conf; }")
    (etc / "conf.d" / "a.conf").write_text(f"include {tmp_path}/opt/*.inc;")
    (etc / "conf.d" / "b.conf").write_text("ssl_certificate_key ../ssl/key.pem;")
    (tmp_path / "opt" / "ours.inc").write_text(f"include {tmp_path}/ha/gateway.conf;")
    return etc


def test_a_shadow_has_the_candidates_and_leads_everywhere_else_to_the_real_files(etc: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ha" / "gateway.conf"
    candidates = {real(ours): "candidate"}
    tree = read_tree(etc / "nginx.conf", candidates)
    root = tmp_path / "ha" / "stage"
    main = build_shadow(tree, candidates, root)
    assert main == Path(f"{root}{etc}/nginx.conf")

    shadow = read_tree(main)
    texts = {path: source.text for path, source in shadow.sources.items()}
    assert texts[Path(f"{root}{ours}")] == "candidate"
    # From the shadow's main file, relative paths lead where they led before.
    assert (main.parent / "mime.types").read_text() == "types { }"
    assert (main.parent / "../ssl/key.pem").read_text() == "key"
    assert (main.parent / "conf.d" / "b.conf").is_symlink()
    # Nothing real was touched.
    assert not ours.exists()
    assert (etc / "conf.d" / "a.conf").read_text() == f"include {tmp_path}/opt/*.inc;"


def test_a_shadow_is_made_anew_each_time(etc: Path, tmp_path: Path) -> None:
    candidates = {real(tmp_path / "ha" / "gateway.conf"): "one"}
    root = tmp_path / "ha" / "stage"
    build_shadow(read_tree(etc / "nginx.conf", candidates), candidates, root)
    (etc / "conf.d" / "b.conf").unlink()
    main = build_shadow(read_tree(etc / "nginx.conf", candidates), candidates, root)
    assert not os.path.lexists(main.parent / "conf.d" / "b.conf")


def test_files_that_include_one_another_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("include b.conf;")
    (tmp_path / "b.conf").write_text("include a.conf; include gone.conf;")
    tree = read_tree(tmp_path / "a.conf")
    assert set(tree.sources) == {tmp_path / "a.conf", tmp_path / "b.conf"}
    assert tmp_path / "gone.conf" in tree.unreadable


# --- nginx's own words ------------------------------------------------------------------------------------------------


def test_of_what_nginx_prints_the_complaint_is_kept_with_its_place() -> None:
    output = (
        'nginx: [alert] could not open error log file: open() "/var/log/nginx/error.log" failed (13)\n'
        '2026/11/24 07:30:00 [warn] 12#12: the "user" directive makes sense only with super-user privileges\n'
        '2026/11/24 07:30:00 [emerg] 12#12: unknown directive "bogus" in /etc/nginx/conf.d/x.conf:3\n'
        "nginx: configuration file /etc/nginx/nginx.conf test failed\n"
    )
    assert words(output) == 'unknown directive "bogus" in /etc/nginx/conf.d/x.conf:3'
    assert main_file(output) == Path("/etc/nginx/nginx.conf")


def test_a_command_that_prints_no_error_of_nginxs_is_told_by_its_last_line() -> None:
    assert words("Job failed.\nSee journalctl -xe\n\n") == "See journalctl -xe"
    assert words("") == ""


def test_the_last_of_an_option_given_twice_is_what_nginx_was_built_with() -> None:
    built = build_options("built by gcc\nconfigure arguments: --with-x='-g -O2' --prefix=/a --prefix=/b\n")
    assert built == {"with-x": "-g -O2", "prefix": "/b"}


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "upstream.conf"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(target, "new \ud800")  # half a character: the write fails after the temp file was made
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["upstream.conf"]


def test_a_written_file_is_readable_by_all_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "upstream.conf", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "upstream.conf").stat().st_mode & 0o777 == 0o644


def test_a_log_is_moved_aside_and_the_oldest_falls_off(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    assert not rotate(log, 4, 3)
    for number in range(5):
        log.write_text(f"log {number}")
        assert rotate(log, 4, 3)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "access.log.1": "log 4",
        "access.log.2": "log 3",
    }
    log.write_text("tiny")
    assert not rotate(log, 4, 3)

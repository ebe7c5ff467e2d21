"""No value that the configuration accepts changes the structure of nginx's files: nginx and a parser are the judges."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crossplane
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hasupervisor import assembly
from hasupervisor.act.nginx.layout import find_layout
from hasupervisor.act.nginx.program import command_line, run
from hasupervisor.act.nginx.render import gateway_conf, main_conf, templates, upstream_conf
from hasupervisor.act.nginx.settings import NginxSettings, plain_name
from hasupervisor.config import Config
from hasupervisor.model import Address, Route, Routing
from hasupervisor.templates import template_dir

ENV = templates(template_dir())
TABLE = Routing(
    routes=(Route("chatglm-01", Address("127.0.0.1", 8000)),),
    everyone=(Route("chatglm-02", Address("10.0.0.1", 8001)),),
)
PORT = 29999  # `nginx -t` binds it for a moment

# Everything that means something to nginx, to a pattern, to a URL or to a terminal.
SIGNS = "\"'$\\;{}()#\n\r\t *?[],:~%=&|+^-_@/<>`!\x00\x7f\x85\u2028aZ0é健"


class Parts:
    """One set of values, each taken only where the configuration accepts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: dict[str, dict[str, Any]] = {
            "nginx": {"mode": "own", "listen": f"127.0.0.1:{PORT}", "dir": str(folder)},
            "health": {},
            "service": {},
        }

    def offer(self, section: str, name: str, value: object) -> None:
        changed = {**self.values, section: {**self.values[section], name: value}}
        try:
            Config.model_validate(changed)
        except ValidationError:
            return
        self.values = changed

    @property
    def settings(self) -> NginxSettings:
        return assembly.nginx_settings(Config.model_validate(self.values))


texts = st.text(st.sampled_from(SIGNS), max_size=12)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    # Not pytest's: a socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="chatglm-ha-") as folder:
        yield Path(folder)


async def written(found: NginxSettings) -> Path:
    """All files of an nginx of our own, on disk; returns the main one."""
    (found.dir / "temp").mkdir(parents=True, exist_ok=True)
    layout = await find_layout(found)
    files = {
        "upstream.conf": upstream_conf(ENV, found, TABLE, 1),
        "gateway.conf": gateway_conf(
            ENV, found, include_upstream=True, room=True, file_logs=layout.file_logs, error_logs=layout.error_logs
        ),
        "nginx.conf": main_conf(ENV, found),
    }
    for name, text in files.items():
        (found.dir / name).write_text(text, encoding="utf-8")
    return found.dir / "nginx.conf"


def parsed(main: Path) -> dict[str, list[dict[str, Any]]]:
    """What another program than ours makes of the files, by name."""
    payload = crossplane.parse(str(main), catch_errors=False, check_ctx=False, check_args=False)
    return {Path(config["file"]).name: config["parsed"] for config in payload["config"]}


def skeleton(block: list[dict[str, Any]]) -> list[object]:
    """Directives in order and what is in them, without their arguments; of a map, only how many entries it has."""
    found: list[object] = []
    for one in block:
        inner = one.get("block")
        if one["directive"] in ("map", "geo", "types"):
            found.append((one["directive"], len(inner or ())))
        else:
            found.append((one["directive"], skeleton(inner) if inner is not None else None))
    return found


def arguments(block: list[dict[str, Any]], directive: str) -> list[list[str]]:
    """The arguments of every directive of that name, at any depth."""
    found = [one["args"] for one in block if one["directive"] == directive]
    return found + [args for one in block for args in arguments(one.get("block") or [], directive)]


def plain(found: NginxSettings) -> NginxSettings:
    """Harmless values in the same number: what the structure is compared with."""
    parts = Parts(found.dir.parent / "plain")
    names = found.server_name.split()
    harmless = "n{}" if plain_name(found.server_name) else "*.n{}"
    names = ["_" if name == "_" else harmless.format(number) for number, name in enumerate(names)]
    parts.offer("nginx", "server_name", " ".join(names))
    parts.offer("nginx", "paths", [f"/p{number}" for number in range(len(found.paths))])
    parts.offer("nginx", "hold", 10.0 if found.hold else 0.0)
    parts.offer("nginx", "max_in_flight", int(bool(found.max_in_flight)))
    return parts.settings


@settings(max_examples=60)
@given(
    folder=texts,
    names=texts,
    paths=st.lists(texts, max_size=3),
    health=texts,
    listen=texts,
    service=texts,
    numbers=st.tuples(*[st.integers(-1, 10**30) | st.integers(0, 9)] * 4),
    hold=st.floats(0, 1e300) | st.just(0.0),
)
@example("", "", [], ";x", "", "", (3, 0, 30, 0), 10.0)
@example("", "", [], "健康", "", "", (3, 0, 30, 0), 10.0)
@example("", "~(", ["/*"], "?a=$uri", "unix:/tmp/x", "", (3, 3, 30, 4), 0.0)
@example("a b", "a;} server { listen 1", ["a{2}", "x/*", "a.b(c)+"], '"; return 200 "', "", "x;", (3, 3, 30, 4), 0.0)
async def test_no_accepted_value_changes_what_nginx_reads(
    home: Path,
    folder: str,
    names: str,
    paths: list[str],
    health: str,
    listen: str,
    service: str,
    numbers: tuple[int, int, int, int],
    hold: float,
) -> None:
    parts = Parts(home / "plain")
    parts.offer("nginx", "dir", f"{home}/{folder}".replace("..", "").rstrip("/"))
    for name in (names, f"{names}.example.com", f"*.{names}", f"~^{names}$"):
        parts.offer("nginx", "server_name", name)
    parts.offer("nginx", "paths", [f"/{path}" for path in paths])
    parts.offer("health", "path", f"/{health}")
    parts.offer("nginx", "listen", listen)
    parts.offer("service", "name", service)
    for name, number in zip(("tries", "max_fails", "fail_timeout", "max_in_flight"), numbers, strict=True):
        parts.offer("nginx", name, number)
    parts.offer("nginx", "hold", hold)
    found = parts.settings

    expected = parsed(await written(plain(found)))
    files = parsed(await written(found))
    assert {name: skeleton(block) for name, block in files.items()} == {
        name: skeleton(block) for name, block in expected.items()
    }
    gateway = files["gateway.conf"]
    assert arguments(gateway, "server_name")[0][: len(found.server_name.split())] == found.server_name.split()
    assert [f"http://ha{found.health_path}"] in arguments(gateway, "proxy_pass")
    assert arguments(gateway, "include") == [[f"{found.dir}/upstream.conf"]]
    assert [f"unix:{found.dir}/room.sock", "max_fails=0"] in arguments(gateway, "server")
    assert {args[0] for args in arguments(gateway, "error_log")} == {f"{found.dir}/error.log"}

    ran = await run((*command_line(found), "-t"), 20.0)
    # Whether a pattern is one, nginx alone can say: it does, and goes on with the files that it has.
    assert ran.ok or ("pcre" in ran.output and "~" in found.server_name), ran.output


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("health", "path", "/健康"),
        ("health", "path", "/health $uri"),
        ("health", "path", '/health"x'),
        ("health", "path", "/$uri"),
        ("health", "path", "/%zz"),
        ("health", "path", "/a{b}"),
        ("nginx", "dir", "/srv/a,b"),
        ("nginx", "dir", "/srv/a*"),
        ("nginx", "listen", "unix:80"),
        ("nginx", "server_name", "模型.cn"),
        ("nginx", "server_name", "a\tb"),
        ("nginx", "paths", ["/a/../b"]),
        ("nginx", "paths", ["metrics"]),
        ("nginx", "paths", ["/"]),
        ("nginx", "paths", ["/ha/generation"]),
        ("nginx", "paths", ["/v1/x"]),
        ("nginx", "paths", ["/a*"]),
        ("nginx", "paths", ["/a//b"]),
        ("nginx", "paths", ["/a?b"]),
        ("nginx", "tries", 10**20),
        ("nginx", "hold", 1e300),
    ],
)
def test_what_cannot_be_written_for_nginx_is_refused(section: str, key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({section: {key: value}})


@pytest.mark.parametrize("path", ["/health", "/health;x", "/health?full=1&x=%20", "/a'b(c)!*"])
def test_a_health_path_of_url_characters_is_accepted(path: str) -> None:
    assert Config.model_validate({"health": {"path": path}}).health.path == path

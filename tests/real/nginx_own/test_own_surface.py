"""What reaches an instance: POST /, /v1/*, and what nginx.paths adds; nothing else, however it is spelled."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import pytest

from hasupervisor.act.nginx.settings import NginxSettings
from tests.real.gatewaying import Instance, Reply, Watched, ask, running, table

pytestmark = pytest.mark.usefixtures("no_defect_is_logged")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "PURGE", "post")


def every(text: str) -> list[str]:
    return text.split()


# Endpoints that real servers have beside the documented ones, most of them without a key.
SERVERS = every("""
/metrics /standin /health/ /healthz /ping /version /docs /openapi.json /redoc /flush_cache /get_model_info
/release_memory_occupation /resume_memory_occupation /update_weights_from_disk /set_internal_state
/start_profile /stop_profile /abort_request /generate /encode /classify /tokenize /detokenize /pooling /score
/rerank /invocations /load /sleep /wake_up /is_sleeping /reset_prefix_cache /collective_rpc /server_info
/scale_elastic_ep /admin /shutdown /debug/pprof /robots.txt /favicon.ico /.env /index.html /static/x.js
""")

# Other spellings of paths, of which some servers make /metrics or /v1/... again.
ODD = every(r"""
// //metrics ///metrics /./metrics /x/../metrics /v1/../metrics /v1/../../metrics /v1/./../metrics
/v1//../metrics /v1/x/../../metrics /v1/%2e%2e/metrics /v1/%2E%2E/metrics /v1/.%2e/metrics /v1/%2e./metrics
/v1/..%2fmetrics /v1/..%2Fmetrics /v1/%2e%2e%2fmetrics /v1%2f..%2fmetrics /v1/x%2f..%2f..%2fmetrics
/v1/..;/metrics /v1/..;x=1/metrics /v1/..\metrics /v1\..\metrics /v1/..%5cmetrics /v1/%5c..%5cmetrics /v1/..
/v1/. /v1/../ /v1/%2e%2e /v1/..?x=1 /v1//models /v1///models //v1/models /v1/%2fmodels /v1%2f%2fmetrics
/%2f/metrics /%2e%2e/metrics /metrics/../v1/models /metrics/%2e%2e/v1/models /metrics%2f..%2fv1/models
/metrics/..;/v1/models /V1/models /V1/../metrics /v1 /v1? /v2/models /v1x /v11/models /%76%31/models /%6detrics
/METRICS /metrics/ /metrics? /metrics?/v1/ /metrics#/v1/ /?/../metrics /v1/#/../../metrics /v1/%00/models
/v1/x%00 /v1/../v1/models /ha /ha/ /ha/x /ha/instance /ha/health /ha/generation/ /ha-no-such-file /@room /@again
/again * metrics http://127.0.0.1/metrics http://127.0.0.1/v1/../metrics http://metrics/ /v1/..%c0%afmetrics
/v1/.%00./metrics
""")

GOOD = every("""
/v1/models /v1/ /v1/chat/completions /v1/completions?x=1&y=/../z /v1/models/THUDM%2Fchatglm-6b /v1/a.b/..c
/v1/x/ /v1/%E4%BD%A0 /v1/x;y=1 /v1/x?/../metrics http://127.0.0.1/v1/models
""")


def documented(method: str, target: str) -> bool:
    """The promise, in words of its own: method and path as they were written."""
    path = re.sub(r"^http://[^/]*", "", target).partition("?")[0]
    if method in ("TRACE", "CONNECT") or not method.isupper():
        return False  # nginx answers these itself
    if path == "/":
        return method == "POST"
    return target in GOOD


async def walk(watched: Watched, instance: Instance, targets: list[tuple[str, str]]) -> dict[tuple[str, str], Reply]:
    """Asks for each, and checks of each whether the instance was asked."""
    replies = {}
    for method, target in targets:
        instance.lines.clear()
        reply = replies[method, target] = await ask(
            watched.port, f"{method} {target}", "{}" if method == "POST" else ""
        )
        reached = bool(instance.lines)
        assert reached == documented(method, target), f"{method} {target}: {reply.status}, reached: {instance.lines}"
        if reached:
            asked = re.sub(r"^http://[^/]*", "", target)
            assert instance.lines == [f"{method} {asked}"], "an instance gets the path as it was written"
    return replies


async def test_of_three_hundred_paths_and_methods_only_the_documented_ones_reach_an_instance(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(trio[0]))
    targets = [(method, target) for target in (*SERVERS, *ODD, *GOOD, "/", "/?x=1") for method in ("GET", "POST")]
    targets += [(method, target) for target in ("/", "/v1/models", "/metrics", "/health") for method in METHODS]
    targets += [(method, f"/v1/../{name}") for method in METHODS for name in ("metrics", "standin")]
    assert len(set(targets)) > 300
    replies = await walk(watched, trio[0], list(dict.fromkeys(targets)))
    for (method, target), reply in replies.items():
        if reply.status == 404 and method != "HEAD":
            assert reply.headers["content-type"] == "application/json", (method, target)
            error = json.loads(reply.body)["error"]
            assert error["type"] == "not_found", (method, target)
    refused = {reply.status for sent, reply in replies.items() if not documented(*sent)}
    assert refused <= {200, 400, 404, 405}, refused  # 200: GET /health, which the daemon answers


async def test_a_method_that_a_path_does_not_take_is_405_with_those_that_it_does(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(trio[0]))
    reply = await ask(watched.port, "GET /")
    assert (reply.status, reply.headers["allow"]) == (405, "post")
    assert json.loads(reply.body)["error"]["type"] == "method_not_allowed"
    reply = await ask(watched.port, "POST /health", "{}")
    assert (reply.status, reply.headers["allow"]) == (405, "get, head")
    assert trio[0].lines == []


async def test_a_browser_s_preflight_reaches_the_instance_that_knows_its_own_rules(
    watched: Watched, trio: list[Instance]
) -> None:
    await watched.route(table(trio[0]))
    assert (await ask(watched.port, "OPTIONS /v1/chat/completions")).status == 200
    assert trio[0].lines == ["OPTIONS /v1/chat/completions"]


async def test_paths_adds_exactly_what_it_names(settings: NginxSettings, ports: range, trio: list[Instance]) -> None:
    added = ("/tokenize", "/files/*", "/a.b(c)+", "/v1")
    async with running(replace(settings, paths=added), ports[0]) as watched:
        await watched.route(table(trio[0]))
        passed = ["/tokenize", "/tokenize?x=1", "/files/", "/files/x/y?z", "/a.b(c)+", "/v1", "/v1/models"]
        refused = [
            "/tokenize/",
            "/tokenizer",
            "/tokenize/x",
            "/files",
            "/filesx",
            "/files/../metrics",
            "/aXb(c)+",
            "/abbc",
        ]
        refused += ["/files/%2e%2e/metrics", "/files//x", "/metrics", "/x?/tokenize", "/xx/tokenize"]
        for path in (*passed, *refused):
            trio[0].lines.clear()
            reply = await ask(watched.port, f"GET {path}")
            expected = (200, [f"GET {path}"]) if path in passed else (404, [])
            assert (reply.status, trio[0].lines) == expected, path


async def test_everything_can_be_opened_on_purpose_and_the_gateway_s_own_pages_stay(
    settings: NginxSettings, ports: range, trio: list[Instance]
) -> None:
    async with running(replace(settings, paths=("/*",)), ports[0]) as watched:
        await watched.route(table(trio[0]))
        assert (await ask(watched.port, "GET /metrics")).status == 200
        assert (await ask(watched.port, "GET /health")).json == {"status": "healthy", "serving": 1}
        assert (await ask(watched.port, "GET /ha/x")).status == 404
        assert trio[0].lines == ["GET /metrics"]


async def test_a_request_that_is_too_large_is_told_so_in_the_shape_of_the_other_errors(watched: Watched) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", watched.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 99999999\r\n\r\n")
    async with asyncio.timeout(10):
        said = (await reader.read(-1)).decode()
    writer.close()
    assert said.startswith("HTTP/1.1 413 ")
    assert '"type":"too_large"' in said

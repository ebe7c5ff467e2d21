"""Lines as stock nginx 1.22 writes them, and lines that are none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasupervisor.observe.accesslog import Request, Try, Unreadable, is_traffic, read_line

HEAD = b"<190>Nov 24 07:45:28 ha: "
LINE = {
    "t": 1795506328.125,
    "gen": "17",
    "id": "a8f0c5deec2ff51f49e17b1d559b1616",
    "m": "POST",
    "u": "/",
    "st": 200,
    "rt": 0.5,
    "bo": 150,
    "ct": "application/json",
    "ua": "127.0.0.1:8000",
    "us": "200",
    "uct": "0.000",
    "uht": "0.400",
    "urt": "0.500",
}


def line(**changed: object) -> bytes:
    return HEAD + json.dumps(LINE | changed).encode()


def test_one_try_is_one_try() -> None:
    request = read_line(line())
    assert request == Request("/", "POST", 200, 0.5, 150, False, (Try("127.0.0.1:8000", 200, 0.5, 0.4),))
    assert request.latency_s == 0.5
    assert is_traffic(request)


def test_every_try_of_a_retried_request_is_told() -> None:
    request = read_line(
        line(
            rt=3.1,
            ua="127.0.0.1:8002, 127.0.0.1:8001, 127.0.0.1:8000",
            us="502, 502, 200",
            uct="0.000, -, 0.000",
            uht="-, -, 0.100",
            urt="2.000, 0.000, 1.100",
        )
    )
    assert request.tries == (
        Try("127.0.0.1:8002", 502, 2.0, None),
        Try("127.0.0.1:8001", 502, 0.0, None),
        Try("127.0.0.1:8000", 200, 1.1, 0.1),
    )
    assert request.latency_s == 3.1


def test_tries_before_and_after_an_internal_redirect_are_one_list() -> None:
    request = read_line(
        line(
            ua="127.0.0.1:8001, 127.0.0.1:8000 : 127.0.0.1:9181 : 127.0.0.1:8000",
            us="502, 502 : 200 : 200",
            uct="-, - : 0.000 : 0.000",
            uht="-, - : 0.900 : 0.100",
            urt="0.000, 0.000 : 0.900 : 0.100",
        )
    )
    assert [tried.address for tried in request.tries] == [
        "127.0.0.1:8001",
        "127.0.0.1:8000",
        "127.0.0.1:9181",
        "127.0.0.1:8000",
    ]
    assert [tried.status for tried in request.tries] == [502, 502, 200, 200]


def test_a_stream_is_as_quick_as_its_first_byte() -> None:
    request = read_line(line(ct="text/event-stream; charset=utf-8", rt=10.5, uht="0.250", urt="10.000"))
    assert request.stream
    assert request.latency_s == pytest.approx(0.75)  # half a second went by before this try


def test_a_client_that_left_is_no_evidence() -> None:
    request = read_line(line(st=499, rt=30.0, bo=0, ct="", us="-", uht="-", urt="30.000"))
    assert request.tries == (Try("127.0.0.1:8000", None, 30.0, None),)
    assert request.latency_s is None


def test_nobody_tried_is_an_empty_list() -> None:
    nobody = {"ua": "", "us": "", "uct": "", "uht": "", "urt": ""}
    assert read_line(line(st=404, **nobody)).tries == ()
    assert not is_traffic(read_line(line(st=404, **nobody)))
    assert is_traffic(read_line(line(st=503, **nobody)))  # somebody was turned away


def test_no_live_upstreams_names_the_upstream() -> None:
    request = read_line(line(st=502, ct="text/html", ua="ha", us="502", uct="-", uht="-", urt="0.000"))
    assert request.tries == (Try("ha", 502, 0.0, None),)


@pytest.mark.parametrize(
    ("path", "traffic"), [("/health", False), ("/ha/generation", False), ("/healthy", True), ("/v1/x", True)]
)
def test_the_gateways_own_pages_are_no_traffic(path: str, traffic: bool) -> None:
    assert is_traffic(read_line(line(u=path))) == traffic


def test_a_request_without_a_status_is_read_all_the_same() -> None:
    raw = line(us="-", uht="-").replace(b'"st": 200', b'"st":000')
    assert read_line(raw).status == 0


def test_raw_bytes_of_a_user_do_not_matter() -> None:
    assert read_line(line().replace(b'"u": "/"', b'"u":"/\xff\xfe{\xe4\xbd"')).path.startswith("/")


def test_fields_that_were_added_are_ignored() -> None:
    assert read_line(line(sn="chatglm", more=[1])) == read_line(line())


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "Expecting value"),
        (HEAD, "Expecting value"),
        (b"127.0.0.1 - - GET /", "Extra data"),
        (line()[:-20], "Unterminated|Expecting"),
        (HEAD + b'{"u": "/", "m": "GET"}', "it has no 'st'"),
        (HEAD + b"{}", "it has no 'u'"),
        (line(st="x"), "invalid literal"),
        (line(st=None), "int"),
        (line(st=float("inf")), "infinity"),
        (HEAD + b'{"u":' * 20_000, "recursion"),
        (line(ct=None), "startswith"),
        (line(ua="a:1, b:2"), "lists differ in length"),
        (line(us="OK"), "invalid literal"),
        (line(uht="soon"), "could not convert"),
    ],
)
def test_what_is_no_line_says_why(raw: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read_line(raw)


@settings(deadline=None)  # a busy machine is no defect
@given(st.binary() | st.builds(lambda cut, junk: line()[:cut] + junk, st.integers(0, 400), st.binary(max_size=9)))
def test_no_datagram_breaks_the_reader(raw: bytes) -> None:
    try:
        request = read_line(raw)
    except Unreadable:
        return
    is_traffic(request)
    assert request.latency_s is None or request.latency_s >= 0

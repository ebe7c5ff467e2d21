"""What goes wrong between the tool and the daemon: a sentence, the next command, and the right exit code."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import subprocess
from pathlib import Path

import pytest

from hasupervisor.ctl.client import Client
from hasupervisor.ctl.errors import Exit, Failure
from tests.ctl import documents
from tests.ctl.conftest import Run
from tests.ctl.stand_in import Held, Raw, StandIn, Text
from tests.ctl.terminal import PROGRAM

WAYS = (
    "  What serves goes on without it; nothing is healed meanwhile. To see what there is:\n"
    "    curl http://127.0.0.1/health                      the gateway (its port: nginx.listen)\n"
    "    docker ps --filter label=io.chatglm-ha.service    the instances\n"
    "    systemctl status chatglm-ha                       the daemon\n"
)


def test_no_socket_is_exit_3_and_says_how_to_see_what_still_serves(hactl: Run, folder: Path) -> None:
    result = hactl("status")
    why = f"chatglm-hactl: the daemon does not answer on {folder}/control.sock: there is no such socket\n"
    assert (result.stdout, result.stderr, result.returncode) == ("", why + WAYS, 3)


def test_the_socket_of_make_run_is_pointed_out_where_it_lies(hactl: Run, folder: Path) -> None:
    (folder / ".run").mkdir()
    (folder / ".run" / "control.sock").touch()
    result = hactl("status")
    assert result.returncode == 3
    assert result.stderr.endswith("  Or did you mean the one of `make run`: --socket .run/control.sock\n")


def test_a_socket_that_a_killed_daemon_has_left_is_exit_3(hactl: Run, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "control.sock"))
    result = hactl("status")
    assert result.returncode == 3
    assert f"{folder}/control.sock: nobody listens there\n" in result.stderr


def test_a_daemon_that_closes_before_it_answers_is_exit_3(hactl: Run, daemon: StandIn) -> None:
    daemon.state.instead["/v1/status"] = Raw(b"")
    result = hactl("status")
    assert result.returncode == 3
    assert "it closed the connection before it answered" in result.stderr


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Ty",
    ],
    ids=["by length", "by chunk", "in the head"],
)
def test_an_answer_that_breaks_off_is_exit_3(hactl: Run, daemon: StandIn, sent: bytes) -> None:
    daemon.state.instead["/v1/status"] = Raw(sent)
    result = hactl("status")
    assert (result.returncode, result.stdout) == (3, "")
    assert "it closed the connection in the middle of its answer" in result.stderr


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{"], ids=["at once", "half way"])
def test_a_daemon_that_falls_silent_is_exit_3_after_the_deadline(daemon: StandIn, sent: bytes) -> None:
    daemon.state.instead["/v1/status"] = Held(sent)
    with pytest.raises(Failure) as failure:
        Client(str(daemon.path), patience=0.3).get("/v1/status")
    assert failure.value.code is Exit.NO_ANSWER
    assert failure.value.sentence.endswith("it took the connection and then said nothing for 0.3 s")


def test_a_daemon_that_takes_no_connections_any_more_is_exit_3_after_the_deadline(folder: Path) -> None:
    """A stopped daemon: the kernel queues connections until the queue is full, then refuses to wait."""
    path = str(folder / "full.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as queued:
        listener.bind(path)
        listener.listen(0)
        queued.connect(path)
        with pytest.raises(Failure) as failure:
            Client(path, patience=0.3).get("/v1/status")
    assert failure.value.code is Exit.NO_ANSWER
    assert "its queue of connections is full" in failure.value.sentence


@pytest.mark.parametrize(("number", "code"), [(400, 2), (404, 6), (409, 5), (422, 2), (500, 1), (503, 1)])
def test_a_problem_becomes_its_exit_code_its_sentence_and_its_next_command(
    hactl: Run, daemon: StandIn, number: int, code: int
) -> None:
    problem = documents.problem(number, "it is so", hint="chatglm-hactl status", problems=("first", "second"))
    daemon.state.instead["/v1/resume"] = number, problem
    result = hactl("resume")
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr == "chatglm-hactl: it is so\n  first\n  second\nnext: chatglm-hactl status\n"


def test_an_error_that_is_no_problem_document_is_quoted(hactl: Run, daemon: StandIn) -> None:
    daemon.state.instead["/v1/status"] = Raw(
        b"HTTP/1.1 502 Bad\r\nContent-Type: text/plain\r\nContent-Length: 17\r\n\r\nsomething\nelse !!"
    )
    result = hactl("status")
    assert result.returncode == 1
    assert result.stderr == (
        "chatglm-hactl: the daemon answered 502 to /v1/status: something\nnext: chatglm-hactl version\n"
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Raw(b"220 smtp.example ESMTP\r\n\r\n"), "does not speak HTTP"),
        (Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), "the answer to GET /v1/status is not JSON"),
        (
            Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"),
            "the answer to GET /v1/status is a list, not an object",
        ),
        ((200, {}), "status.now is not there, not text"),
        ((200, documents.status(now=17)), "status.now is a number, not text"),
        ((200, documents.status(instances={})), "status.instances is an object, not a list"),
        ((200, documents.status(instances=[7])), "status.instances[0] is a number, not an object"),
        ((200, documents.status(instances=[{}])), "status.instances[0].colour is not there, not text"),
        ((200, documents.status(problems=None, traffic=[])), "status.traffic is a list, not an object"),
    ],
)
def test_an_answer_of_an_unexpected_shape_is_one_sentence_that_names_it(
    hactl: Run, daemon: StandIn, answer: Raw | tuple[int, dict[str, object]], words: str
) -> None:
    daemon.state.instead["/v1/status"] = answer
    result = hactl("status")
    assert (result.returncode, result.stdout) == (1, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.endswith("next: chatglm-hactl version  (are both the same?)\n")


def test_where_it_happened_is_shown_on_request(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status = {}
    result = hactl("status", CHATGLM_HA_DEBUG="1")
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "chatglm-hactl: the daemon's answer is not understood" in result.stderr


def test_a_path_that_no_socket_can_have_is_a_mistake_of_usage(hactl: Run) -> None:
    result = hactl("status", "--socket", "/" + "x" * 120)
    assert result.returncode == 2
    assert "is too long for a socket: at most 107 bytes" in result.stderr


@pytest.mark.parametrize("command", [("status", 4), ("check", 3)], ids=["status", "check"])
def test_a_socket_of_a_group_is_exit_4_and_names_the_group(
    locked_out: Run, daemon: StandIn, command: tuple[str, int]
) -> None:
    take_away(daemon.path, 0o660)
    group = grp.getgrgid(daemon.path.stat().st_gid).gr_name
    result = locked_out(command[0])
    assert result.returncode == command[1]
    told = result.stdout + result.stderr
    assert f"permission denied on {daemon.path}: " in told
    assert f"is not in its group {group}" in told
    assert f"sudo usermod -aG {group} " in told


def test_a_socket_that_no_group_may_use_is_exit_4_and_says_why(locked_out: Run, daemon: StandIn) -> None:
    take_away(daemon.path, 0o600)
    owner = pwd.getpwuid(daemon.path.stat().st_uid).pw_name
    result = locked_out("status")
    assert (result.returncode, result.stdout) == (4, "")
    assert f"chatglm-hactl: permission denied on {daemon.path}: only {owner} may use it, not " in result.stderr
    assert result.stderr.endswith(
        "no group is let in (the daemon found none that is named like control.group when it started)\n"
        "next: sudo chatglm-hactl …\n"
    )


def test_a_folder_that_one_may_not_enter_is_exit_4_too(locked_out: Run, daemon: StandIn, folder: Path) -> None:
    take_away(folder, 0o700)
    try:
        result = locked_out("status")
    finally:
        folder.chmod(0o700)
    assert result.returncode == 4
    assert f"may not enter {folder}\nnext: ls -ld {folder}\n" in result.stderr


def take_away(path: Path, mode: int) -> None:
    """Let only others in by `mode`: another user where we may give files away, else everybody but ourselves."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 1)
        path.chmod(mode)
    else:
        path.chmod(mode & ~0o700)


@pytest.fixture
def locked_out(env: dict[str, str]) -> Run:
    """The tool run by somebody for whom permissions count: root only without its capabilities."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
        return subprocess.run(
            [*powerless, *PROGRAM, *arguments], env=env, cwd="/", capture_output=True, text=True, timeout=30
        )

    return run


def test_a_reader_that_leaves_early_ends_the_tool_without_a_word(daemon: StandIn, env: dict[str, str]) -> None:
    daemon.state.logs["chatglm-02"] = b"x" * 70 + b"\n"
    daemon.state.instead["/v1/instances/chatglm-02/logs"] = Text([b"x" * 65536] * 64)
    tool = subprocess.Popen([*PROGRAM, "logs", "chatglm-02"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert tool.stdout is not None
    tool.stdout.read(10)
    tool.stdout.close()
    assert tool.stderr is not None
    assert tool.stderr.read() == b""
    assert tool.wait(20) == 141


def test_output_that_cannot_be_written_is_one_sentence(daemon: StandIn, env: dict[str, str]) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([*PROGRAM, "status"], env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_terminal_without_the_letters_gets_escapes_not_an_error(hactl: Run, daemon: StandIn) -> None:
    daemon.state.status = documents.status(documents.instance(1, reason="你好"))
    result = hactl("status", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert r"\u4f60\u597d" in result.stdout


def test_the_daemons_own_server_is_understood(folder: Path, hactl: Run) -> None:
    """uvicorn frames answers in its own way: lengths, chunks, the end of a stream."""
    import asyncio
    import json
    import threading

    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def status(request: Request) -> JSONResponse:
        return JSONResponse(documents.status())

    async def history(request: Request) -> StreamingResponse:
        lines = [json.dumps(entry) + "\n" for entry in documents.HISTORY]
        return StreamingResponse(iter(lines), media_type="application/x-ndjson")

    app = Starlette(routes=[Route("/v1/status", status), Route("/v1/history", history)])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "control.sock"))
    listener.listen()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        assert hactl("status").stdout.startswith("GREEN chatglm on gpu-07: 2 of 2 serving\n")
        assert len(hactl("history").stdout.splitlines()) == 2
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()

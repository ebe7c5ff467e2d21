"""Speaks HTTP/1.1 with the daemon on its Unix socket: one connection for a request, a deadline on every wait."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self

import h11

from hasupervisor.ctl.document import Document, unexpected
from hasupervisor.ctl.errors import Exit, Failure

ANSWER_S = 10.0  # the daemon answers from memory, within milliseconds
SLOW_ANSWER_S = 90.0  # where it asks nginx first, whose test and reload have deadlines of their own
RETRY_CONNECT_S = 0.05

_EXIT_OF_STATUS = {400: Exit.USAGE, 403: Exit.DENIED, 404: Exit.NO_SUCH, 409: Exit.REFUSED, 422: Exit.USAGE}


class Client:
    """The daemon's control socket; whatever goes wrong is a `Failure` with its exit code, 3 for no daemon there."""

    def __init__(self, path: str, *, patience: float = ANSWER_S) -> None:
        self.path = path
        self._patience = patience

    def get(self, target: str, query: Mapping[str, str] | None = None) -> Document:
        return self._ask("GET", target, query=query)

    def post(self, target: str, body: Mapping[str, object] | None = None, *, patience: float | None = None) -> Document:
        return self._ask("POST", target, body=body or {}, patience=patience)

    def delete(self, target: str) -> Document:
        return self._ask("DELETE", target)

    def stream(
        self, target: str, query: Mapping[str, str] | None = None, *, body: Mapping[str, object] | None = None
    ) -> Stream:
        """Open an answer that arrives piece by piece, of a GET or, with a body, of a POST."""
        stream = Stream(self.path, self._patience)
        try:
            sent = None if body is None else json.dumps(body).encode()
            stream.send("GET" if sent is None else "POST", _with_query(target, query), sent)
            status, problem = stream.head()
            if status >= 300:
                raise _refusal(status, problem, stream.rest(), target)
        except BaseException:
            stream.close()
            raise
        return stream

    def _ask(
        self,
        method: str,
        target: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        patience: float | None = None,
    ) -> Document:
        with Stream(self.path, patience or self._patience) as stream:
            stream.send(method, _with_query(target, query), None if body is None else json.dumps(body).encode())
            status, problem = stream.head()
            answer = stream.rest()
        if status >= 300:
            raise _refusal(status, problem, answer, target)
        return decode(answer, f"the answer to {method} {target}")


class Stream:
    """One connection with one request on it; its answer is read whole (`rest`) or as it comes (`pieces`, `lines`)."""

    def __init__(self, path: str, patience: float) -> None:
        self._path = path
        self._patience = patience
        self._deadline = time.monotonic() + patience
        self._ended = False
        self._begun = b""  # what came before the head was whole
        self._http = h11.Connection(h11.CLIENT)
        self._socket = _connect(path, self._deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, method: str, target: str, body: bytes | None) -> None:
        headers = [("Host", "ha"), ("Connection", "close"), ("Accept", "application/json, text/plain")]
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        message = self._http.send(h11.Request(method=method, target=target, headers=headers)) or b""
        if body is not None:
            message += self._http.send(h11.Data(data=body)) or b""
        message += self._http.send(h11.EndOfMessage()) or b""
        self._socket.settimeout(self._left())
        try:
            self._socket.sendall(message)
        except OSError as error:
            raise self._gone(error) from error

    def head(self) -> tuple[int, bool]:
        """The status of the answer, and whether a problem document follows it."""
        event = self._next(self._left())
        while isinstance(event, h11.InformationalResponse):
            event = self._next(self._left())
        if event is None:
            raise self._silent()
        assert isinstance(event, h11.Response), event
        kinds = [value for name, value in event.headers if name == b"content-type"]
        return event.status_code, any(b"json" in kind for kind in kinds)

    def rest(self) -> bytes:
        """The whole body, within the deadline of the request."""
        body = bytearray()
        while True:
            event = self._next(self._left())
            if event is None:
                raise self._silent()
            if isinstance(event, h11.EndOfMessage):
                return bytes(body)
            if isinstance(event, h11.Data):
                body += event.data

    def pieces(self, tick: float | None = None) -> Iterator[bytes]:
        """The body as it comes, until it ends; an empty piece says that `tick` seconds went by without one."""
        while True:
            event = self._next(tick)
            if isinstance(event, h11.EndOfMessage):
                return
            yield bytes(event.data) if isinstance(event, h11.Data) else b""

    def lines(self, tick: float | None = None) -> Iterator[bytes]:
        """The body line by line, without line ends; an empty line says that `tick` seconds went by without one."""
        kept = b""
        for piece in self.pieces(tick):
            if not piece:
                yield b""
                continue
            *whole, kept = (kept + piece).split(b"\n")
            yield from filter(None, whole)
        if kept:
            yield kept

    def _next(self, timeout: float | None) -> h11.Event | None:
        """The next event, or None when nothing comes for `timeout` seconds."""
        while True:
            try:
                event = self._http.next_event()
                if isinstance(event, h11.Event):
                    return event
                self._socket.settimeout(timeout)
                received = self._socket.recv(65536)
                self._ended = not received
                self._begun = self._begun or received[:5]
                self._http.receive_data(received)
            except TimeoutError:
                return None
            except OSError as error:
                raise self._gone(error) from error
            except h11.RemoteProtocolError as error:
                raise self._broken(error) from error

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._silent()
        return left

    def _silent(self) -> Failure:
        return no_answer(self._path, f"it took the connection and then said nothing for {self._patience:g} s")

    def _gone(self, error: OSError) -> Failure:
        return no_answer(self._path, f"the connection broke: {error.strerror or error}")

    def _broken(self, error: h11.RemoteProtocolError) -> Failure:
        if self._ended and not self._begun:
            return no_answer(self._path, "it closed the connection before it answered")
        if self._ended and self._begun == b"HTTP/":
            return no_answer(self._path, "it closed the connection in the middle of its answer")
        return unexpected(f"what listens on {self._path} does not speak HTTP ({error})")


def decode(text: bytes, what: str) -> Document:
    """One JSON object of the daemon."""
    try:
        return Document(json.loads(text), what)
    except ValueError as error:
        raise unexpected(f"{what} is not JSON ({error})") from error


def segment(name: str) -> str:
    """A name as one segment of a path."""
    from urllib.parse import quote  # 2 ms that `status` does not need

    return quote(name, safe="")


def no_answer(path: str, why: str) -> Failure:
    """Exit code 3, with the ways to see what goes on serving without the daemon."""
    from pathlib import Path  # 4 ms that a daemon which answers does not cost

    details = [
        "What serves goes on without it; nothing is healed meanwhile. To see what there is:",
        "  curl http://127.0.0.1/health                      the gateway (its port: nginx.listen)",
        "  docker ps --filter label=io.chatglm-ha.service    the instances",
        "  systemctl status chatglm-ha                       the daemon",
    ]
    beside = Path(".run/control.sock")
    if beside.exists() and Path(path).absolute() != beside.absolute():
        details.append(f"Or did you mean the one of `make run`: --socket {beside}")
    return Failure(Exit.NO_ANSWER, f"the daemon does not answer on {path}: {why}", details=details, passes=True)


def _connect(path: str, deadline: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while True:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection.connect(path)
                return connection
            except BlockingIOError as error:  # its queue of connections is full
                if time.monotonic() >= deadline:
                    raise TimeoutError from error
                time.sleep(RETRY_CONNECT_S)
    except OSError as error:
        connection.close()
        raise _not_connected(path, error) from error


def _not_connected(path: str, error: OSError) -> Failure:
    if isinstance(error, PermissionError):
        return _denied(path)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return no_answer(path, "there is no such socket")
    if isinstance(error, ConnectionRefusedError):
        return no_answer(path, "nobody listens there")
    if isinstance(error, TimeoutError):
        return no_answer(path, "its queue of connections is full and does not move")
    if error.errno is None:  # Python's own refusal, before the kernel is asked
        return Failure(Exit.USAGE, f"{path} is too long for a socket: at most 107 bytes")
    return no_answer(path, error.strerror or str(error))


def _denied(path: str) -> Failure:
    import grp
    import pwd
    from pathlib import Path

    user = _name(pwd.getpwuid, os.geteuid())
    try:
        found = Path(path).stat()
    except OSError:
        folder = str(Path(path).parent)
        return Failure(
            Exit.DENIED, f"permission denied on {path}: {user} may not enter {folder}", hint=f"ls -ld {folder}"
        )
    if found.st_mode & 0o020 and found.st_gid != 0:
        group = _name(grp.getgrgid, found.st_gid)
        return Failure(
            Exit.DENIED,
            f"permission denied on {path}: {user} is not in its group {group}",
            hint=f"sudo usermod -aG {group} {user}  (and log in again)",
        )
    owner = _name(pwd.getpwuid, found.st_uid)
    return Failure(
        Exit.DENIED,
        f"permission denied on {path}: only {owner} may use it, not {user}; no group is let in "
        "(the daemon found none that is named like control.group when it started)",
        hint="sudo chatglm-hactl …",
    )


def _name(look_up: Callable[[int], tuple[object, ...]], number: int) -> str:
    """Of a user or a group; its number where nobody has named it."""
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


def _with_query(target: str, query: Mapping[str, str] | None) -> str:
    if not query:
        return target
    from urllib.parse import urlencode

    return f"{target}?{urlencode(query)}"


def _refusal(status: int, problem: bool, body: bytes, target: str) -> Failure:
    """The failure that an error answer stands for."""
    code = _EXIT_OF_STATUS.get(status, Exit.FAILED)
    if not problem:
        words = body.decode("utf-8", "replace").strip().partition("\n")[0] or "no words with it"
        return Failure(code, f"the daemon answered {status} to {target}: {words}", hint="chatglm-hactl version")
    document = decode(body, f"the problem with {target}")
    return Failure(
        code,
        document.maybe_text("detail") or document.maybe_text("title") or f"the daemon answered {status}",
        details=document.texts("problems"),
        hint=document.maybe_text("hint"),
        passes=status == 503,  # a daemon that is still starting, say
    )

"""Who asked is taken from the socket, by name where there is one, and a slow directory server holds up nobody."""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
import sys
import threading
import time

import pytest

from hasupervisor.report import peer as peer_module
from hasupervisor.report.peer import Peer, UserNames
from tests.report.serving import me, served

ASK = """
import os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
with socket.socket(socket.AF_UNIX) as client:
    client.connect(path)
    head = ["POST /v1/restart HTTP/1.1", "Host: ha", "X-Forwarded-User: root", "Connection: close", "", ""]
    client.sendall("\\r\\n".join(head).encode())
    print(client.recv(65536).split(b" ")[1].decode())
"""


async def test_another_user_is_named_and_cannot_pretend_to_be_somebody_else() -> None:
    uid = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.getuid()
    async with served() as ha:
        ha.path.chmod(0o666)
        ha.path.parent.chmod(0o755)
        command = [sys.executable, "-c", ASK, str(ha.path), str(uid)]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        assert out == b"202\n"
        assert ha.clerk.told == [("restart", None, False, f"{pwd.getpwuid(uid).pw_name} (uid {uid})")]


async def test_a_user_without_a_name_is_a_number() -> None:
    names = UserNames()
    unknown = next(uid for uid in range(54_321, 60_000) if not _exists(uid))
    assert await names.describe(Peer(1, unknown)) == f"uid {unknown}"
    assert await names.describe(Peer(1, os.getuid())) == me()
    assert await names.describe(None) == "somebody"


def _exists(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


async def test_a_directory_server_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    known = pwd.getpwuid

    def slow(uid: int) -> pwd.struct_passwd:
        assert answers.wait(20)
        return known(uid)

    monkeypatch.setattr(pwd, "getpwuid", slow)
    monkeypatch.setattr(peer_module, "LOOK_UP_DEADLINE", 0.2)
    names = UserNames()
    began = time.monotonic()
    assert await names.describe(Peer(1, os.getuid())) == f"uid {os.getuid()}"
    assert time.monotonic() - began < 5
    answers.set()
    assert await names.describe(Peer(1, os.getuid())) == me(), "it is asked again"

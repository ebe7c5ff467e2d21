"""Users on other hosts (in another network namespace) who reach the instances directly: their work counts as work."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.claims import Claims
from tests.real.daemon import PATIENT, Daemon, Settings, as_processes, daemon, on_docker, one
from tests.real.dockerd import Engine
from tests.real.netns import Neighbour, neighbour

# A prompt to HOST:PORT; says status and answer when it is whole, or what went wrong.
USER = """
import json, sys, urllib.request
body = json.dumps({"prompt": sys.argv[2], "history": []}).encode()
try:
    with urllib.request.urlopen(urllib.request.Request("http://" + sys.argv[1] + "/", body), timeout=120) as answer:
        print(json.dumps([answer.status, json.load(answer)["response"]]))
except OSError as error:
    print(json.dumps([0, repr(error)]))
"""
OFF: Settings = {"nginx": {"mode": "off", "listen": None, "dir": None, "room": None}}
HURRIED: Settings = {"health": {**PATIENT["health"], "hang_after": 20.0}, "repair": {"stop_grace": 2.0}}
"""Two probes are missed within 3 s; what is told to end then is gone 2 s later; a hang is one after 20 s."""
WORK_S = 9


@dataclass(frozen=True, slots=True)
class Host:
    """A daemon without a gateway, and a neighbour of its host who knows where the instances listen."""

    daemon: Daemon
    neighbour: Neighbour
    address: Callable[[str], str]

    @contextmanager
    def user(self, name: str, prompt: str) -> Iterator[subprocess.Popen[str]]:
        """A user over there whose prompt that instance works on."""
        command = self.neighbour.command(sys.executable, "-S", "-c", USER, self.address(name), prompt)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as user:
            self.daemon.wait_for(lambda status: one(status, name)["in_flight"] == 1, "it is seen to be in flight")
            yield user


@pytest.fixture(scope="module")
def other(claims: Claims) -> Iterator[Neighbour]:
    with neighbour(claims) as found:
        yield found


@pytest.fixture(scope="module", params=["process", "docker"])
def host(
    request: pytest.FixtureRequest, other: Neighbour, standin_server: Path, port_range: Callable[[int], range]
) -> Iterator[Host]:
    """Opaque stand-ins: nothing but their connections tells of their work."""
    if request.param == "process":
        bound: Settings = {"service": {"bind": other.ours}}
        settings = [PATIENT, HURRIED, as_processes(standin_server, {"HEALTH": "opaque"}), bound, OFF]
        with daemon(port_range(20), *settings) as running:
            running.start()
            yield Host(running, other, lambda name: str(running.instance(name)["endpoint"]))
        return
    engine: Engine = request.getfixturevalue("engine")
    image: str = request.getfixturevalue("standin_image")
    other.join(engine.bridge, engine.subnet.replace(".0/", ".250/"))

    def inside(name: str) -> str:
        with engine.client() as client:
            container = client.api.inspect_container(running.instance(name)["runtime_id"])
        return f"{container['NetworkSettings']['IPAddress']}:8000"

    with daemon(port_range(20), PATIENT, HURRIED, on_docker(engine, image, {"HEALTH": "opaque"}), OFF) as running:
        running.start()
        yield Host(running, other, inside)
        running.stop()
        engine.remove_everything()


def whole(user: subprocess.Popen[str], prompt: str) -> bool:
    """Whether the user got the answer, whole."""
    said = json.loads(user.communicate(timeout=60)[0])
    assert said[0] == 200, said
    return str(said[1]).endswith(f"answers: {prompt}")


def test_an_instance_that_works_for_them_is_left_alone_though_it_answers_no_probe(host: Host) -> None:
    before = one(host.daemon.wait_until_green(), "chatglm-01")
    prompt = f"burn {WORK_S}"
    with host.user("chatglm-01", prompt) as user:
        host.daemon.wait_for(lambda status: "1 in flight" in one(status, "chatglm-01")["reason"], "misses its probes")
        assert whole(user, prompt)
    after = one(host.daemon.wait_until_green(), "chatglm-01")
    assert (after["runtime_id"], after["restarts"]) == (before["runtime_id"], before["restarts"])
    host.daemon.wait_for(lambda status: one(status, "chatglm-01")["in_flight"] == 0, "is idle again")


@pytest.mark.parametrize("command", [("restart", "chatglm-02"), ("scale", "1"), ("drain", "chatglm-02")])
def test_a_command_that_ends_it_waits_for_them(host: Host, command: tuple[str, ...]) -> None:
    host.daemon.put_right()
    name, prompt = "chatglm-02", "sleep 4"
    life = host.daemon.instance(name)["runtime_id"]
    with host.user(name, prompt) as user:
        began = time.monotonic()
        running = host.daemon.begin(*command)
        host.daemon.wait_for(
            lambda status: one(status, name)["state"] == "draining" and "1 in flight" in one(status, name)["reason"],
            "waits for the user",
        )
        assert whole(user, prompt)
        assert running.wait(60) == 0, running.communicate()
        running.communicate()
    print(f"{' '.join(command)}: {time.monotonic() - began:.1f} s")
    assert all(i["runtime_id"] != life for i in host.daemon.status()["instances"])

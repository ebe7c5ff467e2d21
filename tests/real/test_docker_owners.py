"""Two daemons on one dockerd: what one has started no other manages or ends, unless a person says so."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real.daemon import BIN, PATIENT, Daemon, Document, Ran, daemon, on_docker, run
from tests.real.dockerd import Engine

HAD = str(BIN / "chatglm-had")


@pytest.fixture(scope="module")
def running(engine: Engine, standin_image: str, port_range: Callable[[int], range]) -> Iterator[Daemon]:
    with daemon(port_range(20), PATIENT, on_docker(engine, standin_image)) as host:
        host.start()
        yield host
        host.stop()
        engine.remove_everything()


@pytest.fixture
def first(running: Daemon) -> Iterator[Daemon]:
    """The module's daemon with two containers that serve."""
    running.put_right()
    yield running
    running.assert_no_defects()


@pytest.fixture
def second(first: Daemon, engine: Engine, standin_image: str, port_range: Callable[[int], range]) -> Iterator[Daemon]:
    """Another daemon with a state directory and ports of its own, for the same service on the same dockerd."""
    with daemon(port_range(20), PATIENT, on_docker(engine, standin_image)) as other:
        yield other


def containers(engine: Engine) -> dict[str, str]:
    """Every container of the engine by name: its id."""
    with engine.client() as client:
        return {one["Names"][0][1:]: one["Id"] for one in client.api.containers()}


def lives(status: Document) -> dict[str, str]:
    return {i["name"]: i["runtime_id"] for i in status["instances"]}


def had(host: Daemon, *arguments: str) -> Ran:
    """Runs chatglm-had to its end: it is expected to refuse, or to do one thing."""
    return run([HAD, "--config", str(host.config_file), *arguments])


def identity(host: Daemon) -> Document:
    found: Document = json.loads((host.folder / "state" / "identity.json").read_text())
    return found


def state(host: Daemon) -> str:
    return f"{socket.gethostname()}:{host.folder / 'state'}"


@pytest.mark.parametrize("arguments", [(), ("--on-exit", "stop")])
def test_a_second_daemon_of_the_same_service_refuses_names_the_first_and_touches_nothing(
    first: Daemon, second: Daemon, engine: Engine, arguments: tuple[str, ...]
) -> None:
    before, running = containers(engine), lives(first.status())
    told = had(second, *arguments)
    assert told.code == 1
    assert f"is that of the daemon with the state directory {state(first)}, which runs (pid {first.pid})" in told.err
    assert "chatglm-01, chatglm-02" in told.err
    assert "chatglm-had --adopt" in told.err
    assert "Traceback" not in told.err
    assert containers(engine) == before
    assert lives(first.status()) == running


def test_another_service_beside_it_is_welcome_and_its_end_ends_its_own_alone(
    first: Daemon, second: Daemon, engine: Engine
) -> None:
    before = containers(engine)
    second.configure({"service": {"name": "other", "instances": 1}})
    second.start("--on-exit", "stop")
    second.wait_until_green(1)
    second.stop()
    assert containers(engine) == before


def test_what_a_daemon_that_runs_has_started_cannot_be_taken_over_and_that_of_one_that_is_gone_can(
    first: Daemon, second: Daemon, engine: Engine
) -> None:
    refused = had(second, "--adopt")
    assert refused.code == 1
    assert f"runs (pid {first.pid}), and keeps what it has started: chatglm-01, chatglm-02" in refused.err

    before = lives(first.status())
    first.stop()
    assert "chatglm-had --adopt" in had(second).err  # not by itself: the first may come back
    told = had(second, "--adopt")
    assert (told.code, told.err) == (0, "")
    assert f"chatglm-01, chatglm-02: taken over from the state directory {state(first)}" in told.out
    second.start()
    assert lives(second.wait_until_green()) == before
    assert second.hactl("restart", "chatglm-01").code == 0  # made anew, it carries the second's identity

    back = had(first)
    assert back.code == 1
    assert f"{state(second)}, which runs (pid {second.pid}): chatglm-01" in back.err
    second.stop()
    assert had(first, "--adopt").code == 0
    first.start()
    first.wait_until_green()
    assert first.hactl("restart", "--all").code == 0  # and all are its own again


def test_a_daemon_whose_state_is_lost_takes_over_what_runs_by_itself(first: Daemon, engine: Engine) -> None:
    before = lives(first.status())
    first.stop()
    shutil.rmtree(first.folder / "state")
    first.start()
    assert lives(first.wait_until_green()) == before
    first.kill()
    first.start()  # and it keeps that in mind
    assert lives(first.wait_until_green()) == before


def test_containers_of_a_release_that_wrote_no_owner_are_adopted(
    first: Daemon, engine: Engine, standin_image: str
) -> None:
    first.stop()
    with engine.client() as client:
        found = next(one for one in client.api.containers() if one["Names"] == ["/chatglm-01"])
        made = client.api.inspect_container(found["Id"])
        labels = {key: value for key, value in made["Config"]["Labels"].items() if "owner" not in key}
        client.api.remove_container(found["Id"], force=True)
        host = client.api.create_host_config(port_bindings={8000: ("127.0.0.1", int(labels["io.chatglm-ha.port"]))})
        old = client.api.create_container(
            standin_image,
            name="chatglm-01",
            labels=labels,
            environment=made["Config"]["Env"],
            host_config=host,
            ports=[8000],
        )["Id"]
        client.api.start(old)
    first.start()
    assert lives(first.wait_until_green())["chatglm-01"] == old


def test_a_copy_of_a_state_directory_is_another_daemons(first: Daemon, second: Daemon, tmp_path: Path) -> None:
    shutil.copytree(first.folder / "state", second.folder / "state")
    told = had(second)
    assert told.code == 1
    assert f"is that of the daemon with the state directory {state(first)}" in told.err
    assert identity(second)["id"] != identity(first)["id"]


def test_a_dockerd_that_is_away_at_the_start_is_waited_for_and_a_stranger_is_left_alone_then(
    first: Daemon, second: Daemon, engine: Engine
) -> None:
    before = containers(engine)
    engine.stop()
    try:
        second.start("--on-exit", "stop")
    finally:
        engine.start()
    second.wait_for(lambda s: s["stale"] and "is that of the daemon" in s["stale"]["sentence"], "refuses to act")
    assert second.status()["serving"] == 0
    second.stop()
    assert containers(engine) == before
    first.wait_until_green()

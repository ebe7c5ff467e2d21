"""A new image by the Ansible role, on a real dockerd: loaded from a file, taken over by one instance after another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ansible.controller import Document, Played, play_here
from tests.real.daemon import PATIENT, daemon, on_docker
from tests.real.dockerd import Engine
from tests.real.pressure import pressure

NEXT = "chatglm-standin:next"


@pytest.fixture
def archive(engine: Engine, standin_image: str, tmp_path: Path) -> Path:
    """What `docker save` writes of the next image, which the engine does not have."""
    with engine.client() as client:
        client.api.tag(standin_image, NEXT.partition(":")[0], NEXT.partition(":")[2])
        saved = tmp_path / "next.tar"
        saved.write_bytes(b"".join(client.api.get_image(NEXT)))
        client.api.remove_image(NEXT)
    return saved


def played(folder: Path, engine: Engine, socket: Path, tasks: tuple[str, ...], **variables: Document | str) -> Played:
    """These files of the role's tasks, on this machine."""
    include = [{"ansible.builtin.include_role": {"name": "chatglm_ha", "tasks_from": name}} for name in tasks]
    env = {"DOCKER_HOST": engine.host, "CHATGLM_HA_SOCKET": str(socket)}
    return play_here(folder, include, [], env, **variables)


def test_a_new_image_is_loaded_and_the_instances_renewed_without_a_lost_request(
    engine: Engine, standin_image: str, archive: Path, port_range: Callable[[int], range], tmp_path: Path
) -> None:
    wanted: dict[str, Document | str] = {"chatglm_ha_docker": {"image": NEXT}, "chatglm_ha_image_archive": str(archive)}
    with daemon(port_range(20), PATIENT, on_docker(engine, standin_image)) as host:
        host.start()
        before = host.wait_until_green()
        loaded = played(tmp_path, engine, host.socket, ("image.yml",), **wanted)
        assert loaded.changed == ["Load it"], loaded.output
        host.configure({"docker": {"image": NEXT}})
        assert host.hactl("config", "reload").code == 0
        with pressure(host.gateway, 20) as seen:
            renewed = played(tmp_path, engine, host.socket, ("instances.yml",), **wanted)
        assert renewed.changed == ["Renew the instances one after another, each drained before"], renewed.output
        after = host.wait_until_green()
        assert {i["image"] for i in after["instances"]} == {NEXT}
        assert not {i["runtime_id"] for i in after["instances"]} & {i["runtime_id"] for i in before["instances"]}
        assert seen.result.failures == [], str(seen.result)
        again = played(tmp_path, engine, host.socket, ("image.yml", "instances.yml"), **wanted)
        assert again.code == 0, again.output
        assert again.changed == []
        host.stop()
    engine.remove_everything()


def test_an_archive_of_another_image_is_told(engine: Engine, archive: Path, tmp_path: Path) -> None:
    wanted: dict[str, Document | str] = {"chatglm_ha_docker": {"image": "chatglm-service:v2"}}
    wanted["chatglm_ha_image_archive"] = str(archive)
    stopped = played(tmp_path, engine, tmp_path / "none.sock", ("image.yml",), **wanted)
    assert stopped.code != 0
    assert f"{archive} does not hold chatglm-service:v2, which the configuration names" in stopped.words

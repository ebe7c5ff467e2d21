"""The image, built by a real dockerd on a base made here, and run as an operator runs it."""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

import model_api
from model_api.embedded import ensure_embedded
from tests.model.image_base import BASE, build_base
from tests.model.running import wait_for
from tests.real.dockerd import Engine

IMAGE = "chatglm-service:test"
CONTEXT = Path(model_api.__file__).parent

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[docker.DockerClient]:
    with engine.client(600) as client:
        yield client
        engine.remove_everything()
        for image in (IMAGE, BASE):
            client.images.remove(image, force=True)
        client.images.prune()


@pytest.fixture(scope="module")
def base(client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_base(client, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def image(client: docker.DockerClient, base: str) -> str:
    """The model server's image, built as docs/model-server.md says."""
    client.images.build(path=str(CONTEXT), tag=IMAGE, buildargs={"BASE_IMAGE": base}, rm=True)
    return IMAGE


@contextmanager
def running(client: docker.DockerClient, image: str, **options: Any) -> Iterator[Any]:
    container: Any = client.containers.run(image, detach=True, **options)
    try:
        yield container
    finally:
        container.remove(force=True, v=True)


def address(container: Any) -> str:
    container.reload()
    networks = container.attrs["NetworkSettings"]["Networks"]
    return f"http://{next(iter(networks.values()))['IPAddress']}:8000"


def served(container: Any) -> str:
    """Its URL, once it serves."""
    url = address(container)

    def healthy() -> bool:
        container.reload()
        assert container.status == "running", container.logs().decode()
        try:
            return httpx.get(f"{url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    wait_for(healthy, "the container to serve", patience=120)
    return url


def test_a_read_only_container_answers_as_nobody_in_particular_and_stops_cleanly(
    client: docker.DockerClient, image: str
) -> None:
    with running(client, image, read_only=True, tmpfs={"/tmp": ""}) as container:
        url = served(container)
        answer = httpx.post(url, json={"prompt": "你好", "history": []}, timeout=30).json()
        assert answer["response"].startswith("你好！我是内置的小型 GLM 模型")
        # Exec form: the server itself is process 1, so SIGTERM reaches it; and it is not root.
        processes = container.top(ps_args="-o pid,uid,args")["Processes"]
        assert [(uid, args) for _, uid, args in processes] == [("10001", "python3 -m model_api")]
        wait_for(lambda: docker_health(container) == "healthy", "docker's own check to pass", patience=60)
        began = time.monotonic()
        container.stop(timeout=30)
        assert time.monotonic() - began < 15
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0
        assert "drained" in container.logs().decode()


def docker_health(container: Any) -> str:
    container.reload()
    return str(container.attrs["State"]["Health"]["Status"])


def test_a_model_mounted_read_only_is_served_under_its_directorys_name(
    client: docker.DockerClient, image: str, model_cache: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "chatglm-x"
    shutil.copytree(ensure_embedded(model_cache), directory)
    tmp_path.chmod(0o755)  # the container's user is another
    options = {
        "volumes": [f"{tmp_path}:/models:ro"],
        "environment": {"MODEL_PATH": "/models/chatglm-x", "MAX_BATCH": "2"},
    }
    with running(client, image, **options) as container:
        url = served(container)
        assert httpx.get(f"{url}/v1/models", timeout=30).json()["data"][0]["id"] == "chatglm-x"
        assert "6 checksums right" in container.logs().decode()


def test_a_read_only_disk_without_a_model_ends_the_container_with_what_to_set(
    client: docker.DockerClient, image: str
) -> None:
    options = {"read_only": True, "tmpfs": {"/tmp": ""}, "environment": {"MODEL_CACHE": "/opt/elsewhere"}}
    with running(client, image, **options) as container:
        assert container.wait(timeout=120)["StatusCode"] == 1
        last = container.logs().decode().rstrip().rpartition("\n")[2]
    assert last == (
        "model_api: cannot serve: cannot build the embedded model in /opt/elsewhere: Read-only file system; "
        "set MODEL_CACHE to a directory that can be written, or MODEL_PATH to a model"
    )


def test_a_container_without_its_model_says_so_and_exits_2(client: docker.DockerClient, image: str) -> None:
    with running(client, image, environment={"MODEL_PATH": "/models/missing"}) as container:
        assert container.wait(timeout=60)["StatusCode"] == 2
        assert "MODEL_PATH='/models/missing': no such directory; mount the model there" in container.logs().decode()


def test_wheels_beside_the_dockerfile_are_the_only_source_of_packages(
    client: docker.DockerClient, base: str, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    shutil.copytree(CONTEXT, context, ignore=shutil.ignore_patterns("__pycache__"))
    (context / "wheelhouse").mkdir()
    with zipfile.ZipFile(context / "wheelhouse" / "probe-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("probe-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n")
    said = ""
    # The stream is left as soon as pip has said where it looks, which ends the build.
    for line in client.api.build(
        path=str(context), buildargs={"BASE_IMAGE": base}, nocache=True, rm=True, forcerm=True
    ):
        said += "".join(str(json.loads(part).get("stream", "")) for part in line.splitlines() if part.strip())
        if "Looking in links: /build" in said:
            return
    pytest.fail(f"pip did not look at the wheelhouse:\n{said[-2000:]}")

"""What the tests on real parts share: the stand-in's images, ports that nobody else takes."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasupervisor.runtimes.docker_launch import DockerSettings
from tests.claims import Claims
from tests.real import images
from tests.real.dockerd import Engine
from tests.real.gatewaying import PrivateNginx, private_nginx

PORTS_FROM, PORTS_TO = 20000, 32000  # below what the kernel hands out for outgoing connections (32768)
BLOCK = 20


@pytest.fixture(scope="session")
def standin_image(engine: Engine) -> str:
    """The image of the stand-in model server, in `engine`; the image that crashes is there too (images.CRASH)."""
    with engine.client() as client:
        images.build(client)
    return images.STANDIN


@pytest.fixture(scope="session")
def crash_image(standin_image: str) -> str:
    """An image that prints four lines and exits 1."""
    return images.CRASH


@pytest.fixture(scope="session")
def standin_server() -> Path:
    """The stand-in as a script, for the process runtime: [sys.executable, path, name] with HOST and PORT."""
    return images.SCRIPTS / "server.py"


@pytest.fixture
def docker_settings(engine: Engine, standin_image: str) -> Iterator[DockerSettings]:
    """Stand-ins of the service "chatglm" in `engine`, which is emptied afterwards."""
    yield DockerSettings(service="chatglm", image=standin_image, host=engine.host, shm_size="16m")
    engine.remove_everything()


@pytest.fixture
def port(port_range: Callable[[int], range]) -> int:
    """One free port."""
    return port_range(1)[0]


@pytest.fixture(scope="session")
def port_range(claims: Claims) -> Callable[[int], range]:
    """`port_range(count)`: that many ports in a row, free on 127.0.0.1 now and handed out to nobody else."""

    def take(count: int) -> range:
        assert count <= BLOCK, f"at most {BLOCK} ports at once"
        starts = list(range(PORTS_FROM, PORTS_TO, BLOCK))
        random.shuffle(starts)
        for start in starts:
            if claims(f"ports-{start}") and all(is_free(port) for port in range(start, start + count)):
                return range(start, start + count)
        raise RuntimeError(f"no {count} free ports in a row between {PORTS_FROM} and {PORTS_TO}: ss -ltn")

    return take


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[PrivateNginx]:
    """The distribution's nginx, private, with the gateway's file in it as the installation includes it."""
    with private_nginx(tmp_path / "nginx", f"include {tmp_path}/ha/gateway.conf;\n") as nginx:
        yield nginx


@pytest.fixture
def no_defect_is_logged(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    logged = "".join(capsys.readouterr())
    assert "BUG" not in logged, logged
    assert "Traceback" not in logged, logged

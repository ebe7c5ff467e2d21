"""The embedded model, built once, and real servers started on free ports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_api.backends.base import LoadedModel
from model_api.embedded import ensure_embedded
from model_api.loading import load_model
from model_api.settings import from_environment
from tests.model.running import ModelServer

REMOTE_CODE = "CHATGLM_REMOTE_CODE"

# The modelling files of ChatGLM are other people's and are not in this repository.
collect_ignore = [] if os.environ.get(REMOTE_CODE) else ["test_remote_code.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not os.environ.get(REMOTE_CODE):
        words = (
            f"not run: tests/model/test_remote_code.py; set {REMOTE_CODE} to a directory with ChatGLM's own code files"
        )
        terminalreporter.write_line(words)


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MODEL_CACHE in which the embedded model is already built."""
    cache = tmp_path_factory.mktemp("model-cache")
    ensure_embedded(cache)
    return cache


@pytest.fixture(scope="session")
def embedded(model_cache: Path) -> LoadedModel:
    """The embedded model, loaded in this process; one engine at a time may use it."""
    return load_model(from_environment({"MODEL_CACHE": str(model_cache)}))


StartServer = Callable[..., ModelServer]


@pytest.fixture
def start_server(model_cache: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Starts `python -m model_api` with the environment given; what still runs at the end is stopped, logs are read.

    Any traceback and any BUG in a log fails the test, unless the server was started with `may_complain=True`.
    """
    servers: list[ModelServer] = []

    def start(*, ready: bool = True, may_complain: bool = False, **env: str) -> ModelServer:
        log = tmp_path / f"server-{len(servers)}.log"
        server = ModelServer(log, {"MODEL_CACHE": str(model_cache), **env}, may_complain=may_complain)
        servers.append(server)
        if ready:
            server.wait_ready()
        return server

    yield start
    for server in servers:
        server.stop()
    for server in servers:
        server.check_log()


LONG = "你好" * 60  # a prompt that brings the fault of a faulty server
Faulty = Callable[..., ModelServer]


@pytest.fixture
def faulty(model_cache: Path, tmp_path: Path) -> Iterator[Faulty]:
    """Starts tests/model/faulty_server.py with the fault and the environment given; `may_complain` as above."""
    servers: list[ModelServer] = []

    def start(fault: str, *, may_complain: bool = False, **env: str) -> ModelServer:
        command = (str(Path(__file__).with_name("faulty_server.py")), fault)
        environment = {"MODEL_CACHE": str(model_cache), **env}
        server = ModelServer(tmp_path / "log", environment, may_complain=may_complain, command=command)
        servers.append(server)
        server.wait_ready()
        return server

    yield start
    for server in servers:
        server.stop()
        server.check_log()

"""The model's files: from a mirror by http or from where rsync goes, checked, and once only."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from model_api.manifest import check_files, write_manifest
from tests.ansible.controller import Document, Played, play_here

FILES = {"config.json": b'{"model_type": "chatglm"}\n', "weights.safetensors.part": os.urandom(300_000)}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder with a model and its SHA256SUMS."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return folder


@pytest.fixture
def server(mirror: Path) -> Iterator[ThreadingHTTPServer]:
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(mirror))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(params=["http", "rsync"])
def source(request: pytest.FixtureRequest, mirror: Path) -> str:
    """The mirror as the role is told of it."""
    if request.param == "rsync":
        return str(mirror)
    port = request.getfixturevalue("server").server_address[1]
    return f"http://127.0.0.1:{port}/"


def fetched(tmp_path: Path, source: str, **variables: Any) -> Played:
    """The role's tasks for the model, into a folder of this machine."""
    task = {"ansible.builtin.include_role": {"name": "chatglm_ha", "tasks_from": "model.yml"}}
    wanted: Document = {"chatglm_ha_model_source": source, "chatglm_ha_model_dir": str(tmp_path / "model")}
    return play_here(tmp_path, [task], [], **(wanted | variables))


def test_the_model_is_fetched_whole_and_once(tmp_path: Path, source: str) -> None:
    first = fetched(tmp_path, source)
    assert first.code == 0, first.output
    assert {name: (tmp_path / "model" / name).read_bytes() for name in FILES} == FILES
    assert check_files(tmp_path / "model") == len(FILES)  # as the model server does before it loads them
    again = fetched(tmp_path, source)
    assert again.code == 0, again.output
    assert again.recap["localhost"]["changed"] == 0, again.changed


def test_a_damaged_file_stops_it_and_is_fetched_the_next_time(tmp_path: Path, mirror: Path, source: str) -> None:
    whole = (mirror / "config.json").read_bytes()
    (mirror / "config.json").write_bytes(whole.replace(b"chatglm", b"chatgln"))
    stopped = fetched(tmp_path, source)
    assert stopped.code != 0
    assert "config.json" in stopped.words
    assert not (tmp_path / "model" / "SHA256SUMS").exists(), "what is not whole looks whole"
    (mirror / "config.json").write_bytes(whole)
    os.utime(mirror / "config.json", (0, 0))
    mended = fetched(tmp_path, source)
    assert mended.code == 0, mended.output
    assert check_files(tmp_path / "model") == len(FILES)


def test_one_checksum_settles_every_file(tmp_path: Path, mirror: Path) -> None:
    ours = "sha256:" + hashlib.sha256((mirror / "SHA256SUMS").read_bytes()).hexdigest()
    (mirror / "config.json").write_text("another model\n")
    write_manifest(mirror)
    stopped = fetched(tmp_path, str(mirror), chatglm_ha_model_checksum=ours)
    assert stopped.code != 0
    assert f", not {ours}; no file of the model was changed" in stopped.words
    assert not (tmp_path / "model" / "config.json").exists()


def test_a_list_that_names_files_of_other_folders_is_refused(
    tmp_path: Path, mirror: Path, server: ThreadingHTTPServer
) -> None:
    (mirror / "SHA256SUMS").write_text(f"{64 * '0'}  ../config.json\n")
    stopped = fetched(tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
    assert stopped.code != 0
    assert "has to name files beside it" in stopped.words


def test_a_folder_without_a_list_is_taken_as_it_is(tmp_path: Path, mirror: Path) -> None:
    (mirror / "SHA256SUMS").unlink()
    taken = fetched(tmp_path, f"{mirror}/")
    assert taken.code == 0, taken.output
    assert {name: (tmp_path / "model" / name).read_bytes() for name in FILES} == FILES

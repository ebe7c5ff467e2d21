"""Builds the tests' images in seconds and without a registry: this machine's own Python, its libraries, one script."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker

STANDIN = "chatglm-standin:test"
CRASH = "chatglm-crash:test"
SCRIPTS = Path(__file__).parent / "standin"

# Most of the standard library's bytes, and nothing that a server needs.
LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "ensurepip",
    "lib2to3",
    "turtledemo",
}


def build(client: docker.DockerClient) -> None:
    """Makes STANDIN (the stand-in server) and CRASH (says why and exits 1) in an engine that has neither."""
    python = Path(sys.executable).resolve()
    client.api.import_image_from_data(
        archive(python), repository="chatglm-standin", tag="test", changes=entry(python, "server.py")
    )
    container = client.api.create_container(STANDIN, entrypoint=[], command=["-"])
    client.api.commit(container["Id"], repository="chatglm-crash", tag="test", changes=entry(python, "crash.py"))
    client.api.remove_container(container["Id"])


def entry(python: Path, script: str) -> list[str]:
    """The Dockerfile lines that run a script as PID 1 itself: SIGTERM reaches it, no shell stands between."""
    return [f'CMD ["{python}", "-S", "-E", "/srv/{script}"]', "ENV PYTHONDONTWRITEBYTECODE=1"]


def archive(python: Path) -> bytes:
    """A tar of a root file system with `python` where it lies here, so that it finds its library by itself."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        for link in ("bin", "lib", "lib64", "sbin"):  # a merged /usr is what the loader's path goes through
            if Path("/", link).is_symlink():
                member = tarfile.TarInfo(link)
                member.type, member.linkname = tarfile.SYMTYPE, str(Path("/", link).readlink())
                tar.addfile(member)
        for path in sorted({python, *library(), *shared_objects(python)}):
            tar.add(path, arcname=str(resolved_parent(path)), recursive=False)
        for script in sorted(SCRIPTS.glob("*.py")):
            tar.add(script, arcname=f"srv/{script.name}")
    return buffer.getvalue()


def resolved_parent(path: Path) -> Path:
    """Its folder without symbolic links (the archive has /lib as one), its own name as it is asked for."""
    return path.parent.resolve() / path.name


def library() -> Iterator[Path]:
    """The standard library's files with their compiled twins, so that a container starts at once."""
    for folder, folders, files in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-")]
        yield from (Path(folder, name) for name in files if ".opt-" not in name and not name.endswith(".a"))


def shared_objects(python: Path) -> set[Path]:
    """What the loader finds for the interpreter and for its compiled modules."""
    modules = Path(sysconfig.get_path("platstdlib"), "lib-dynload").glob("*.so")
    listing = subprocess.run(["ldd", python, *modules], capture_output=True, text=True, check=True).stdout
    words = [line.split(" (")[0].split("=>")[-1].strip() for line in listing.splitlines() if " (" in line]
    return {Path(word) for word in words if word.startswith("/")}

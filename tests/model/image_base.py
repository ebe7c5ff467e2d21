"""A base image for the model server's Dockerfile, made of this machine's own files: no registry is asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker

BASE = "chatglm-model-base:test"
TOOLS = ("sh", "ls", "rm", "sleep")  # what the Dockerfile's RUN lines call
LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "ensurepip", "include", "__pycache__", "mypy", "_inductor", "bin")
UNWANTED = ("mypy", "mypyc", "ruff", "hypothesis", "openai", "grimp", "pytest", "_pytest", "setuptools")


def build_base(client: docker.DockerClient, scratch: Path) -> str:
    """Imports the base image and returns its name: a shell, this Python with pip, and the model server's packages."""
    archive = scratch / "base.tar"
    write_archive(archive)
    with archive.open("rb") as stream:
        client.api.import_image_from_data(
            stream, repository="chatglm-model-base", tag="test", changes=["ENV PATH=/bin"]
        )
    archive.unlink()
    return BASE


def write_archive(archive: Path) -> None:
    """A tar of a root file system in which `python3` and `sh` run."""
    python = Path(sys.executable).resolve()
    programs = [Path(found).resolve() for tool in TOOLS if (found := shutil.which(tool))]
    packages = list(packages_of(Path(sysconfig.get_path("purelib"))))
    libraries = shared_objects([python, *programs, *(file for file, _ in packages if ".so" in file.name)])
    target = Path(sysconfig.get_path("purelib", vars={"base": sys.base_prefix, "platbase": sys.base_prefix}))
    with tarfile.open(archive, "w", dereference=True) as tar:
        for link in ("bin", "lib", "lib64", "sbin"):
            if Path("/", link).is_symlink():
                add_link(tar, link, str(Path("/", link).readlink()))
        for file in sorted({python, *libraries, *standard_library()}):
            tar.add(file, arcname=str(file.parent.resolve() / file.name), recursive=False)
        for tool, program in zip(TOOLS, programs, strict=True):
            tar.add(program, arcname=f"usr/bin/{tool}")
        add_link(tar, "usr/bin/python3", str(python))
        for file, name in packages:
            tar.add(file, arcname=str(target / name), recursive=False)
        add_directory(tar, "tmp", 0o1777)


def add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    tar.addfile(member)


def add_directory(tar: tarfile.TarFile, name: str, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    tar.addfile(member)


def packages_of(site: Path) -> Iterator[tuple[Path, Path]]:
    """(file, its name below site-packages) of everything that a server may need."""
    for file in site.rglob("*"):
        name = file.relative_to(site)
        wanted = name.parts[0] not in UNWANTED and not set(name.parts[:-1]) & {"__pycache__", "include", "test"}
        if file.is_file() and wanted:
            yield file, name


def standard_library() -> Iterator[Path]:
    """The standard library's files."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in root.rglob("*"):
        parts = file.relative_to(root).parts
        if file.is_file() and not set(parts) & {*LEFT_OUT, "site-packages"} and not parts[0].startswith("config-"):
            yield file


def shared_objects(files: list[Path]) -> set[Path]:
    """What the loader finds for these files outside their own packages."""
    found: set[Path] = set()
    modules = Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")
    listing = subprocess.run(["ldd", *files, *modules], capture_output=True, text=True, check=False).stdout
    for line in listing.splitlines():
        word = line.split(" (")[0].split("=>")[-1].strip()
        if word.startswith(("/lib", "/usr/lib", "/root", "/opt")) and " (" in line and "site-packages" not in word:
            found.add(Path(word))
    return found

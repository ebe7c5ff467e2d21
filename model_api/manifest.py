"""Proof that a model directory's files are the ones meant: an optional SHA256SUMS, and whole safetensors files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

NAME = "SHA256SUMS"


class DamagedModel(Exception):
    """A file of the model is missing, cut short or altered; the text names it."""


def write_manifest(directory: Path) -> None:
    """Writes SHA256SUMS (the format of sha256sum) over every other file of `directory`."""
    files = sorted(file for file in directory.iterdir() if file.is_file() and file.name != NAME)
    (directory / NAME).write_text("".join(f"{_sha256(file)}  {file.name}\n" for file in files), encoding="utf-8")


def check_files(directory: Path) -> int:
    """Checks every safetensors file's length and, where SHA256SUMS exists, every checksum in it.

    Returns how many checksums were compared; raises DamagedModel for the first file that is wrong. Reading the weights
    of a 6 B model for the checksums takes some ten seconds, which is why the manifest is optional.
    """
    for file in sorted(directory.glob("*.safetensors")):
        _check_whole(file)
    manifest = directory / NAME
    if not manifest.is_file():
        return 0
    lines = [line for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    for line in lines:
        expected, _, name = line.partition(" ")
        name = name.lstrip(" *")
        file = directory / name
        if len(expected) != 64 or not name:
            raise DamagedModel(f"{manifest}: not a line of sha256sum: {line!r}")
        if not file.is_file():
            raise DamagedModel(f"{file} is named in {NAME} and is missing")
        if _sha256(file) != expected.lower():
            raise DamagedModel(f"{file} does not match its checksum in {NAME}; copy the file again")
    return len(lines)


def _check_whole(file: Path) -> None:
    """A safetensors file: 8 bytes of header length, a JSON header with offsets, then exactly the bytes promised."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise DamagedModel(f"{file} is cut short: {size} bytes do not hold its header; copy the file again")
        try:
            header = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DamagedModel(f"{file} has a header that is not safetensors'; copy the file again") from None
    promised = 8 + length + end
    if size != promised:
        raise DamagedModel(f"{file} has {size} bytes where its header promises {promised}; copy the file again")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

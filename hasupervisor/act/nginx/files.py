"""Puts a file in place so that a crash at any instruction leaves the old one or the new one, never half."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Temp file beside it, fsync, rename, fsync of the directory. Readable by all: nginx may run as another user.

    Raises OSError; the old file is then untouched.
    """
    fresh = path.with_name(f".{path.name}.new")  # a name that no `include *.conf` takes
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def text_of(path: Path) -> str | None:
    """The file's text, None when there is none. Raises OSError for anything else than its absence."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def rotate(path: Path, limit: int, keep: int) -> bool:
    """Shifts a log that has grown over `limit` bytes to PATH.1 ... PATH.<keep-1>; True when its writer must reopen it.

    So `keep` files of about `limit` bytes exist at most.
    """
    try:
        if path.stat().st_size <= limit:
            return False
    except FileNotFoundError:
        return False
    for number in range(keep - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if newer.exists():
            newer.replace(older)
    return True

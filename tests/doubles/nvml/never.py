"""A file system that never answers: whoever stats its files is in D state, and no signal ends that. Needs root."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FUSE_INIT, FUSE_GETATTR = 26, 3
HEADER = struct.Struct("<IIQQIIII")  # of a request: length, opcode, unique, node, uid, gid, pid, padding
ANSWER = struct.Struct("<IiQ")  # length, error, unique
INIT_ANSWER = struct.Struct("<IIIIHHII")  # major, minor, readahead, flags, background, congestion, write, granularity
VERSION = (7, 12)  # an old one: its answer to INIT is the short one
REQUEST = 128 * 1024
MNT_FORCE, MNT_DETACH = 1, 2


@contextmanager
def mount_that_never_answers(folder: Path) -> Iterator[Path]:
    """Mounts it at `folder`, which is then the path to stat. At the end everybody who hangs in it goes free."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(parents=True, exist_ok=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"never", os.fsencode(folder), b"fuse", 0, options):
        os.close(device)
        raise OSError(ctypes.get_errno(), "mount", str(folder))
    taker = threading.Thread(target=_take_for_ever, args=(device,), name="never answers")
    taker.start()
    try:
        yield folder
    finally:
        libc.umount2(os.fsencode(folder), MNT_FORCE | MNT_DETACH)  # by force: requests that wait are answered ENOTCONN
        taker.join(timeout=10)
        os.close(device)
        assert not taker.is_alive(), "the mount did not end"


def _take_for_ever(device: int) -> None:
    """Answers the greeting, then only takes requests: one that has been taken waits unkillably for its answer."""
    while True:
        try:
            request = os.read(device, REQUEST)
        except OSError:
            return  # unmounted
        _, opcode, unique, *_ = HEADER.unpack_from(request)
        if opcode == FUSE_INIT:
            body = INIT_ANSWER.pack(*VERSION, 0, 0, 0, 0, 4096, 0)[:24]
            os.write(device, ANSWER.pack(ANSWER.size + len(body), 0, unique) + body)

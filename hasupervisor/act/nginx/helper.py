"""Root's part of the work on the system's nginx: tests and reloads it for a daemon that is not root.

systemd starts one for every connection to a socket of chatglm-ha-nginx.socket, as root: `python -I -m
hasupervisor.act.nginx.helper`, the connection being its standard input and output. What is asked is the name of the
socket that was connected to, and nothing else: not a byte is read from it, and writing to it is refused.

    test        `nginx -t` of what is on disk
    candidate   `nginx -t` of the same with nginx.dir/candidate/{upstream,gateway}.conf in place of the daemon's files
    reload      `nginx -t`, and if it is content `nginx -s reload`
    refusals    the [emerg] lines at the end of nginx's error log, which the daemon may not read

It answers with one JSON document, {"code": exit code, "output": what nginx printed, "dir": nginx.dir}, and ends. Where
nginx is, and which folder is the daemon's, it takes from root's own configuration file; the standard library alone is
imported, for each routing that changes waits for this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hasupervisor.act.nginx.conffile import read_tree, real
from hasupervisor.act.nginx.stage import build_shadow

CONFIG = Path("/etc/chatglm-ha/config.toml")
FOLDER = "/var/lib/chatglm-ha/nginx"  # nginx.dir, where the file does not say
CANDIDATE = "candidate"  # in it
FILES = ("upstream.conf", "gateway.conf")
TEST, JUDGE, RELOAD, REFUSALS = "test", "candidate", "reload", "refusals"

NGINX_S = 10.0  # a test takes milliseconds; names that do not resolve take seconds each
ANSWER_S = 5.0  # for the daemon to take the answer
CONFIG_BYTES = 16 << 20  # of a candidate: more is no routing
LOG_BYTES = 1 << 16  # of the error log, from its end
NOT_RUN = 125  # nginx could not be asked: no exit code of its own

# The same places as the daemon's (program.py), and not root's environment: nobody's PATH decides what root runs.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/nginx/sbin"
_MAIN_FILE = re.compile(r"configuration file (?P<path>.+) (?:syntax is ok|test (?:is successful|failed))")


class Impossible(Exception):
    """It cannot be done; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    output: str


@dataclass(frozen=True, slots=True)
class Host:
    """What root's configuration says of nginx on this host."""

    binary: str
    folder: Path

    @classmethod
    def from_file(cls, path: Path) -> Host:
        """Raises Impossible for a file that cannot be read; without one the defaults hold."""
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8")).get("nginx", {})
        except FileNotFoundError:
            found = {}
        except (OSError, ValueError) as error:
            raise Impossible(f"{path}: {error}; chatglm-hactl config check") from error
        binary, folder = found.get("binary", "nginx"), found.get("dir", FOLDER)
        where = shutil.which(str(binary), path=PATH)
        if where is None:
            raise Impossible(f"{path}: nginx.binary = {binary!r}: no such program in {PATH}; apt-get install nginx")
        return cls(where, Path(str(folder)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hasupervisor.act.nginx.helper", description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help="root's; the caller has no say")
    options = parser.parse_args(arguments)
    with socket.socket(fileno=os.dup(0)) as connection:
        connection.shutdown(socket.SHUT_RD)  # whoever writes is told so by the kernel: EPIPE
        asked = Path(os.fsdecode(connection.getsockname())).name
        answer = _answer(asked, options.config)
        connection.settimeout(ANSWER_S)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            connection.sendall(json.dumps(answer).encode())
            connection.shutdown(socket.SHUT_WR)
    if answer["code"] or asked == RELOAD:
        said = str(answer["output"]).strip().replace("\n", "; ")
        print(f"<{4 if answer['code'] else 5}>{asked}: exit code {answer['code']}: {said}", file=sys.stderr)
    return 0


def _answer(asked: str, config: Path) -> dict[str, object]:
    folder = ""
    try:
        host = Host.from_file(config)
        folder = str(host.folder)
        ran = _do(asked, host)
    except (Impossible, OSError) as error:
        ran = Ran(NOT_RUN, str(error))
    return {"code": ran.code, "output": ran.output, "dir": folder}


def _do(asked: str, host: Host) -> Ran:
    if asked == TEST:
        return nginx(host, "-t")
    if asked == JUDGE:
        return judge(host)
    if asked == RELOAD:
        tested = nginx(host, "-t")
        return nginx(host, "-s", "reload") if tested.code == 0 else tested
    if asked == REFUSALS:
        return refusals(host)
    raise Impossible(f"{asked}: no socket of this name is served; systemctl cat chatglm-ha-nginx.socket")


def nginx(host: Host, *arguments: str) -> Ran:
    """Runs the binary, both its streams as one text. Raises Impossible: not run, or too late."""
    command = (host.binary, *arguments)
    try:
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=NGINX_S,
            env={"PATH": PATH},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Impossible(f"{' '.join(command)} did not end within {NGINX_S:.0f} s") from None
    except OSError as error:
        raise Impossible(f"cannot run {host.binary}: {error.strerror or error}") from error
    return Ran(ran.returncode, ran.stdout.decode(errors="replace"))


# --- the daemon's next files ------------------------------------------------------------------------------------------


def judge(host: Host) -> Ran:
    """`nginx -t` of the whole configuration with the daemon's next files in it, in a folder that is root's alone.

    The daemon does not lay the tree out itself: the main file would be its own, and that may have nginx load a module.
    """
    candidates = {real(host.folder / name): text for name, text in _candidates(host.folder / CANDIDATE).items()}
    main_file = _main_file(host)
    with tempfile.TemporaryDirectory(prefix="chatglm-ha-nginx-") as place:
        root = Path(place) / "stage"
        tree = read_tree(main_file, candidates)
        ran = nginx(host, "-t", "-c", str(build_shadow(tree, candidates, root)))
        return Ran(ran.code, ran.output.replace(str(root), ""))


def _candidates(folder: Path) -> dict[str, str]:
    """The texts by name. Raises Impossible, also for what is no plain file: a link could show any file of root's."""
    try:
        inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Impossible(f"{folder}: {error.strerror}: the daemon has not written what is to be tested") from error
    try:
        return {name: _plain_text(inside, folder / name) for name in FILES}
    finally:
        os.close(inside)


def _plain_text(inside: int, path: Path) -> str:
    try:
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=inside)
    except OSError as error:
        raise Impossible(f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise Impossible(f"{path} is no plain file with one name, so it is not read")
        text = file.read(CONFIG_BYTES + 1)
    if len(text) > CONFIG_BYTES:
        raise Impossible(f"{path} is longer than {CONFIG_BYTES} bytes, so it is not read")
    return text.decode("utf-8", errors="surrogateescape")


def _main_file(host: Host) -> Path:
    tested = nginx(host, "-t")
    found = _MAIN_FILE.search(tested.output)
    if found is None:
        raise Impossible(f"{host.binary} -t does not say which configuration file it reads: {tested.output.strip()}")
    return Path(found["path"])


# --- what the master has refused --------------------------------------------------------------------------------------


def refusals(host: Host) -> Ran:
    """The [emerg] lines at the end of the error log; of all that a log holds, only these."""
    path = _error_log(host)
    if path is None:
        return Ran(0, "")
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
        lines = file.read(LOG_BYTES).decode(errors="replace").splitlines()
    return Ran(0, "".join(f"{line}\n" for line in lines if "[emerg]" in line))


def _error_log(host: Host) -> Path | None:
    """As layout.py finds it; None when it is not a file."""
    built = nginx(host, "-V").output
    compiled = re.search(r"--error-log-path=(\S+)", built)
    prefix = re.search(r"--prefix=(\S+)", built)
    setting = read_tree(_main_file(host)).first("error_log")
    target = setting.arguments[0] if setting else compiled[1] if compiled else "logs/error.log"
    if target == "stderr" or target.startswith(("syslog:", "memory:")):
        return None
    return Path(prefix[1] if prefix else "/usr/local/nginx") / target


if __name__ == "__main__":
    sys.exit(main())

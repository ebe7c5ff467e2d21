"""A real dockerd of the tests' own, which can be restarted, killed and frozen, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import docker

START_S = 60.0  # a dockerd is up in 0.3 s here; the rest is for a machine that is busy
LABEL = "io.chatglm-ha.test"


class Engine:
    """One dockerd. `socket` is its path, `host` its URL; every signal goes to its pid alone."""

    def __init__(self, directory: Path, bridge: str, subnet: str) -> None:
        self.directory, self.bridge, self.subnet = directory, bridge, subnet
        self.socket = directory / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.log = directory / "dockerd.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._containerd: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "dockerd is not running"
        return self._process.pid

    @contextmanager
    def client(self, timeout: float = 30.0) -> Iterator[docker.DockerClient]:
        """A plain SDK client for what a test does by hand, as an operator would."""
        client = docker.DockerClient(base_url=self.host, timeout=int(timeout))
        try:
            yield client
        finally:
            client.close()

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts dockerd (and containerd, the first time) and waits until it answers."""
        if self._containerd is None:
            self._containerd = self._spawn(self._containerd_command())
        self._process = self._spawn(self._dockerd_command())
        self.wait_until_it_answers()

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        path = f"{self.write_hook()}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "TMPDIR": str(self.directory)}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )

    def _containerd_command(self) -> list[str]:
        # A process beside dockerd, as on a host with systemd. dockerd's own would be its child and die with it.
        config = self.directory / "containerd.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        folders = ["--root", str(self.directory / "containerd"), "--state", str(self.directory / "containerd-state")]
        return ["containerd", "--config", str(config), "--address", str(self._containerd_socket), *folders]

    def _dockerd_command(self) -> list[str]:
        command = ["dockerd", "--data-root", str(self.directory / "data"), "--exec-root", str(self.directory / "exec")]
        command += ["--host", self.host, "--pidfile", str(self.directory / "pid"), "--group", "root"]
        command += ["--containerd", str(self._containerd_socket)]
        # Its own bridge and no firewall rules: a dockerd that runs beside it keeps its docker0 and its chains.
        command += ["--bridge", self.bridge, "--fixed-cidr", self.subnet, "--iptables=false", "--ip-forward=false"]
        return [*command, "--live-restore", "--shutdown-timeout", "5"]

    @property
    def _containerd_socket(self) -> Path:
        return self.directory / "containerd.sock"

    def wait_until_it_answers(self, within: float = START_S) -> None:
        deadline = time.monotonic() + within
        while not self.answers():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd does not answer; its last words:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether GET /_ping is answered within a second."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return connection.recv(64).startswith(b"HTTP/1.0 200")
            except OSError:
                return False

    def stop(self) -> None:
        """SIGTERM, and waits: with live-restore the containers go on."""
        self._end(signal.SIGTERM)

    def stop_containerd(self) -> None:
        process, self._containerd = self._containerd, None
        if process is not None:
            process.kill()
            process.wait(30)

    def kill(self) -> None:
        """SIGKILL: what a crash of dockerd is. Containers go on, its docker-proxy children die with it."""
        self._end(signal.SIGKILL)

    def restart(self, graceful: bool = True) -> None:
        if graceful:
            self.stop()
        else:
            self.kill()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)  # a frozen one would hear nothing but SIGKILL
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)

    def sigstop(self) -> None:
        """Freezes dockerd alone: it accepts connections (the kernel does) and answers none."""
        os.kill(self.pid, signal.SIGSTOP)

    def sigcont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.sigstop()
        try:
            yield
        finally:
            self.sigcont()

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # --- the runtime hook ---------------------------------------------------------------------------------------------

    def write_hook(self) -> Path:
        """A runtime hook by NVIDIA's name: with it on PATH dockerd takes `--gpus`. It can be told to fail.

        Returns its folder.
        """
        folder = self.directory / "hooks"
        folder.mkdir(exist_ok=True)
        hook = folder / "nvidia-container-runtime-hook"
        hook.write_text(
            '#!/bin/sh\nwhile [ -e "$0.hang" ]; do sleep 0.05; done\n'
            'if [ -e "$0.fail" ]; then echo "nvidia-container-cli: driver not loaded" >&2; exit 1; fi\n'
        )
        hook.chmod(0o755)
        return folder

    @contextmanager
    def hook(self, what: str) -> Iterator[None]:
        """Meanwhile the hook of every container that asks for a GPU will "hang" or "fail"."""
        told = self.directory / "hooks" / f"nvidia-container-runtime-hook.{what}"
        told.touch()
        try:
            yield
        finally:
            told.unlink()

    # --- what it runs ------------------------------------------------------------------------------------------------

    def shim_pid(self, container_id: str) -> int:
        """The pid of the containerd-shim of a container: frozen, every call about that container hangs."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                words = cmdline(int(entry.name))
                if words and Path(words[0]).name.startswith("containerd-shim") and container_id in words:
                    return int(entry.name)
        raise LookupError(f"no containerd-shim for {container_id}")

    def own_pids(self) -> list[int]:
        """Pids of every process whose command line names this engine's directory: containerd, shims, docker-proxy."""
        mark = str(self.directory)
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if pid != os.getpid() and any(mark in word for word in cmdline(pid))]

    def remove_everything(self) -> None:
        """Every container that this engine has, by force."""
        with self.client() as client:
            for container in client.api.containers(all=True):
                client.api.remove_container(container["Id"], force=True, v=True)


def cmdline(pid: int) -> list[str]:
    """The words of a process's command line; empty when it is gone or a thread of the kernel."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


@contextmanager
def own_dockerd(claim: Callable[[str], bool]) -> Iterator[Engine]:
    """A running Engine in a temporary directory; afterwards its containers, processes, mounts and files are gone.

    `claim(name)` says whether a name is this run's for as long as it lives, so that two runs choose two subnets.
    """
    for word in ("dockerd", "runc", "ip"):
        if shutil.which(word) is None:
            raise RuntimeError(f"tests/real needs {word}: apt-get install docker.io iproute2")
    if os.geteuid() != 0:
        raise RuntimeError("tests/real starts a dockerd of its own and needs root: sudo make test")
    bridge, subnet = add_bridge(claim)
    # Not pytest's tmp_path: a Unix socket's path is limited to 107 bytes, and pytest keeps its folders.
    directory = Path(tempfile.mkdtemp(prefix="chatglm-ha-"))
    engine = Engine(directory, bridge, subnet)
    try:
        engine.start()
        yield engine
    finally:
        end(engine)


def end(engine: Engine) -> None:
    try:
        if not engine.running():
            engine.start()
        engine.sigcont()
        engine.remove_everything()
    finally:
        engine.stop()
        engine.stop_containerd()
        for pid in engine.own_pids():
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "link", "delete", engine.bridge], check=True)
        for mount in mounts_below(engine.directory):
            subprocess.run(["umount", "-l", mount], check=True)
        shutil.rmtree(engine.directory)


def mounts_below(directory: Path) -> list[str]:
    """Mount points below `directory`, the deepest first."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{directory}/")), key=len, reverse=True)


def add_bridge(claim: Callable[[str], bool]) -> tuple[str, str]:
    """A bridge of our own and its subnet, one that no interface or route of this machine has."""
    taken = subprocess.run(["ip", "-4", "route", "show", "table", "all"], capture_output=True, text=True, check=True)
    for third in range(64, 96):
        network = f"10.213.{third}"
        if f"{network}." in taken.stdout or not claim(f"subnet-{third}"):
            continue
        bridge = f"cgha{third}"
        if Path(f"/sys/class/net/{bridge}").exists():  # left by a run that was killed: nobody holds its claim
            subprocess.run(["ip", "link", "delete", bridge], check=True)
        subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
        subprocess.run(["ip", "address", "add", f"{network}.1/24", "dev", bridge], check=True)
        subprocess.run(["ip", "link", "set", bridge, "up"], check=True)
        return bridge, f"{network}.0/24"
    raise RuntimeError("no free subnet in 10.213.64.0/19 for the tests' bridge: ip -4 route")

"""A host with systemd as process 1, in a container: booted, commanded and rebooted as one would a real one."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from tests.real.dockerd import Engine

IMAGE = "chatglm-system"
NAME = "gpu-host"
BOOT_S = 60.0  # a second here; the rest is for a machine that is busy
COMMAND_S = 90.0

# systemd wants to write to its own part of one cgroup tree, whatever this machine has: cgroup v1, v2 or both. There
# are no kernel modules to load in a container, which Debian 13 takes for a failure.
BOOT = (
    "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && "
    "ln -sf /dev/null /etc/systemd/system/systemd-modules-load.service && exec /sbin/init"
)

# All but CAP_SYS_RESOURCE, which is missing inside some build machines, so that --privileged would fail there.
RIGHTS: dict[str, Any] = {
    "cap_add": ["ALL"],
    "cap_drop": ["SYS_RESOURCE"],
    "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
    "tmpfs": {"/run": "", "/run/lock": "", "/tmp": ""},
    "cgroupns": "private",
    # What systemd sets where it boots a machine, and what a dockerd inside wants to set and may not.
    "sysctls": {"net.unix.max_dgram_qlen": "512", "net.ipv4.ip_forward": "1"},
}


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended, and all that it printed."""

    code: int
    output: str


class Machine:
    """One booted host. Every command has a deadline; one that is to succeed and does not fails with all its words."""

    def __init__(self, client: docker.DockerClient, container_id: str, engine: str) -> None:
        self._api = client.api
        self._id = container_id
        self._docker = ["docker", "--host", engine]

    # --- its life -----------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        self._api.start(self._id)
        deadline = time.monotonic() + BOOT_S
        while (state := self._is_running()) != "running":
            assert time.monotonic() < deadline, f"it has not booted: {state}\n{self.console()}\n{self._failed()}"
            time.sleep(0.05)

    def reboot(self) -> None:
        """In good order: every unit is stopped, all memory is gone, every unit that is enabled is started."""
        self._api.kill(self._id, "SIGRTMIN+4")  # systemd's word for poweroff
        assert self._api.wait(self._id, timeout=BOOT_S)["StatusCode"] in (0, 130), self.console()
        self.boot()

    def console(self) -> str:
        return str(self._api.logs(self._id, tail=40).decode(errors="replace"))

    @property
    def address(self) -> str:
        (network,) = self._api.inspect_container(self._id)["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def _is_running(self) -> str:
        return self.ask("systemctl", "is-system-running").output.strip()  # docker's own words while it is not up

    def _failed(self) -> str:
        return self.ask("systemctl", "--failed", "--no-pager").output

    # --- commands -----------------------------------------------------------------------------------------------------

    def ask(self, *command: str, within: float = COMMAND_S) -> Ran:
        """Runs a command, whatever comes of it."""
        # By docker's own client: the SDK loses what a quick command prints, when it comes along with the answer's head.
        inside = [*self._docker, "exec", self._id, "timeout", f"{within:g}", *command]
        ran = subprocess.run(
            inside,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=within + 30.0,
            check=False,
        )
        return Ran(ran.returncode, ran.stdout.decode(errors="replace"))

    def run(self, *command: str, within: float = COMMAND_S) -> str:
        """Runs a command that is to succeed, and returns what it printed."""
        ran = self.ask(*command, within=within)
        assert ran.code == 0, f"{' '.join(command)} exited {ran.code}: {ran.output}"
        return ran.output

    def signal(self, pid: int, name: str) -> None:
        self.run("bash", "-c", f"kill -{name} {pid}")

    def put(self, path: str, text: str) -> None:
        """Writes a file; its folder exists."""
        raw = text.encode()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            member = tarfile.TarInfo(Path(path).name)
            member.size, member.mtime, member.mode = len(raw), int(time.time()), 0o644
            tar.addfile(member, io.BytesIO(raw))
        self._api.put_archive(self._id, str(Path(path).parent), buffer.getvalue())

    def document(self, *words: str) -> dict[str, Any]:
        """What `chatglm-hactl … --json` prints."""
        found: dict[str, Any] = json.loads(self.run("chatglm-hactl", *words, "--json"))
        return found

    # --- systemd ------------------------------------------------------------------------------------------------------

    def shown(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def main_pid(self, unit: str) -> int:
        return int(self.shown(unit, "MainPID"))

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """All that the unit has said, and that systemd has said of it, since the boot; the oldest first."""
        lines = self.run("journalctl", "--boot", "--unit", unit, "--output", "json", "--no-pager").splitlines()
        return [json.loads(line) for line in lines]


@contextmanager
def machine(
    engine: Engine, root_file_system: Path, folders: dict[Path, str], name: str = NAME, volumes: tuple[str, ...] = ()
) -> Iterator[Machine]:
    """A booted host; `folders` of this machine are seen there, read-only, at the paths given.

    `volumes` are folders of the host that lie on a disk and not in the layers of its image.
    """
    image = f"{IMAGE}:{name}"
    with engine.client(timeout=120) as client:
        client.api.import_image_from_file(str(root_file_system), repository=IMAGE, tag=name)
        binds = [f"{folder}:{path}:ro" for folder, path in folders.items()]
        container_id = client.api.create_container(
            image,
            command=["/bin/sh", "-c", BOOT],
            environment={"container": "docker"},
            hostname=name,
            name=name,
            tty=True,
            volumes=list(volumes),
            host_config=client.api.create_host_config(binds=binds, **RIGHTS),
        )["Id"]
        try:
            host = Machine(client, container_id, engine.host)
            host.boot()
            yield host
        finally:
            client.api.remove_container(container_id, force=True, v=True)
            client.api.remove_image(image)

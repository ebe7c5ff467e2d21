"""Runs the playbook of this checkout against a host of the tests, as from one's own desk: over ssh, by a key."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.checkout import ROOT
from tests.system.machine import Machine

Document = dict[str, Any]

FOLDER = ROOT / "deploy" / "ansible"
PROGRAMS = Path(sys.executable).parent
PLAY_S = 240.0
USER = "deploy"

_RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.M)
_TASK = re.compile(
    r"^(?:TASK|RUNNING HANDLER) \[(?:chatglm_ha : )?(.*?)\] \*+$\n((?:(?!^(?:TASK|RUNNING|PLAY)).*\n)*)", re.M
)


@dataclass(frozen=True, slots=True)
class Played:
    """How a play ended: its exit code, all its words, and of every host what the recap counts."""

    code: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        names = ("ok", "changed", "unreachable", "failed")
        return {host: dict(zip(names, map(int, counts), strict=True)) for host, *counts in _RECAP.findall(self.output)}

    @property
    def changed(self) -> list[str]:
        """The tasks and handlers that changed something, in their order."""
        return [name for name, words in _TASK.findall(self.output) if re.search(r"^changed: ", words, re.M)]

    @property
    def words(self) -> str:
        """All that was said, without the line breaks that a terminal's width puts there."""
        return " ".join(self.output.split())


class Controller:
    """The desk: a key of somebody with sudo there, the host's own key, an inventory, variables that all plays have."""

    def __init__(self, desk: Path, host: Machine, variables: dict[str, Any]) -> None:
        self.desk, self.host, self.variables = desk, host, variables
        self._key = desk / "key"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._key))
        host.run("useradd", "--create-home", USER)
        host.put(f"/etc/sudoers.d/{USER}", f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
        host.run("mkdir", f"/home/{USER}/.ssh")
        host.put(f"/home/{USER}/.ssh/authorized_keys", self._key.with_suffix(".pub").read_text())
        known = host.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()[:2]
        (desk / "known_hosts").write_text(" ".join([host.address, *known]) + "\n")

    def play(self, hosts: tuple[str, ...] = ("gpu-host",), options: tuple[str, ...] = (), **variables: Any) -> Played:
        """Plays deploy.yml for these names, which are all the one host; whatever comes of it."""
        return self._play(FOLDER / "deploy.yml", hosts, options, variables)

    def play_tasks(self, file: str) -> Played:
        """Plays one file of the role's tasks, and the handlers that it notifies."""
        include = {"ansible.builtin.include_role": {"name": "chatglm_ha", "tasks_from": file}}
        play = {"hosts": "chatglm_servers", "become": True, "gather_facts": False, "tasks": [include]}
        playbook = self.desk / "tasks.yml"
        playbook.write_text(json.dumps([play]))
        return self._play(playbook, ("gpu-host",), (), {})

    def _play(self, playbook: Path, hosts: tuple[str, ...], options: tuple[str, ...], variables: Document) -> Played:
        inventory = self.desk / "inventory.yml"
        inventory.write_text(json.dumps({"chatglm_servers": {"hosts": {name: self._connection() for name in hosts}}}))
        return played(self.desk, playbook, ("-i", str(inventory), *options), self.variables | variables)

    def _connection(self) -> dict[str, str]:
        options = {"UserKnownHostsFile": self.desk / "known_hosts", "IdentitiesOnly": "yes", "BatchMode": "yes"}
        return {
            "ansible_host": self.host.address,
            "ansible_user": USER,
            "ansible_ssh_private_key_file": str(self._key),
            "ansible_ssh_common_args": " ".join(f"-o {name}={value}" for name, value in options.items()),
        }


def play_here(
    folder: Path, tasks: list[Document], files: list[str], env: Document | None = None, **more: Any
) -> Played:
    """Plays tasks on this machine itself, with variables from files and from `more`; `folder` gets the playbook."""
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars_files": files, "tasks": tasks}
    (folder / "playbook.yml").write_text(json.dumps([play | {"environment": env or {}}]))
    here = {"ansible_python_interpreter": sys.executable}
    return played(folder, folder / "playbook.yml", ("-i", "localhost,"), here | more)


def played(desk: Path, playbook: Path, options: tuple[str, ...], variables: Document) -> Played:
    settings = desk / "variables.json"
    settings.write_text(json.dumps(variables, ensure_ascii=False))
    command = [str(PROGRAMS / "ansible-playbook"), "-e", f"@{settings}", *options, str(playbook)]
    done = subprocess.run(
        command,
        cwd=FOLDER,
        env=environment(desk),
        capture_output=True,
        text=True,
        timeout=PLAY_S,
        check=False,
    )
    return Played(done.returncode, done.stdout + done.stderr)


def environment(desk: Path) -> dict[str, str]:
    """What Ansible's programs run with: nothing of this machine's own Ansible, no colours, no lines of other runs."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    return ours | {
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "ANSIBLE_HOME": str(desk / "home"),
        "ANSIBLE_CONFIG": str(FOLDER / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=10s",
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"

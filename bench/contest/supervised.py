"""Instances under supervisord with autorestart: what stands for `docker run --restart` in the other contenders."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from bench.contest.contenders import Stand, environment
from bench.contest.ledger import Ledger
from bench.contest.programs import Program, answers, find, run, until

CONFIG = """
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}

[unix_http_server]
file={folder}/supervisor.sock

[supervisorctl]
serverurl=unix://{folder}/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

PROGRAM = """
[program:{name}]
command={command}
environment=HOST="127.0.0.1",PORT="{port}"
autostart=true
autorestart=true
startsecs=1
startretries=3
stopwaitsecs=10
redirect_stderr=true
stdout_logfile={folder}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=5
"""


class Supervised:
    """supervisord with both instances; it restarts what ends, and asks nobody how they are."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._config = stand.folder / "supervisord.conf"
        self._program = Program(
            [find("supervisord", "supervisor"), "-c", str(self._config)],
            stand.folder,
            "supervisord.out",
            environment(stand),
        )

    async def start(self) -> None:
        """Returns once both instances answer."""
        folder, command = self._stand.folder, " ".join(self._stand.command)
        parts = [CONFIG.format(folder=folder)]
        for port in self._stand.instances:
            parts.append(PROGRAM.format(name=name_of(port), command=command, port=port, folder=folder))
        self._config.write_text("".join(parts))
        await self._program.start()
        for port in self._stand.instances:
            await until(lambda port=port: answers(port), f"the instance on {port} answers")  # type: ignore[misc]

    async def restart(self, port: int) -> None:
        """SIGTERM, SIGKILL after 10 s, and a new one: `docker restart`."""
        await run(find("supervisorctl", "supervisor"), "-c", str(self._config), "restart", name_of(port))

    async def stop(self) -> None:
        ledger = Ledger(self._stand.ledger)
        for life in ledger.living().values():
            with suppress(ProcessLookupError):
                os.kill(life.pid, signal.SIGCONT)  # one that is still stopped would not hear its end
        await self._program.stop()
        for life in ledger.living().values():
            with suppress(ProcessLookupError):
                os.kill(life.pid, signal.SIGKILL)

    async def version(self) -> str:
        return await run(find("supervisord", "supervisor"), "-v")

    def words(self) -> str:
        return self._program.words()


def name_of(port: int) -> str:
    return f"instance-{port}"

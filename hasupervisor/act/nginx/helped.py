"""nginx tested and reloaded by root's helper (helper.py), for a daemon that is not root."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hasupervisor.act.nginx import helper
from hasupervisor.act.nginx.files import write_atomically
from hasupervisor.act.nginx.program import Control, DirectControl, Ran, reload_by_command, words
from hasupervisor.act.nginx.settings import NginxSettings, NginxTrouble

SOCKETS = Path("/run/chatglm-ha-nginx")  # as systemd/chatglm-ha-nginx.socket has it
UNIT = "chatglm-ha-nginx.socket"
# Three runs of nginx at most, each with its own deadline, and a new interpreter.
ANSWER_DEADLINE_S = 3 * helper.NGINX_S + 5.0


def control_for(settings: NginxSettings, sockets: Path = SOCKETS) -> Control:
    """Whoever can judge and reload this nginx: we ourselves, or root's helper where we are not root and it is there."""
    if settings.own or os.geteuid() == 0 or not (sockets / helper.RELOAD).exists():
        return DirectControl(settings)
    return HelperControl(settings, sockets)


@dataclass(frozen=True, slots=True)
class HelperControl:
    """Asks the helper by connecting to one of its sockets; nothing is written to it."""

    settings: NginxSettings
    sockets: Path = SOCKETS

    def stage(self, main: Path, texts: Mapping[str, str]) -> Path:
        folder = self.settings.dir / helper.CANDIDATE
        folder.mkdir(exist_ok=True)
        for name in helper.FILES:
            write_atomically(folder / name, texts[name])
        return folder

    async def test(self, staged: Path | None) -> Ran:
        return await self._ask(helper.JUDGE if staged else helper.TEST)

    async def reload(self, master: int) -> None:
        if self.settings.reload:
            await reload_by_command(self.settings.reload)
            return
        ran = await self._ask(helper.RELOAD)
        if not ran.ok:
            raise NginxTrouble(f"nginx was not reloaded: {words(ran.output) or 'no output'}")

    async def refusals(self) -> str:
        ran = await self._ask(helper.REFUSALS)
        return ran.output if ran.ok else ""

    async def _ask(self, what: str) -> Ran:
        """Raises NginxTrouble: the helper does not answer, cannot run nginx, or is about another folder than ours."""
        path = self.sockets / what
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    answer = await reader.read()
                finally:
                    writer.close()
        except TimeoutError:
            raise NginxTrouble(
                f"{path}: no answer within {ANSWER_DEADLINE_S:.0f} s; journalctl -u 'chatglm-ha-nginx@*'"
            ) from None
        except OSError as error:
            raise NginxTrouble(f"{path}: {error.strerror or error}; systemctl restart {UNIT}") from error
        return self._understood(path, answer)

    def _understood(self, path: Path, answer: bytes) -> Ran:
        try:
            found = json.loads(answer)
            ran, folder = Ran(int(found["code"]), str(found["output"])), str(found["dir"])
        except (ValueError, KeyError, TypeError) as error:
            raise NginxTrouble(f"{path} was closed before it answered; journalctl -u 'chatglm-ha-nginx@*'") from error
        if ran.code == helper.NOT_RUN:
            raise NginxTrouble(ran.output)
        if Path(folder) != self.settings.dir:
            raise NginxTrouble(
                f"nginx.dir is {self.settings.dir}, but root's helper looks into {folder}: "
                f"set nginx.dir in {helper.CONFIG} and nowhere else"
            )
        return ran

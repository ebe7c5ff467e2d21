"""Brings one routing table to nginx's workers: render, stage, test, rename, reload, confirm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from hasupervisor.act.nginx import own, process
from hasupervisor.act.nginx.confirm import Answer, EmergencyLog, OldWorkersStay, Refused, ask_generation, confirm
from hasupervisor.act.nginx.files import text_of, write_atomically
from hasupervisor.act.nginx.layout import Layout, find_layout
from hasupervisor.act.nginx.program import Control, words
from hasupervisor.act.nginx.render import (
    GATEWAY,
    MAIN,
    UPSTREAM,
    Written,
    canonical,
    gateway_conf,
    main_conf,
    read_upstream,
    templates,
    upstream_conf,
)
from hasupervisor.act.nginx.settings import OWN_NAME, NginxSettings, NginxTrouble, parse_listen, plain_name
from hasupervisor.model import Routing
from hasupervisor.templates import template_dir

P = ParamSpec("P")
T = TypeVar("T")

# A disk that hangs must not hang the gateway: what is late is said, and tried again.
DISK_DEADLINE_S = 10.0
# From one reload to the next of what nginx has not refused and does not run: each one adds workers that live until
# their last stream has ended.
RELOAD_FIRST_S = 30.0
RELOAD_MAX_S = 600.0


@dataclass(frozen=True, slots=True)
class Staged:
    """Files that nginx has judged good, not yet in place; in the order in which they go there."""

    texts: dict[str, str]
    written: Written
    rendered: dict[str, str]  # of the files that do not change with the routing: ours, whatever people made of them


@dataclass(frozen=True, slots=True)
class Unproven:
    """A reload that nginx has not refused, and whose generation was not seen: another one hardly helps."""

    master: int
    generation: int
    noted: frozenset[int] | None  # the workers before it
    words: str
    again_at: float  # monotonic; not before, unless something changes
    wait: float

    def holds(self, master: int, generation: int) -> bool:
        return (self.master, self.generation) == (master, generation) and time.monotonic() < self.again_at

    @classmethod
    def after(
        cls, last: Unproven | None, master: int, generation: int, noted: frozenset[int] | None, words: str
    ) -> Unproven:
        is_same = last is not None and (last.master, last.generation) == (master, generation)
        wait = min(last.wait * 2, RELOAD_MAX_S) if last is not None and is_same else RELOAD_FIRST_S
        return cls(master, generation, noted, words, time.monotonic() + wait, wait)


class Delivery:
    """The files of one gateway, and the way from a routing table to the workers that run it."""

    def __init__(self, settings: NginxSettings, control: Control) -> None:
        self.disk = Written()
        self.layout: Layout | None = None
        self.prepared = False
        self.room_open = False
        self._settings = settings
        self._control = control
        self._env = templates(template_dir())
        self._ours: dict[str, str] = {}  # what we last put into the files that do not change with the routing
        self._upstream_text: str | None = None  # upstream.conf as we put it, or found it
        # One thread: work that is late (a disk that hangs) can never overtake what came after it.
        self._disk_thread = ThreadPoolExecutor(1, thread_name_prefix="gateway-disk")
        self._seen = 0  # the highest generation that any worker has answered
        self._unproven: Unproven | None = None
        self._runs: tuple[int, int] | None = None  # master and generation: its newest workers have answered with it

    # --- what is there -------------------------------------------------------------------------------------------

    def reconfigure(self, settings: NginxSettings) -> None:
        """Takes other settings; the files follow with the next table."""
        self._settings = settings

    async def prepare(self) -> None:
        """Makes the folder and takes over what an earlier daemon left in it. Raises NginxTrouble."""
        await self._on_disk(self._make_folders)
        await self._on_disk(self._read_disk)
        self.prepared = True

    async def survey(self) -> Layout:
        """Finds out anew where nginx has its files. Raises NginxTrouble."""
        self.layout = await find_layout(self._settings)
        return self.layout

    async def ask(self) -> Answer:
        """What generation answers on the gateway's address."""
        host = plain_name(self._settings.server_name) or OWN_NAME
        answer = await ask_generation(parse_listen(self._settings.listen), host)
        self._seen = max(self._seen, answer.generation or 0)
        return answer

    def not_included(self, layout: Layout) -> str:
        return (
            f"{layout.main} does not include the gateway: "
            f"add the line `include {self._settings.dir / GATEWAY};` inside its http {{ }} block"
        )

    async def test(self) -> tuple[bool, str]:
        """`nginx -t` of what is on disk: (True, all it printed) or (False, its complaint). Raises NginxTrouble."""
        layout = await self.survey()
        ran = await self._control.test(None)
        if ran.ok and not layout.included:
            return False, self.not_included(layout)
        return (True, ran.output.strip()) if ran.ok else (False, words(ran.output))

    def differs(self, routing: Routing) -> bool:
        """Whether the files have to change for this table: others are routed, or a file is not as we would write it.

        Who is known without being routed changes with every start and death of an instance. That is written along with
        the next change and is worth no reload of its own: each one forgets nginx's counts of requests in flight.
        """
        if self._upstream_text is None or canonical(routing).routes != self.disk.routing.routes:
            return True
        if self._render_upstream(self.disk.routing, self.disk.generation) != self._upstream_text:
            return True  # written by another version, or with other settings
        return any(text != self._ours.get(name) for name, text in self._render_fixed(self._surveyed()).items())

    async def check_upstream(self) -> None:
        """Notices an upstream.conf that is not as we left it: the next pass replaces it. Raises NginxTrouble."""
        if await self._on_disk(text_of, self._settings.dir / UPSTREAM) != self._upstream_text:
            self._upstream_text = None

    @property
    def shows_sign(self) -> bool:
        """Whether gateway.conf on disk has nginx say that it sees the daemon's sign of life."""
        return "X-HA-Daemon" in self._ours.get(GATEWAY, "")

    # --- the way to the workers ----------------------------------------------------------------------------------

    async def stage(self, routing: Routing, *, anew: bool) -> Staged:
        """Renders the files and has nginx judge them in its whole configuration, with nothing live touched.

        `anew` renders also the files whose text has not changed, over what people did to them by hand. Raises
        NginxTrouble with nginx's own words.
        """
        layout = await self.survey()
        if not layout.included:
            raise NginxTrouble(self.not_included(layout))
        generation = max(self.disk.generation, self._seen) + 1
        texts = {UPSTREAM: self._render_upstream(routing, generation)}
        texts |= await self._on_disk(self._fixed_texts, layout, anew)
        staged = await self._on_disk(self._control.stage, layout.main, texts)
        ran = await self._control.test(staged)
        if not ran.ok:
            raise NginxTrouble(words(ran.output))
        return Staged(texts, Written(generation, canonical(routing)), self._render_fixed(layout))

    async def commit(self, staged: Staged) -> None:
        """Puts the judged files in place, each whole or not at all. Raises NginxTrouble (a full disk, say)."""
        # upstream.conf goes first: it defines what gateway.conf uses.
        for name, text in staged.texts.items():
            await self._on_disk(self._replace, name, text)
            if name == UPSTREAM:
                self.disk, self._upstream_text = staged.written, text
            else:
                self._ours[name] = staged.rendered[name]

    async def activate(self, late: Collection[int] = ()) -> int:
        """Makes the workers run what is on disk; returns the master's pid when they are proven to.

        `late` are old workers that are known not to retire: no new one is waited for because of them. Raises
        OldWorkersStay when only such ones are left of other tables; a reload would add workers, and move none of them.
        Raises NginxTrouble.
        """
        layout = self._surveyed()
        master = process.find_master(layout)
        if master is None and not layout.own:
            raise NginxTrouble("nginx is not running: systemctl start nginx")
        if master is None or not await self._runs_it(master, bool(late)):
            master = await self._reload(layout, master, frozenset(late))
        if staying := frozenset(pid for pid in late if not process.retired(pid)):
            raise OldWorkersStay(self.disk.generation, staying)
        return master

    async def _runs_it(self, master: int, is_waited_for: bool) -> bool:
        """Whether new workers run what is on disk already; while old ones are waited for, they may answer too."""
        if self._runs != (master, self.disk.generation):
            return False
        return is_waited_for or (await self.ask()).generation == self.disk.generation

    async def _reload(self, layout: Layout, master: int | None, late: frozenset[int]) -> int:
        """From the signal to the proof. Raises NginxTrouble."""
        generation = self.disk.generation
        emergencies = EmergencyLog.from_now(layout.error_log)
        noted: frozenset[int] | None = frozenset()
        if master is None:
            master = await own.start(self._settings, layout)
        elif (sent := self._unproven) and sent.holds(master, generation):
            noted = sent.noted  # nginx was told, and has not refused: told again, it would only make more workers
            if (await self.ask()).generation != generation:
                raise NginxTrouble(sent.words)
        else:
            noted = process.workers(master)
            await self._control.reload(master)
        try:
            await confirm(generation, master, noted - late if noted is not None else None, self.ask, emergencies)
        except OldWorkersStay as stay:
            self._runs, self._unproven = (master, generation), None
            known = frozenset(pid for pid in late if not process.retired(pid))
            raise OldWorkersStay(generation, stay.late | known) from stay
        except NginxTrouble as trouble:
            if refusal := emergencies.among(await self._control.refusals(), master):
                raise Refused(f"nginx refused generation {generation}: {refusal}") from trouble
            if not isinstance(trouble, Refused):
                self._unproven = Unproven.after(self._unproven, master, generation, noted, str(trouble))
            raise
        self._runs, self._unproven = (master, generation), None
        return master

    def reload_again(self) -> None:
        """Something has changed that nginx reads: a reload that was not proven is worth another one."""
        self._unproven = None

    def close(self) -> None:
        """Lets the thread go; what it does now it ends."""
        self._disk_thread.shutdown(wait=False, cancel_futures=True)

    # --- rendering and files -------------------------------------------------------------------------------------

    def _surveyed(self) -> Layout:
        if self.layout is None:
            raise NginxTrouble("nginx's configuration has not been found yet")
        return self.layout

    def _fixed_names(self) -> tuple[str, ...]:
        return (GATEWAY, MAIN) if self._settings.own else (GATEWAY,)

    def _render_upstream(self, routing: Routing, generation: int) -> str:
        return upstream_conf(self._env, self._settings, routing, generation)

    def _render_fixed(self, layout: Layout) -> dict[str, str]:
        texts = {
            GATEWAY: gateway_conf(
                self._env,
                self._settings,
                include_upstream=layout.include_upstream,
                room=self.room_open,
                file_logs=layout.file_logs,
                error_logs=layout.error_logs,
            )
        }
        if layout.own:
            texts[MAIN] = main_conf(self._env, self._settings)
        return texts

    def _fixed_texts(self, layout: Layout, anew: bool) -> dict[str, str]:
        """What is to stand in the files besides upstream.conf: ours where it has changed, else what is there."""
        texts = {}
        for name, text in self._render_fixed(layout).items():
            found = text_of(self._settings.dir / name)
            texts[name] = text if anew or found is None or text != self._ours.get(name) else found
        return texts

    def _replace(self, name: str, text: str) -> None:
        path = self._settings.dir / name
        if text_of(path) != text:
            write_atomically(path, text)

    def _make_folders(self) -> None:
        if not self._settings.dir.is_dir():
            self._settings.dir.mkdir(parents=True, exist_ok=True)
            self._settings.dir.chmod(0o755)  # whatever the umask: nginx's workers have to reach the sockets
        if self._settings.own:
            for name in ("temp", "conf.d"):
                (self._settings.dir / name).mkdir(exist_ok=True)

    def _read_disk(self) -> None:
        self._upstream_text = text_of(self._settings.dir / UPSTREAM)
        self.disk = read_upstream(self._upstream_text or "")
        for name in self._fixed_names():
            if (text := text_of(self._settings.dir / name)) is not None:
                self._ours[name] = text

    async def _on_disk(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs file work in the one thread for it, with a deadline. Raises NginxTrouble naming the file."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DISK_DEADLINE_S):
                return await loop.run_in_executor(self._disk_thread, partial(work, *args, **kwargs))
        except TimeoutError:
            raise NginxTrouble(
                f"the disk under {self._settings.dir} does not answer within {DISK_DEADLINE_S:.0f} s: see dmesg"
            ) from None
        except OSError as error:
            where = error.filename or self._settings.dir
            raise NginxTrouble(f"cannot write {where}: {error.strerror or error}") from error

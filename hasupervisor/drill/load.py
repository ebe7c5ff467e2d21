"""A bounded load of prompts through the gateway: requests leave on time whatever comes back, every one is counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import httpx

from hasupervisor.drill.order import Order
from hasupervisor.drill.sheet import Tally
from hasupervisor.observe.answers import Dialect, first_model, prompt_fault, prompt_question
from hasupervisor.observe.exchange import Answer, Question
from hasupervisor.observe.prompts import NO_SUCH_THING

MOST_OPEN = 1000
"""Requests under way at once: a load that nobody answers must not eat the machine."""

OVERDUE_S = 1.0
"""A departure that is later than this is left out: the drill itself was stopped, and is not to catch up in a burst."""

KINDS = 20
"""Kinds of failures that are told apart."""


NOT_CONNECTED = "cannot connect to the gateway"
"""Nobody listens: the request was never sent, and whoever sends it again loses nothing."""


class NotAnswered(Exception):
    """The gateway does not answer the prompt well before there is any fault; the text says how it answers."""


class Asker:
    """Sends health.prompt through the gateway, as any user might, each time on a connection of its own."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._dialect = Dialect(order.dialect)
        self._model = ""
        self._client = httpx.AsyncClient(
            base_url=order.gateway,
            headers={"Host": order.host, "User-Agent": f"chatglm-ha {order.id}"},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            timeout=order.patience,
            trust_env=False,  # a proxy of the environment is not the gateway
            verify=False,  # there is no TLS here, and loading certificates takes 0.1 s
        )

    async def settle(self) -> None:
        """Asks once, and learns the dialect where that is not configured. Raises NotAnswered."""
        dialects = [Dialect.CHATGLM, Dialect.OPENAI] if self._dialect is Dialect.AUTO else [self._dialect]
        fault = ""
        for self._dialect in dialects:
            if self._dialect is Dialect.OPENAI:
                self._model = await self._find_model()
            fault, status, _ = await self.ask()
            if not fault:
                return
            if status not in NO_SUCH_THING:
                break
        raise NotAnswered(fault)

    async def ask(self) -> tuple[str, int, bool]:
        """How it went in words, "" for well; the status, 0 for none; whether it was told to come again later."""
        try:
            async with asyncio.timeout(self._order.patience):
                answer, again = await self._exchange(prompt_question(self._dialect, self._order.prompt, self._model))
        except (TimeoutError, httpx.TimeoutException):
            return f"no answer in {self._order.patience:g} s", 0, False
        except httpx.ConnectError:
            return NOT_CONNECTED, 0, False
        except httpx.HTTPError as error:
            return f"cut: {error}" if str(error) else f"cut: {type(error).__name__}", 0, False
        return prompt_fault(self._dialect, answer), answer.status, again

    async def close(self) -> None:
        await self._client.aclose()

    async def _exchange(self, question: Question) -> tuple[Answer, bool]:
        content = question.body or None
        headers = {"Content-Type": "application/json"} if content else {}
        response = await self._client.request(question.method, question.path, content=content, headers=headers)
        again = response.status_code == 503 and "retry-after" in response.headers
        return Answer(response.status_code, response.content), again

    async def _find_model(self) -> str:
        """The name that a server may want to be called by; it may have no list of them, so that none is no failure."""
        try:
            return first_model((await self._exchange(Question("GET", "/v1/models")))[0])
        except httpx.HTTPError:
            return ""


class Load:
    """Prompts at `rate` a second from `run` to `stop`; `rate` may be changed meanwhile."""

    def __init__(self, asker: Asker, rate: float) -> None:
        self.rate = rate
        self.sheds = False  # whether a 503 with Retry-After is an answer: during a spike
        self._asker = asker
        self._sent = self._answered = self._shed = 0
        self._slowest = self._late = 0.0
        self._failures: Counter[str] = Counter()
        self._open: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    @property
    def tally(self) -> Tally:
        failures = tuple(self._failures.most_common())
        return Tally(self._sent, self._answered, self._shed, failures, self._slowest, self._late)

    @property
    def open(self) -> int:
        """Requests that have been sent and have not ended."""
        return len(self._open)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not await self._stops_before(due, loop.time):
            late = loop.time() - due
            self._late = max(self._late, late)
            if late > OVERDUE_S:
                due = loop.time()
            self._send()
            due += 1.0 / self.rate

    def stop(self) -> None:
        """Sends no more; what is under way goes on."""
        self._stopped.set()

    async def close(self) -> None:
        """Gives up what is under way: it is then neither answered nor failed."""
        self.stop()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _stops_before(self, due: float, clock: Callable[[], float]) -> bool:
        """Waits until the moment `due`; whether the load was stopped before."""
        if self._stopped.is_set():
            return True
        try:
            async with asyncio.timeout(max(0.0, due - clock())):
                await self._stopped.wait()
        except TimeoutError:
            return False
        return True

    def _send(self) -> None:
        self._sent += 1
        if len(self._open) >= MOST_OPEN:
            self._failures[f"not sent: {MOST_OPEN} are under way"] += 1
            return
        task = asyncio.create_task(self._one())
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _one(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        fault, _, again = await self._asker.ask()
        if not fault:
            self._answered += 1
            self._slowest = max(self._slowest, loop.time() - began)
        elif again and self.sheds:
            self._shed += 1
        else:
            known = fault in self._failures or len(self._failures) < KINDS
            self._failures[fault if known else "otherwise"] += 1

"""The server's state: no model yet, serving, draining; and what hangs together with it."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from model_api import exits
from model_api.admission import Admission, Refusal, Refused
from model_api.bodies import Bodies
from model_api.metrics import Metrics
from model_api.request import Event, Failed, Finished, PromptError, PromptTooLong, Request, Sampling
from model_api.settings import Settings
from model_api.watch import Progress, Trouble

if TYPE_CHECKING:
    from model_api.backends.base import Defaults, LoadedModel
    from model_api.engine import Engine
    from model_api.job import Job
    from model_api.memory import GpuWatch

log = logging.getLogger(__name__)

WARM_UP = "你好"
WARM_UP_TOKENS = 16
MIN_BODY = 1 << 20  # bytes; larger contexts get more, see `body_limit`
LONG_TEXT = 4096  # characters; encoding so many takes milliseconds, which /health should not wait for
NAMES_LOGGED = 256  # different names of ignored parameters that are written into the log in a process's life
SICK_AFTER = 3  # steps in a row that failed by the server's own fault


class Phase(StrEnum):
    """Where the server is in its life."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Service:
    """One model, its engine, and who may use it. Belongs to the event loop's thread, but for `load`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.phase = Phase.LOADING
        self.started = time.monotonic()
        self.created = time.time()
        self.admission = Admission(settings.max_batch, settings.max_queue, settings.max_wait)
        self.metrics = Metrics()
        self.bodies = Bodies()
        self._ignored: set[str] = set()  # names of parameters that the log has told already
        self._sick_until = -math.inf  # on the monotonic clock
        self._model: LoadedModel | None = None
        self._engine: Engine | None = None
        self._gpu: GpuWatch | None = None
        self._context = 0  # tokens of prompt and answer; 0 until the model is there

    # --- the model --------------------------------------------------------------------------------------------------

    @property
    def model(self) -> LoadedModel:
        """The model; raises Refused while it loads."""
        if self._model is None:
            raise Refused(Refusal("loading", "the model is still loading", 5))
        return self._model

    @property
    def engine(self) -> Engine:
        """The engine; raises Refused while the model loads."""
        if self._engine is None:
            raise Refused(Refusal("loading", "the model is still loading", 5))
        return self._engine

    @property
    def context(self) -> int:
        """Tokens of prompt and answer that a request can have here; 0 until the model is there."""
        return min(self._context, self._engine.longest) if self._engine else 0

    @property
    def trouble(self) -> Trouble:
        """What the engine has failed at lately by its own fault."""
        return self._engine.trouble if self._engine else Trouble()

    @property
    def body_limit(self) -> int:
        """Bytes a request's body may have: a context full of characters in JSON's longest spelling, at least 1 MiB."""
        return max(MIN_BODY, 16 * self._context)

    def load(self, loop: asyncio.AbstractEventLoop) -> None:
        """Loads the model, warms it up and starts the engine, in a thread of its own. Raises what is wrong with it."""
        from model_api.engine import Engine
        from model_api.loading import load_model
        from model_api.memory import GpuWatch, free_on_gpu, kv_budget
        from model_api.outlet import deliver_directly

        model = load_model(self.settings)

        def outbox(events: Sequence[tuple[Job, Event]]) -> None:
            loop.call_soon_threadsafe(deliver_directly, events)

        context = min(model.context, self.settings.max_context or model.context)
        engine = Engine(
            model,
            max_batch=self.settings.max_batch,
            kv_budget=kv_budget(model, context, self.settings.max_batch),
            watch=self.metrics,
            on_fatal=leave_now,
            outbox=outbox,
        )
        engine.start()
        warm_up(model, engine)
        # What is loaded stays: a later full collection that went through it all would stop every thread for 0.3 s.
        gc.collect()
        gc.freeze()
        self._gpu = GpuWatch(partial(free_on_gpu, model.device)) if model.device.type == "cuda" else None
        loop.call_soon_threadsafe(self._serve, model, engine, context)

    def _serve(self, model: LoadedModel, engine: Engine, context: int) -> None:
        self._model, self._engine, self._context = model, engine, context
        gauge, progress = self.metrics.gauge, engine.progress
        gauge("model_api_in_flight", "Requests being decoded", lambda: progress().in_flight)
        gauge("model_api_queued", "Requests waiting", lambda: progress().queued)
        gauge("model_api_step_running_seconds", "Age of the step under way", lambda: progress().step_running_s)
        gauge("model_api_kv_tokens", "Tokens of past that memory is taken for", model.decoder.held)
        gauge("model_api_kv_tokens_budget", "Tokens of past that may be held", lambda: engine.budget.tokens)
        if self.phase is Phase.LOADING:
            self.phase = Phase.SERVING
            log.info("serving %s after %.1f s", self.settings.model_name, time.monotonic() - self.started)
            if self.context < context:
                words = "memory holds %d tokens of past: requests may have so many, not the model's %d"
                log.warning(words, self.context, context)

    # --- words ------------------------------------------------------------------------------------------------------

    @property
    def defaults(self) -> Defaults:
        """How to draw when a request does not say; raises Refused while the model loads."""
        return self.model.defaults

    async def encode_chat(self, messages: Sequence[Mapping[str, Any]], limit: int | None = None) -> list[int]:
        """A dialogue's prompt; raises PromptError, PromptTooLong beyond `limit` tokens (None: the context).

        Long ones are encoded beside the event loop, not in it.
        """
        codec = self.model.codec
        size = sum(_size(message) for message in messages)
        self._check_length(sum(len(message["content"]) for message in messages), limit)
        return codec.chat(messages) if size < LONG_TEXT else await asyncio.to_thread(codec.chat, messages)

    async def encode_text(self, text: str) -> list[int]:
        """Bare text's ids; raises PromptTooLong."""
        codec = self.model.codec
        self._check_length(len(text), None)
        return codec.encode(text) if len(text) < LONG_TEXT else await asyncio.to_thread(codec.encode, text)

    def _check_length(self, characters: int, limit: int | None) -> None:
        """Raises PromptTooLong for what is too long however it is cut: encoding it would take seconds to find out."""
        limit = min(limit or self.context, self.context)
        longest = self.model.codec.longest_piece
        if longest and characters > limit * longest:
            raise PromptTooLong(
                f"the prompt has {characters} characters, and at most {limit * longest} fit into {limit} tokens: "
                f"this model's longest has {longest}"
            )

    def log_ignored(self, names: Sequence[str]) -> None:
        """Says once of each name that requests have a parameter which is ignored."""
        new = [name for name in dict.fromkeys(names) if name not in self._ignored]
        if new and len(self._ignored) < NAMES_LOGGED:
            self._ignored.update(new)
            log.warning("ignored, unknown parameters of requests: %s", ", ".join(new))

    # --- who may come in --------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises Refused if a request could not be taken now: loading, draining, full."""
        if not self.admission.draining:
            _ = self.engine
        self.admission.check()

    def drain(self) -> None:
        """Takes nothing new from now on."""
        self.phase = Phase.DRAINING
        self.admission.draining = True

    def progress(self) -> Progress | None:
        """The engine's progress; None before there is one."""
        return self._engine.progress() if self._engine else None

    def gpu_memory_gb(self) -> float | None:
        """Free memory of the GPU in GB (10^9 bytes); None on a CPU."""
        return self._gpu.free_gb if self._gpu else None

    def gpu_lost(self) -> str | None:
        """Why the GPU that the model is on is gone, for as long as this process lives; None: it is there."""
        return self._gpu.lost if self._gpu else None

    # --- drills -----------------------------------------------------------------------------------------------------

    @property
    def is_made_sick(self) -> bool:
        """Whether every prompt is to be answered 500, for a drill."""
        return time.monotonic() < self._sick_until

    def make_sick(self, seconds: float) -> None:
        """Answers prompts with 500 for so long from now; 0 ends that."""
        self._sick_until = time.monotonic() + seconds


def _size(message: Mapping[str, Any]) -> int:
    """About how many characters a template makes of a message; what is nested counts as long."""
    return 64 + sum(len(value) if isinstance(value, str) else LONG_TEXT for value in message.values())


class WarmUpFailed(Exception):
    """The model loads but does not answer."""


def warm_up(model: LoadedModel, engine: Engine, timeout: float = 300.0) -> Finished:
    """One prompt through everything, before anybody is let in; raises WarmUpFailed if no text comes of it."""
    import queue

    events: queue.Queue[Event] = queue.Queue()
    prompt = model.codec.chat([{"role": "user", "content": WARM_UP}])
    try:
        engine.submit(Request(prompt, WARM_UP_TOKENS, Sampling(temperature=0.0)), events.put)
    except PromptError as error:
        raise WarmUpFailed(f"the warm-up prompt is not taken: {error}") from None
    deadline = time.monotonic() + timeout
    while True:
        try:
            event = events.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise WarmUpFailed(f"the model did not answer a warm-up prompt in {timeout:g} s") from None
        if isinstance(event, Failed):
            raise WarmUpFailed(f"the warm-up prompt failed: {event.words}")
        if isinstance(event, Finished):
            if not event.text:
                raise WarmUpFailed("the model answers the warm-up prompt with nothing; are these the right weights?")
            return event


def leave_now(reason: str, code: int = exits.DEVICE_LOST) -> None:
    """Ends the process at once, the reason its last line: clients are better off elsewhere than waiting here."""
    sys.stdout.flush()
    print(f"model_api: fatal: {reason}", file=sys.stderr, flush=True)
    os._exit(code)

"""How fast a loaded model is through the engine: `verify` and `bench` on the command line."""

from __future__ import annotations

import logging
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from model_api import exits
from model_api.backends.base import LoadedModel, LoadError
from model_api.engine import Engine
from model_api.loading import load_model
from model_api.manifest import DamagedModel
from model_api.memory import kv_budget
from model_api.metrics import Metrics
from model_api.request import Event, Failed, Finished, Request, Sampling, Text
from model_api.service import WarmUpFailed, leave_now, warm_up
from model_api.settings import Settings, SettingsError, from_environment

AT_ONCE = (1, 4, 8, 16)
TOKENS = 64  # of every answer that is measured
PROMPT = "你好"
TIMEOUT = 600.0  # seconds for one measurement


class MeasureFailed(Exception):
    """A measured request was not answered."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement. Rates are tokens a second of all requests together; times are seconds."""

    at_once: int
    tokens_per_second: float
    first_token_median: float
    first_token_worst: float


class _Timed:
    """One request's events, timed as they come."""

    def __init__(self) -> None:
        self.submitted = time.monotonic()
        self.first: float | None = None
        self.last: Event | None = None
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, (Text, Finished)) and self.first is None:
            self.first = time.monotonic() - self.submitted
        if isinstance(event, (Finished, Failed)):
            self.last = event
            self.over.set()


def measure(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> Figures:
    """Submits all prompts at once and waits for `tokens` tokens of each, whatever the model would say."""
    began = time.monotonic()
    runs = []
    for prompt in prompts:
        timed = _Timed()
        engine.submit(Request(prompt, tokens, Sampling(temperature=0.0), stream=True, ignore_end=True), timed)
        runs.append(timed)
    for run in runs:
        if not run.over.wait(TIMEOUT):
            raise MeasureFailed(f"no answer in {TIMEOUT:g} s")
        if isinstance(run.last, Failed):
            raise MeasureFailed(run.last.words)
    seconds = time.monotonic() - began
    firsts = [run.first or seconds for run in runs]
    return Figures(len(prompts), len(prompts) * tokens / seconds, statistics.median(firsts), max(firsts))


def open_engine(model: LoadedModel, settings: Settings) -> Engine:
    """A running engine over `model`, as the server would have it."""
    context = min(model.context, settings.max_context or model.context)
    engine = Engine(
        model,
        max_batch=settings.max_batch,
        kv_budget=kv_budget(model, context, settings.max_batch),
        watch=Metrics(),
        on_fatal=leave_now,
    )
    engine.start()
    return engine


def verify(directory: str, env: Mapping[str, str]) -> int:
    """Loads a directory, asks it something, prints what came and how fast; the exit code says whether it can serve."""
    try:
        settings = from_environment({**env, "MODEL_PATH": directory})
        began = time.monotonic()
        model = load_model(settings)
        loaded = time.monotonic() - began
        engine = open_engine(model, settings)
        answer = warm_up(model, engine)
        prompt = model.codec.chat([{"role": "user", "content": PROMPT}])
        figures = [measure(engine, [prompt] * number, TOKENS) for number in sorted({1, settings.max_batch})]
    except SettingsError as error:
        return _complain(str(error), exits.USAGE)
    except (LoadError, DamagedModel, WarmUpFailed, MeasureFailed, OSError) as error:
        return _complain(f"{directory} cannot be served: {error}", exits.CANNOT_SERVE)
    print(f"model      {model.family}, {model.parameters / 1e6:.1f} M parameters, {_precision(model, settings)}")
    print(f"loaded in  {loaded:.1f} s")
    wanted = min(model.context, settings.max_context or model.context)
    held = "" if engine.longest >= wanted else f" (memory does not hold {wanted})"
    print(f"context    {min(engine.longest, wanted)} tokens{held}, {model.kv_bytes_per_token} bytes of past each")
    print(f"memory     {_memory(model)}")
    print(f"answer     {PROMPT} -> {answer.text}")
    for figure in figures:
        print(f"speed      {_row(figure)}")
    print("can be served")
    return 0


def bench(directory: str | None, env: Mapping[str, str]) -> int:
    """Prints tokens/s and first-token times at 1, 4, 8 and 16 at once; of the embedded model without a directory."""
    try:
        settings = from_environment({**env, "MODEL_PATH": directory or ""})
        model = load_model(settings)
        engine = open_engine(model, replace(settings, max_batch=max(AT_ONCE)))
        prompt = model.codec.chat([{"role": "user", "content": PROMPT}])
        measure(engine, [prompt], TOKENS)  # the first passes are slower: kernels are chosen, memory is taken
        size = f"{model.parameters / 1e6:.1f} M parameters"
        print(f"{model.family}, {size}, {_precision(model, settings)}, {TOKENS} tokens each")
        for number in AT_ONCE:
            print(_row(measure(engine, [prompt] * number, TOKENS)), flush=True)
    except SettingsError as error:
        return _complain(str(error), exits.USAGE)
    except (LoadError, DamagedModel, MeasureFailed, OSError) as error:
        return _complain(str(error), exits.CANNOT_SERVE)
    return 0


def run(arguments: list[str]) -> int:
    """`verify DIR` or `bench [DIR]`; returns the exit code."""
    logging.getLogger().setLevel(logging.WARNING)
    command, *rest = arguments
    if command == "verify":
        return verify(rest[0], os.environ)
    return bench(rest[0] if rest else None, os.environ)


def _row(figures: Figures) -> str:
    return (
        f"{figures.at_once:3d} at once: {figures.tokens_per_second:8.1f} tokens/s, first token "
        f"{figures.first_token_median * 1000:6.0f} ms median, {figures.first_token_worst * 1000:6.0f} ms worst"
    )


def _precision(model: LoadedModel, settings: Settings) -> str:
    bits = f"int{settings.quantize}" if settings.quantize else str(model.dtype).removeprefix("torch.")
    return f"{bits} on {model.device}"


def _memory(model: LoadedModel) -> str:
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
    if model.device.type != "cuda":
        return f"{resident:.2f} GB resident at most"
    on_gpu = torch.cuda.max_memory_allocated(model.device) / 1e9
    return f"{on_gpu:.2f} GB on the GPU at most, {resident:.2f} GB resident"


def _complain(words: str, code: int) -> int:
    for line in words.splitlines():
        print(f"model_api: {line}", file=sys.stderr)
    return code

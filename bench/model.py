"""The engine against one-at-a-time `generate` and against transformers' own continuous batching, on one random GLM.

    python bench/model.py [--size small|6b] [--rounds N] [--device cpu|cuda] [--threads N]
                           [--processor-time] [--part both|throughput|first-token]

Useful tokens a second at 1, 4, 8 and 16 requests at once, and the time to the first token under staggered arrivals. The
three take turns, round by round, so that whatever else the machine does meets all of them; the figures are medians.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, GlmConfig, GlmForCausalLM

from model_api.backends.base import Defaults, LoadedModel
from model_api.backends.native import RowDecoder
from model_api.engine import Engine
from model_api.metrics import Metrics
from model_api.request import Event, Failed, Finished, Request, Sampling, Text
from model_api.service import leave_now
from model_api.text import Tidy

AT_ONCE = (1, 4, 8, 16)
STAGGERED, GAP = 16, 0.3  # requests, seconds between two arrivals
SIZES = {
    "small": {"hidden_size": 768, "num_hidden_layers": 10, "intermediate_size": 2048, "vocab_size": 32000},
    "6b": {"hidden_size": 4096, "num_hidden_layers": 28, "intermediate_size": 13696, "vocab_size": 65024},
}
TIMEOUT = 1200.0


@dataclass(frozen=True)
class Ask:
    """One request: a prompt and how many tokens to make."""

    prompt: list[int]
    tokens: int


class Letters:
    """Words for a model that has none: one character a token."""

    def chat(self, messages: Sequence[Any]) -> list[int]:
        raise NotImplementedError("this model has no dialogues")

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(0x4E00 + token % 20000) for token in ids)

    def tidy(self) -> Tidy:
        return Tidy()


def make_model(size: str, device: torch.device) -> GlmForCausalLM:
    """A GLM of random weights, made on the device itself: a CPU would take minutes for 6 billion of them."""
    torch.manual_seed(1)
    config = GlmConfig(
        **SIZES[size],
        num_attention_heads=SIZES[size]["hidden_size"] // 64,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=size == "small",
    )
    config.eos_token_id = -1
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            return GlmForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)


def asks(number: int, vocabulary: int) -> list[Ask]:
    """Prompts of 16 to 64 tokens, answers of 24 to 72: as mixed as users are, and the same for all three."""
    chance = random.Random(number)
    return [
        Ask([chance.randrange(10, vocabulary) for _ in range(chance.randint(16, 64))], chance.randint(24, 72))
        for _ in range(number)
    ]


def one_at_a_time(model: GlmForCausalLM, requests: Sequence[Ask]) -> None:
    """`generate`, one request after another."""
    generate: Any = model.generate
    for request in requests:
        ids = torch.tensor([request.prompt], device=model.device)
        mask = torch.ones_like(ids)
        made = generate(ids, attention_mask=mask, max_new_tokens=request.tokens, do_sample=False, eos_token_id=None)
        assert made.shape[1] == len(request.prompt) + request.tokens


class Timed:
    """One request's first token and end."""

    def __init__(self) -> None:
        self.asked = time.monotonic()
        self.first = 0.0
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not isinstance(event, Failed), event
        if isinstance(event, (Text, Finished)) and not self.first:
            self.first = time.monotonic() - self.asked
        if isinstance(event, Finished):
            self.over.set()


class OurEngine:
    """The engine of this project over the model."""

    def __init__(self, model: GlmForCausalLM, size: str) -> None:
        loaded = LoadedModel(
            family="glm",
            codec=Letters(),
            decoder=RowDecoder(model, model.device),
            device=model.device,
            dtype=model.dtype,
            context=2048,
            vocabulary=SIZES[size]["vocab_size"],
            ends=frozenset(),
            defaults=Defaults(),
            parameters=model.num_parameters(),
            kv_bytes_per_token=1,
        )
        self._engine = Engine(
            loaded, max_batch=max(AT_ONCE), kv_budget=max(AT_ONCE) * 2048, watch=Metrics(), on_fatal=leave_now
        )
        self._engine.start()

    def ask(self, request: Ask) -> Timed:
        """Submits one request."""
        timed = Timed()
        wanted = Request(request.prompt, request.tokens, Sampling(temperature=0.0), stream=True, ignore_end=True)
        self._engine.submit(wanted, timed)
        return timed

    def run(self, requests: Sequence[Ask]) -> None:
        """All at once."""
        for timed in [self.ask(request) for request in requests]:
            assert timed.over.wait(TIMEOUT)


class TheirBatching:
    """transformers' continuous batching over its own copy of the model (it changes the model's attention)."""

    def __init__(self, model: GlmForCausalLM) -> None:
        config = GenerationConfig(do_sample=False, max_new_tokens=128, eos_token_id=-1, pad_token_id=0)
        batching = ContinuousBatchingConfig(
            num_blocks=256, page_size=32, max_batch_tokens=2048, allow_block_sharing=False
        )
        init: Any = model.init_continuous_batching
        self._manager: Any = init(generation_config=config, continuous_batching_config=batching)
        self._manager.start()
        self._asked: dict[str, tuple[Timed, int]] = {}
        self._stopping = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, request: Ask) -> Timed:
        """Submits one request."""
        timed = Timed()
        identity = str(time.monotonic_ns())
        self._asked[identity] = timed, request.tokens
        self._manager.add_request(
            request.prompt, request_id=identity, max_new_tokens=request.tokens, streaming=True, eos_token_id=-1
        )
        return timed

    def _read(self) -> None:
        while not self._stopping.is_set():
            output = self._manager.get_result(timeout=1)
            if output is None:
                continue
            assert output.error is None, output.error
            timed, tokens = self._asked[output.request_id]
            if output.generated_tokens and not timed.first:
                timed.first = time.monotonic() - timed.asked
            if output.is_finished():
                assert len(output.generated_tokens) == tokens
                timed.over.set()

    def run(self, requests: Sequence[Ask]) -> None:
        """All at once."""
        for timed in [self.ask(request) for request in requests]:
            assert timed.over.wait(TIMEOUT)

    def stop(self) -> None:
        """Ends its threads."""
        self._stopping.set()
        self._reader.join(5)
        self._manager.stop(block=True)


def seconds(run: Callable[[], None], clock: Callable[[], float]) -> float:
    """How long it takes."""
    began = clock()
    run()
    return clock() - began


def first_tokens(side: OurEngine | TheirBatching, requests: Sequence[Ask]) -> list[float]:
    """Seconds to each first token when one request arrives every GAP seconds."""
    began = time.monotonic()
    timeds = []
    for number, request in enumerate(requests):
        time.sleep(max(0.0, began + number * GAP - time.monotonic()))
        timeds.append(side.ask(request))
    for timed in timeds:
        assert timed.over.wait(TIMEOUT)
    return sorted(timed.first for timed in timeds)


def compare_throughput(
    model: GlmForCausalLM,
    theirs: TheirBatching,
    ours: OurEngine,
    vocabulary: int,
    rounds: int,
    clock: Callable[[], float],
) -> None:
    """Prints useful tokens a second of the three, and ours over each of the others."""
    print(" at once   sequential   transformers   engine   engine/sequential   engine/transformers")
    for number in AT_ONCE:
        requests = asks(number, vocabulary)
        tokens = sum(request.tokens for request in requests)
        sides = (partial(one_at_a_time, model), theirs.run, ours.run)
        rates = [[tokens / seconds(partial(side, requests), clock) for side in sides] for _ in range(rounds)]
        middle = [statistics.median(rate[side] for rate in rates) for side in range(3)]
        over = [statistics.median(rate[2] / rate[side] for rate in rates) for side in range(2)]
        rows = f"{number:8d} {middle[0]:12.1f} {middle[1]:14.1f} {middle[2]:8.1f} {over[0]:19.2f} {over[1]:21.2f}"
        print(rows, flush=True)


def compare_first_tokens(theirs: TheirBatching, ours: OurEngine, vocabulary: int, rounds: int) -> None:
    """Prints the time to the first token under staggered arrivals, by the clock."""
    requests = asks(STAGGERED, vocabulary)
    print(f"first token of {STAGGERED} requests, one every {GAP} s: median and worst, seconds")
    firsts = [(first_tokens(theirs, requests), first_tokens(ours, requests)) for _ in range(rounds)]
    for label, side in (("transformers", 0), ("engine", 1)):
        median = statistics.median(statistics.median(each[side]) for each in firsts)
        worst = statistics.median(each[side][-1] for each in firsts)
        print(f"{label:>12}   {median:.3f}   {worst:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="of torch, on a CPU (default: its own choice)")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the process's processor time and not the clock's: on a CPU that others use too; with --threads 1",
    )
    parser.add_argument("--part", choices=("both", "throughput", "first-token"), default="both")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.monotonic
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = make_model(options.size, device)
    twin = make_model(options.size, device)
    vocabulary = SIZES[options.size]["vocab_size"]
    ours, theirs = OurEngine(model, options.size), TheirBatching(twin)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{model.num_parameters() / 1e6:.0f} M parameters, {model.dtype} on {name}, {options.rounds} rounds")
    print("tokens a second of", "processor time" if options.processor_time else "the clock")
    with torch.inference_mode():
        for side in (ours, theirs):
            side.run(asks(2, vocabulary))
        if options.part != "first-token":
            compare_throughput(model, theirs, ours, vocabulary, options.rounds, clock)
        if options.part != "throughput":
            compare_first_tokens(theirs, ours, vocabulary, options.rounds)
    theirs.stop()


if __name__ == "__main__":
    main()

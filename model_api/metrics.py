"""What the server counts, in Prometheus' form; no prompt, user or client in any label."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
STEP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "model_api_requests", "Requests answered, by endpoint and HTTP status (499: the client left)",
            ["endpoint", "code"], registry=registry,
        )  # fmt: skip
        self._duration = Histogram(
            "model_api_request_seconds", "Arrival to last byte", ["endpoint"], buckets=LATENCY, registry=registry
        )
        self._refused = Counter("model_api_refused", "Requests refused, by reason", ["reason"], registry=registry)
        self._wait = Histogram(
            "model_api_queue_wait_seconds",
            "Time spent in the queue, until the prompt is begun",
            buckets=LATENCY,
            registry=registry,
        )
        self._first = Histogram(
            "model_api_time_to_first_token_seconds", "Acceptance to first token", buckets=LATENCY, registry=registry
        )
        self._token = Histogram(
            "model_api_time_per_token_seconds", "Between two tokens of a request, whatever it waited for",
            buckets=STEP, registry=registry,
        )  # fmt: skip
        self._step = Histogram(
            "model_api_step_seconds", "Time of one step, by kind", ["kind"], buckets=STEP, registry=registry
        )
        self._rows = Histogram("model_api_batch_rows", "Requests in a decode step", buckets=ROWS, registry=registry)
        self._prompt = Counter("model_api_prompt_tokens", "Tokens of prompts begun", registry=registry)
        self._generated = Counter("model_api_generation_tokens", "Tokens generated", registry=registry)
        self._oom = Counter("model_api_out_of_memory", "Steps that did not fit into memory", registry=registry)
        for kind in ("prefill", "decode"):
            self._step.labels(kind)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when somebody asks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    # --- the web side -----------------------------------------------------------------------------------------------

    def answered(self, endpoint: str, code: int, seconds: float) -> None:
        """A request is over."""
        self._requests.labels(endpoint, str(code)).inc()
        self._duration.labels(endpoint).observe(seconds)

    def refused(self, reason: str) -> None:
        """A request was not taken."""
        self._refused.labels(reason).inc()

    # --- the engine's side ------------------------------------------------------------------------------------------

    def stepped(self, kind: str, seconds: float, rows: int) -> None:
        """A pass is over."""
        self._step.labels(kind).observe(seconds)
        if kind == "decode":
            self._rows.observe(rows)

    def began(self, waited: float, prompt_tokens: int) -> None:
        """A request has left the queue."""
        self._wait.observe(waited)
        self._prompt.inc(prompt_tokens)

    def generated(self, gap: float | None) -> None:
        """A request has one more token, `gap` seconds after the one before; None: it is its first."""
        self._generated.inc()
        if gap is not None:
            self._token.observe(gap)

    def first_token(self, seconds: float) -> None:
        """A request's first token came."""
        self._first.observe(seconds)

    def ran_out_of_memory(self) -> None:
        """A pass did not fit into memory."""
        self._oom.inc()

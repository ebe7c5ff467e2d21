"""Every section and key of the configuration, with its type, default, meaning and when a change of it takes effect.

Times are seconds. What the file writes as text and the program needs as something else is parsed here: paths,
addresses, ranges of ports. Rules between keys are in rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, StringConstraints

from hasupervisor.config import values
from hasupervisor.model import Address

DEFAULT_DOCKER_HOST = "unix:///var/run/docker.sock"


class Effect(StrEnum):
    """When a changed value is used."""

    RELOAD = "at the next reload"
    INSTANCE = "for instances started after the reload"
    FIRST_START = "at the very first start"
    RESTART = "after a restart of the daemon"


def key(
    default: object, meaning: str, effect: Effect = Effect.RELOAD, *, used: bool = True, retired: bool = False
) -> Any:
    """A field of a section. `meaning` is the line that the reference shows beside it.

    `used` False: the key is parsed and checked, and waits for the feature that uses it; the reference says so.
    `retired`: it is accepted for one more release, and whoever sets it is told that it does nothing.
    """
    extra: dict[str, Any] = {"effect": effect.value, "used": used, "retired": retired}
    return Field(default, description=meaning, json_schema_extra=extra)


def _parsed(parse: Callable[[str], object]) -> BeforeValidator:
    """Text of the file becomes the value; what a program passes ready-made (a Path, an Address) is taken as it is."""

    def check(value: object) -> object:
        if isinstance(value, str):
            return parse(value)
        if isinstance(value, Path | Address | range):
            return value
        raise ValueError(expected_text(value))

    return BeforeValidator(check)


def expected_text(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"expected text in quotes, got {value}; write {values.toml(str(value))}"
    return f"expected text in quotes, got {values.toml(value)}"


def _index_or_uuid(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _none_if_empty(parse: Callable[[str], object]) -> BeforeValidator:
    return _parsed(lambda text: parse(text) if text else None)


Seconds = Annotated[float, Field(gt=0)]
MaybeZero = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Filled = Annotated[str, _parsed(values.filled)]
Word = Annotated[str, _parsed(values.one_word)]
AbsolutePath = Annotated[Path, _parsed(values.absolute_path)]
OptionalPath = Annotated[Path | None, _none_if_empty(values.absolute_path)]
Environment = Mapping[Annotated[str, _parsed(values.variable)], str]
GatewayPaths = Annotated[tuple[Annotated[str, _parsed(values.gateway_path)], ...], Field(strict=False)]
# TOML has lists, the models have tuples, which nobody changes by mistake.
Arguments = Annotated[tuple[Annotated[str, _parsed(values.argument)], ...], Field(strict=False, min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )


class Service(_Section):
    """What is kept running, and how much of it."""

    name: Annotated[str, _parsed(values.service_name)] = key(
        "chatglm", "instances are <name>-01, <name>-02, ...", Effect.RESTART
    )
    runtime: Literal["docker", "process"] = key("docker", "docker | process", Effect.RESTART)
    instances: Annotated[int, Field(ge=0)] = key(
        2, "wanted at the first start; `scale` and the autoscaler move it afterwards", Effect.FIRST_START
    )
    min: Annotated[int, Field(ge=0)] = key(
        2, "the autoscaler's lower bound; `scale N` may leave min..max only with --force"
    )
    max: Count = key(6, "and its upper bound")
    bind: Annotated[str, _parsed(values.ipv4)] = key(
        "127.0.0.1", "where instance ports are published: an IPv4 address of this host", Effect.INSTANCE
    )
    ports: Annotated[range, _parsed(values.ports)] = key(
        range(8000, 8100), "the first free one is taken; needs two more than max", Effect.INSTANCE
    )
    one_at_a_time: bool = key(True, "on one GPU, one instance loads at a time")


class Docker(_Section):
    """Instances as containers."""

    host: Annotated[str, _parsed(values.engine_url)] = key(
        "", f"empty: DOCKER_HOST, else {DEFAULT_DOCKER_HOST}", Effect.RESTART
    )
    image: Word = key("chatglm-service:latest", "what a new instance runs", Effect.INSTANCE)
    command: Annotated[tuple[str, ...], Field(strict=False)] = key(
        (), "arguments for the image; empty: the image's own", Effect.INSTANCE
    )
    container_port: Annotated[int, Field(ge=1, le=65535)] = key(
        8000, "where the server listens inside its container", Effect.INSTANCE
    )
    volumes: Annotated[tuple[Annotated[str, _parsed(values.volume)], ...], Field(strict=False)] = key(
        ("/models:/models:ro",), "as `docker run -v`", Effect.INSTANCE
    )
    env: Environment = key({"MODEL_PATH": "/models/chatglm-6b"}, "the environment of each container", Effect.INSTANCE)
    network: Word = key("bridge", "bridge, or a network of your own", Effect.INSTANCE)
    shm_size: Annotated[str, _parsed(values.size)] = key("1g", "shared memory of each container", Effect.INSTANCE)
    log_max_size: Annotated[str, _parsed(values.size)] = key(
        "10m", "a container's log file is rotated at this size", Effect.INSTANCE
    )
    log_max_files: Count = key(5, "and so many are kept", Effect.INSTANCE)
    reach: Literal["auto", "direct", "published"] = key(
        "auto",
        "how nginx and the probes get to a container: direct (its own address) | published (its port on the host) | "
        "auto (direct, unless the engine is rootless, remote or Docker Desktop)",
        Effect.RESTART,
    )


class Process(_Section):
    """Instances as plain processes, for machines without Docker."""

    command: Arguments = key(
        ("{python}", "-m", "model_api"),
        "gets HOST, PORT, CUDA_VISIBLE_DEVICES in its environment; {python} (the daemon's own interpreter), {port} and "
        "{name} are filled in",
        Effect.INSTANCE,
    )
    env: Environment = key({}, "added to the environment of each process", Effect.INSTANCE)
    log_dir: OptionalPath = key(None, "empty: <state.dir>/logs; files are rotated, 10 MB x 5", Effect.RESTART)


class Gpu(_Section):
    """Which GPUs instances are placed on."""

    mode: Literal["auto", "required", "off"] = key(
        "auto", "auto (use them where there are any) | required (start nothing without one) | off", Effect.RESTART
    )
    memory_gb: Annotated[float, Field(gt=0)] = key(
        13.0, "GiB that one instance needs on its GPU: ChatGLM-6B FP16 13, INT8 8, INT4 6"
    )
    reserve_gb: MaybeZero = key(0.5, "GiB of each GPU, never promised")
    exclude: Annotated[
        tuple[Annotated[str, BeforeValidator(_index_or_uuid), StringConstraints(min_length=1)], ...],
        Field(strict=False),
    ] = key((), "UUIDs or indices of GPUs that are not ours")


class Health(_Section):
    """When an instance counts as able to serve."""

    path: Annotated[str, _parsed(values.url_path)] = key("/health", "what is asked, by GET")
    interval: Seconds = key(2.0, "from one question to the next")
    timeout: Seconds = key(2.0, "an answer later than this is a failure")
    failures: Count = key(2, "in a row, to leave rotation")
    successes: Count = key(1, "in a row, to come back")
    start_timeout: Seconds = key(600.0, "from start to first serving")
    inference_interval: Seconds = key(30.0, "a short prompt, asked only of an idle instance")
    inference_timeout: Seconds = key(20.0, "its answer later than this is a failure")
    prompt: Filled = key("你好", "that prompt")
    dialect: Literal["auto", "chatglm", "openai"] = key(
        "auto", "auto | chatglm (POST /) | openai (POST /v1/chat/completions)"
    )
    hang_after: Seconds = key(60.0, "work in flight, no progress at all for this long: hung")
    progress_metric: str = key(
        "",
        'a counter in the instance\'s /metrics that grows with work, like "vllm:generation_tokens_total"',
        used=False,
    )


class Repair(_Section):
    """How a failed instance is brought back."""

    backoff: Seconds = key(1.0, "before the first restart; doubles each time, with jitter")
    backoff_max: Seconds = key(300.0, "and grows no further than this")
    attempts: Count = key(5, "within window: then the instance is parked")
    window: Seconds = key(600.0, "failures longer ago than this are forgotten")
    park_retry: MaybeZero = key(1800.0, "a parked instance is tried again after this; 0: never")
    stop_grace: MaybeZero = key(30.0, "from SIGTERM to SIGKILL")


class Drain(_Section):
    """How an instance is taken out without cutting anyone off."""

    timeout: MaybeZero = key(300.0, "the longest wait for the requests in flight")


class Autoscale(_Section):
    """When the number of instances changes by itself."""

    enabled: bool = key(True, "false: only people scale")
    policy: Literal["thresholds", "concurrency"] = key("thresholds", "thresholds | concurrency")
    sample: Seconds = key(10.0, "from one sample to the next")
    evaluate: Seconds = key(30.0, "from one decision to the next")
    up_samples: Count = key(6, "one more instance when, over so many samples, any mean is above its limit:")
    up_response_time_ms: MaybeZero = key(5000, "milliseconds")
    up_gpu_utilization: Percent = key(85, "percent")
    up_connections: MaybeZero = key(50, "requests in flight in one instance, their mean")
    up_turned_away: Percent = key(
        10, "percent of the requests for an answer that got none: the user left before, or all instances were full"
    )
    down_samples: Count = key(12, "one less when, over so many samples, all means are below their limits:")
    down_response_time_ms: MaybeZero = key(2000, "milliseconds")
    down_gpu_utilization: Percent = key(40, "percent")
    down_connections: MaybeZero = key(20, "requests in flight in one instance, their mean")
    slots: Annotated[int, Field(ge=0)] = key(
        0, "for policy concurrency: the requests that one instance works on at once; 0: learned"
    )


class Nginx(_Section):
    """The gateway."""

    mode: Literal["system", "own", "off"] = key(
        "system", "system (the distribution's nginx) | own (the daemon runs one itself) | off", Effect.RESTART
    )
    listen: Annotated[Address, _parsed(values.listen)] = key(
        Address(values.ANY_HOST, 80), "the gateway's host:port, or a port on every address"
    )
    server_name: Annotated[str, _parsed(values.server_name)] = key("_", "as nginx's server_name; _ is any")
    dir: Annotated[Path, _parsed(values.nginx_path)] = key(
        Path("/var/lib/chatglm-ha/nginx"),
        "the daemon's files: upstream.conf, gateway.conf; nginx.conf includes them by plain path",
        Effect.RESTART,
    )
    binary: Filled = key("nginx", "the program", Effect.RESTART)
    reload: str = key("", "empty: the reload socket if it exists, else SIGHUP to the master", Effect.RESTART)
    tries: Annotated[int, Field(ge=1, le=100)] = key(3, "how many instances one request may be sent to")
    max_fails: Annotated[int, Field(ge=0, le=1_000_000)] = key(
        0, "nginx's own marking of failed servers; 0: off, the daemon checks itself and comes back sooner"
    )
    fail_timeout: Annotated[int, Field(ge=1, le=86_400)] = key(30, "with max_fails: whole seconds that a mark lasts")
    max_in_flight: Annotated[int, Field(ge=0, le=1_000_000)] = key(
        0, "requests in one instance; beyond it the gateway says 503 with Retry-After; 0: no cap"
    )
    hold: Annotated[float, Field(ge=0, le=86_400)] = key(
        10.0, "while nobody serves, requests wait this long for one that does, then 503; 0: off"
    )
    hold_max: Count = key(1000, "requests held at once; no more than the files that the daemon may open, less 320")
    paths: GatewayPaths = key(
        (),
        'more than POST /, /v1/* and GET /health that clients may ask instances for: "/tokenize", or "/files/*" for '
        "all that is below",
    )
    room: str = key("", "no longer used: nginx asks the daemon on a Unix socket in dir; remove it", retired=True)


class Control(_Section):
    """The socket of chatglm-hactl."""

    socket: AbsolutePath = key(Path("/run/chatglm-ha/control.sock"), "its path", Effect.RESTART)
    group: str = key(
        "chatglm-ha", "may use it (mode 0660); ignored where it does not exist; empty: the daemon's own", Effect.RESTART
    )


class Http(_Section):
    """The page and the metrics."""

    listen: Annotated[Address | None, _none_if_empty(values.address)] = key(
        Address("127.0.0.1", 9180), "GET only: /metrics, the dashboard at /, /healthz; empty: off", Effect.RESTART
    )


class State(_Section):
    """What the daemon remembers."""

    dir: AbsolutePath = key(Path("/var/lib/chatglm-ha"), "its database", Effect.RESTART)


class Log(_Section):
    """The daemon's own log."""

    level: Literal["debug", "info", "warning", "error"] = key("info", "debug | info | warning | error")
    format: Literal["auto", "json", "console"] = key(
        "auto", "auto (console on a terminal, else json) | json | console", Effect.RESTART
    )
    file: OptionalPath = key(None, "empty: stderr only", Effect.RESTART)


class Config(_Section):
    """The whole configuration. `Config()` is the defaults; `hasupervisor.config.load` reads and checks a file."""

    service: Service = Service()
    docker: Docker = Docker()
    process: Process = Process()
    gpu: Gpu = Gpu()
    health: Health = Health()
    repair: Repair = Repair()
    drain: Drain = Drain()
    autoscale: Autoscale = Autoscale()
    nginx: Nginx = Nginx()
    control: Control = Control()
    http: Http = Http()
    state: State = State()
    log: Log = Log()

    # "section.key" -> "config.toml:9"; set by `load`, and no part of what is equal
    _origins: Mapping[str, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Equal values, wherever they were set."""
        return isinstance(other, Config) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]  # environments are mappings

    @property
    def log_dir(self) -> Path:
        """Where the process runtime writes the instances' output."""
        return self.process.log_dir or self.state.dir / "logs"

    @property
    def docker_host(self) -> str:
        """Where the Docker engine listens; `load` has already put DOCKER_HOST in where the file says nothing."""
        return self.docker.host or DEFAULT_DOCKER_HOST

    def where(self, name: str) -> str:
        """Where "section.key" was set: "config.toml:9", "environment CHATGLM_HA_…", "command line" or "default"."""
        return self._origins.get(name, "default")

    def describe(self) -> dict[str, dict[str, object]]:
        """Every key in plain values, for people: secrets in environments are masked."""
        return {
            section: {name: values.shown(name, getattr(part, name)) for name in type(part).model_fields}
            for section, part in self
        }

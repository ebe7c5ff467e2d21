"""Every kind of mistake in a configuration, with the exact line that a person reads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hasupervisor.config import Config, ConfigError, document, load

# (what is wrong, the file, the lines of the error without "config.toml:" in front of each)
MISTAKES: list[tuple[str, str, list[str]]] = [
    # --- not TOML ---
    (
        "a section is not closed",
        "[service\nmin = 2\n",
        ["1: not TOML: expected ']' at the end of a table declaration (column 9)"],
    ),
    (
        "a key in the manner of YAML",
        "[service]\nmin: 3\n",
        ["2: service.min: not TOML: a key and its value are joined by =; write min = 3"],
    ),
    (
        "text without quotes",
        "[service]\n\nruntime = docker\n",
        ['3: service.runtime: not TOML: text stands in quotes; write runtime = "docker"'],
    ),
    (
        "a range without quotes",
        "[service]\nports = 8000-8099\n",
        ['2: service.ports: not TOML: text stands in quotes; write ports = "8000-8099"'],
    ),
    (
        "a secret without quotes is not repeated",
        "[docker.env]\nAPI_KEY = abc123\n",
        ['2: docker.env.API_KEY: not TOML: text stands in quotes; write API_KEY = "***"'],
    ),
    ("no value", "[service]\nmin =\n", ["2: service.min: not TOML: there is no value after ="]),
    (
        "a string that does not end",
        '[service]\nname = "chatglm\nmin = 2\n',
        ["2: service.name: not TOML: the text has no closing quote"],
    ),
    (
        "a list that does not end",
        '[docker]\nvolumes = [\n  "/a:/b",\n',
        ["2: docker.volumes: not TOML: the list, table or text that begins here has no end"],
    ),
    (
        "a key given twice",
        "[service]\nmin = 1\nmax = 4\nmin = 2\n",
        ["4: service.min: given twice; the first is on line 2"],
    ),
    (
        "a section given twice",
        "[service]\nmin = 1\n[drain]\ntimeout = 3\n[service]\nmax = 4\n",
        ["5: service: given twice; the first is on line 1"],
    ),
    (
        "a section after its dotted keys",
        "service.min = 1\n[service]\nmax = 4\n",
        ["2: service: the section has begun above already; move these keys there, or remove [service]"],
    ),
    # --- unknown ---
    (
        "a slip in a key",
        "[autoscale]\nup_conections = 50\n",
        ["2: autoscale.up_conections: unknown key; did you mean up_connections?"],
    ),
    (
        "a key of another section",
        "[service]\nlevel = 'info'\n",
        ["2: service.level: unknown key; did you mean log.level?"],
    ),
    ("a key of nobody", "[service]\nzzz = 1\n", ["2: service.zzz: unknown key"]),
    ("a slip in a section", "[services]\nmin = 1\n", ["1: services: unknown section; did you mean [service]?"]),
    (
        "a section of nobody",
        "[zzz]\nmin = 1\n",
        [
            "1: zzz: unknown section; there are service, docker, process, gpu, health, repair, drain, autoscale, "
            "nginx, "
            "control, http, state, log"
        ],
    ),
    (
        "a key before every section",
        "# mine\ninstances = 3\n",
        ["2: instances: a key outside of every section; did you mean service.instances, under [service]?"],
    ),
    (
        "a section as a value",
        "service = 3\n",
        ["1: service: is a section; write [service] on a line of its own and its keys below it"],
    ),
    (
        "a section as one of many",
        "[[service]]\nmin = 1\n",
        ["1: service: there is one section of this name; write [service]"],
    ),
    # --- wrong types and values ---
    ("a word for a number", '[service]\nmax = "six"\n', ['2: service.max: expected a whole number, got "six"']),
    ("a broken number of instances", "[service]\nmax = 2.5\n", ["2: service.max: expected a whole number, got 2.5"]),
    (
        "a duration with a unit",
        '[drain]\ntimeout = "5m"\n',
        ['2: drain.timeout: expected a number, got "5m"; times are seconds: write 300'],
    ),
    (
        "a number in quotes",
        '[drain]\ntimeout = "300"\n',
        ['2: drain.timeout: expected a number, got "300"; write it without quotes'],
    ),
    ("true for a number", "[repair]\nattempts = true\n", ["2: repair.attempts: expected a whole number, got true"]),
    (
        "a word for a switch",
        '[autoscale]\nenabled = "no"\n',
        ['2: autoscale.enabled: expected true or false, got "no"'],
    ),
    ("a number for text", "[nginx]\nlisten = 80\n", ['2: nginx.listen: expected text in quotes, got 80; write "80"']),
    (
        "text for a list",
        '[docker]\ncommand = "serve --fast"\n',
        ['2: docker.command: expected a list like ["one", "two"], got "serve --fast"'],
    ),
    (
        "text for a table",
        '[docker]\nenv = "A=1"\n',
        ['2: docker.env: expected a table like { NAME = "value" }, got "A=1"'],
    ),
    (
        "a number in an environment",
        "[docker.env]\nMODEL_PATH = '/m'\nMAX_BATCH = 8\n",
        ['3: docker.env.MAX_BATCH: expected text in quotes, got 8; write "8"'],
    ),
    (
        "a secret of the wrong type is not repeated",
        "[docker.env]\nAPI_KEY = 12345\n",
        ['2: docker.env.API_KEY: expected text in quotes, got "***"'],
    ),
    (
        "a name that no environment can have",
        '[process]\nenv = { "A B" = "1" }\n',
        ['2: process.env.A B: "A B" cannot be the name of an environment variable'],
    ),
    ("infinity", "[health]\ntimeout = inf\n", ["2: health.timeout: expected a finite number, got inf"]),
    ("no time at all", "[health]\ninterval = 0\n", ["2: health.interval: must be above 0, got 0"]),
    ("a negative time", "[repair]\npark_retry = -1.0\n", ["2: repair.park_retry: must be at least 0, got -1.0"]),
    ("no attempts", "[repair]\nattempts = 0\n", ["2: repair.attempts: must be at least 1, got 0"]),
    (
        "a port that does not exist",
        "[docker]\ncontainer_port = 70000\n",
        ["2: docker.container_port: must be at most 65535, got 70000"],
    ),
    (
        "more than all of a GPU",
        "[autoscale]\nup_gpu_utilization = 101\n",
        ["2: autoscale.up_gpu_utilization: must be at most 100, got 101"],
    ),
    ("no memory", "[gpu]\nmemory_gb = 0\n", ["2: gpu.memory_gb: must be above 0, got 0"]),
    (
        "a slip in a choice",
        '[service]\nruntime = "dokcer"\n',
        ['2: service.runtime: "dokcer" is not one of docker, process; did you mean "docker"?'],
    ),
    (
        "another choice",
        '[health]\ndialect = "grpc"\n',
        ['2: health.dialect: "grpc" is not one of auto, chatglm, openai'],
    ),
    (
        "a name that no container can have",
        '[service]\nname = "ChatGLM_6B"\n',
        [
            '2: service.name: "ChatGLM_6B" cannot be a name: small letters, digits and -, beginning with a letter or '
            "digit, at most 50 (instances are called after it: chatglm-01, ...)"
        ],
    ),
    (
        "a name instead of an address",
        '[service]\nbind = "localhost"\n',
        ['2: service.bind: expected an IPv4 address; write "127.0.0.1" for localhost'],
    ),
    (
        "no address",
        '[service]\nbind = "10.0.0.300"\n',
        ['2: service.bind: "10.0.0.300" is not an IPv4 address like 127.0.0.1'],
    ),
    (
        "a range backwards",
        '[service]\nports = "8099-8000"\n',
        ['2: service.ports: "8099-8000" runs backwards; write "8000-8099"'],
    ),
    (
        "no range",
        '[service]\nports = "8000..8099"\n',
        ['2: service.ports: "8000..8099" is not a range of ports (1 to 65535) like 8000-8099'],
    ),
    (
        "a range beyond the last port",
        '[service]\nports = "65000-66000"\n',
        ['2: service.ports: "65000-66000" is not a range of ports (1 to 65535) like 8000-8099'],
    ),
    ("no image", '[docker]\nimage = ""\n', ["2: docker.image: must not be empty"]),
    ("an image of two words", '[docker]\nimage = "a b"\n', ['2: docker.image: "a b" must not contain spaces']),
    (
        "an engine without a scheme",
        '[docker]\nhost = "/var/run/docker.sock"\n',
        [
            '2: docker.host: "/var/run/docker.sock" is not an engine\'s address like unix:///var/run/docker.sock or '
            "tcp://host:2376"
        ],
    ),
    (
        "two slashes",
        '[docker]\nhost = "unix://run/docker.sock"\n',
        ['2: docker.host: "unix://run/docker.sock": a socket\'s path is absolute; write unix:///var/run/docker.sock'],
    ),
    (
        "one bad volume of several, on its own line",
        '[docker]\nvolumes = [\n  "/models:/models:ro",\n  "./data:/data",\n]\n',
        ['4: docker.volumes: "./data:/data": "./data" must be an absolute path or the name of a volume'],
    ),
    (
        "no volume",
        '[docker]\nvolumes = ["/models"]\n',
        ['2: docker.volumes: "/models" is not a volume like /models:/models:ro'],
    ),
    (
        "no size",
        '[docker]\nshm_size = "1 GB"\n',
        ['2: docker.shm_size: "1 GB" is not a size like 10m or 1g (a whole number and b, k, m or g)'],
    ),
    (
        "a placeholder of nobody",
        '[process]\ncommand = ["vllm", "--port", "{port}"]\n',
        [
            "2: process.command: unknown placeholder {port}; only {python} is replaced (HOST, PORT: in the "
            "environment, "
            'like ["sh", "-c", "exec server --port $PORT"])'
        ],
    ),
    ("no command", "[process]\ncommand = []\n", ["2: process.command: must not be empty"]),
    (
        "a path without its first slash",
        '[state]\ndir = "var/lib/chatglm-ha"\n',
        [
            '2: state.dir: "var/lib/chatglm-ha" is not an absolute path; begin it with / (or with ./ for one relative '
            "to where the daemon is started)"
        ],
    ),
    ("no path", '[state]\ndir = ""\n', ["2: state.dir: must not be empty"]),
    (
        "a path that nginx would read otherwise",
        '[nginx]\ndir = "/var/lib/$host"\n',
        ['2: nginx.dir: "/var/lib/$host": $ in a path means something else to nginx; name another folder'],
    ),
    (
        "a URL path without its slash",
        '[health]\npath = "health"\n',
        ['2: health.path: "health" is not a path of a URL; begin it with /, like "/health"'],
    ),
    ("no prompt", '[health]\nprompt = " "\n', ["2: health.prompt: must not be empty"]),
    (
        "no port",
        '[nginx]\nlisten = "127.0.0.1:http"\n',
        ['2: nginx.listen: "127.0.0.1:http": "http" is not a port (1 to 65535)'],
    ),
    (
        "IPv6",
        '[http]\nlisten = "[::1]:9180"\n',
        ['2: http.listen: "[::1]:9180": IPv6 is not supported here; write an IPv4 address or a name, host:port'],
    ),
    (
        "a page on every address by accident",
        '[http]\nlisten = "9180"\n',
        ['2: http.listen: "9180" is not host:port, like 127.0.0.1:9180'],
    ),
    (
        "a server name that ends a directive",
        '[nginx]\nserver_name = "a; deny all"\n',
        ['2: nginx.server_name: "a; deny all": ; cannot be in a server name'],
    ),
    ("no card number", "[gpu]\nexclude = [1.5]\n", ['2: gpu.exclude: expected text in quotes, got 1.5; write "1.5"']),
    # --- combinations ---
    ("max below min", "[service]\nmin = 2\nmax = 1\ninstances = 2\n", ["3: service.max: 1 is below service.min = 2"]),
    ("min above the default max", "[service]\nmin = 9\n", ["2: service.min: 9 is above service.max = 6 (the default)"]),
    (
        "fewer than min",
        "[service]\ninstances = 1\n",
        ["2: service.instances: 1 is below service.min = 2 (the default)"],
    ),
    ("more than max", "[service]\nmax = 4\ninstances = 5\n", ["3: service.instances: 5 is above service.max = 4"]),
    (
        "too few ports",
        '[service]\nports = "8000-8006"\n',
        [
            "2: service.ports: 7 ports are too few for service.max = 6 (the default), which needs 8: one each, one "
            "for a "
            "replacement while the old one drains, one for an old one that cannot be ended"
        ],
    ),
    (
        "too many instances for the ports",
        "[service]\nmax = 99\n",
        [
            '2: service.max: 99 needs 101 ports, service.ports = "8000-8099" (the default) has 100: one each, one for '
            "a "
            "replacement while the old one drains, one for an old one that cannot be ended"
        ],
    ),
    (
        "the gateway among the instances",
        '[nginx]\nlisten = "127.0.0.1:8080"\n',
        ['2: nginx.listen: port 8080 is one of service.ports = "8000-8099" (the default), which are for instances'],
    ),
    (
        "the instances around the page",
        '[service]\nports = "9100-9199"\n',
        [
            '2: service.ports: holds the port of nginx.room = "127.0.0.1:9181" (the default)',
            '2: service.ports: holds the port of http.listen = "127.0.0.1:9180" (the default)',
        ],
    ),
    (
        "the page where the room is",
        '[http]\nlisten = "localhost:9181"\n',
        ['2: http.listen: the same port as nginx.room = "127.0.0.1:9181" (the default)'],
    ),
    (
        "the gateway on every address collides with the page on one",
        '[nginx]\nlisten = "9180"\n',
        ['2: nginx.listen: the same port as http.listen = "127.0.0.1:9180" (the default)'],
    ),
    (
        "a port for root only",
        '[nginx]\nmode = "own"\n',
        [
            '2: nginx.mode: "own" cannot have nginx.listen = "80" (the default): only root may listen on a port below '
            "1024; start the daemon as root, take a port from 1024 on, or leave it to the system's nginx "
            '(nginx.mode = "system")'
        ],
    ),
    (
        "a room that the world can enter",
        '[nginx]\nroom = "10.0.0.1:9181"\n',
        ["2: nginx.room: must be on loopback, like 127.0.0.1:9181; it is for nginx alone"],
    ),
    (
        "a socket path that the kernel refuses",
        f'[control]\nsocket = "/{"x" * 107}"\n',
        [
            f"2: control.socket: /{'x' * 107} is longer than the 107 bytes that the kernel allows for a socket; "
            f"choose a "
            "shorter path"
        ],
    ),
    (
        "a hang before a timeout",
        "[health]\nhang_after = 1.0\n",
        ["2: health.hang_after: 1.0 is below health.timeout = 2.0 (the default)"],
    ),
    (
        "a timeout beyond a hang",
        "[health]\ntimeout = 61.0\n",
        ["2: health.timeout: 61.0 is above health.hang_after = 60.0 (the default)"],
    ),
    (
        "a limit below the first wait",
        "[repair]\nbackoff = 400.0\n",
        ["2: repair.backoff: 400.0 is above repair.backoff_max = 300.0 (the default)"],
    ),
    (
        "a window in which nothing is ever parked",
        "[repair]\nattempts = 9\nwindow = 60.0\n",
        [
            "3: repair.window: 60 is too short, nothing would ever be parked: 9 attempts take at least 255 s with "
            "these backoffs"
        ],
    ),
    (
        "thresholds that scale up and down in turn",
        "[autoscale]\nup_connections = 20\n",
        [
            "2: autoscale.up_connections: 20.0 must be above autoscale.down_connections = 20 (the default), or it "
            "would "
            "scale up and down in turn"
        ],
    ),
    (
        "decisions without a sample",
        "[autoscale]\nevaluate = 5.0\n",
        ["2: autoscale.evaluate: 5.0 is below autoscale.sample = 10.0 (the default)"],
    ),
    (
        "every container on the host's one port",
        '[docker]\nnetwork = "host"\n',
        [
            '2: docker.network: "host" cannot work, every instance would want the same port; use "bridge" or a '
            "network of your own"
        ],
    ),
    (
        "a variable that the daemon sets",
        '[service]\nruntime = "process"\n[process.env]\nPORT = "9000"\n',
        ["4: process.env.PORT: the daemon sets it for each instance; remove it"],
    ),
    (
        "GPUs chosen by hand while they are required from the daemon",
        '[gpu]\nmode = "required"\n[docker]\nenv = { NVIDIA_VISIBLE_DEVICES = "all" }\n',
        [
            '4: docker.env.NVIDIA_VISIBLE_DEVICES: the daemon chooses each instance\'s GPUs, gpu.mode = "required"; '
            'remove it, or set gpu.mode = "off"'
        ],
    ),
    # --- several at once, from top to bottom ---
    (
        "all at once",
        '[nginx]\ntries = 0\n[service]\nmin = "a"\nmax = 1\ninstances = 7\n[log]\nlevle = "info"\n',
        [
            "2: nginx.tries: must be at least 1, got 0",
            '4: service.min: expected a whole number, got "a"',
            "6: service.instances: 7 is above service.max = 1",
            "8: log.levle: unknown key; did you mean level?",
        ],
    ),
]


@pytest.mark.parametrize(("text", "lines"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_told_by_line_key_and_what_was_meant(tmp_path: Path, text: str, lines: list[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(file, {}, lowest=1024)
    assert str(caught.value).split("\n") == [f"{file}:{line}" for line in lines]
    assert [str(problem) for problem in caught.value.problems] == [f"{file}:{line}" for line in lines]


def test_each_mistake_of_the_table_is_another_one() -> None:
    assert len({text for _, text, _ in MISTAKES}) == len(MISTAKES)


def test_bytes_that_are_not_utf8_are_told_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes("[health]\nprompt = '你好'\n".encode("gb18030"))
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(caught.value) == f"{file}:2: not UTF-8: byte 0xc4; save the file as UTF-8"


def test_a_file_that_is_not_there_is_named_with_the_next_command(tmp_path: Path) -> None:
    file = tmp_path / "konfig.toml"
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(caught.value) == f"{file}: there is no such file; see what there is with: ls -l {tmp_path}"


def test_without_the_default_file_nothing_is_assumed_and_the_way_to_get_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / "etc" / "config.toml"
    monkeypatch.setattr(document, "DEFAULT_PATH", default)
    with pytest.raises(ConfigError) as caught:
        load(None, {})
    command = f"mkdir -p {default.parent} && {sys.executable} -m hasupervisor.config > {default}"
    assert str(caught.value) == f"{default}: there is no such file; for one with every key and its default: {command}"
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    assert load(None, {}) == Config()


def test_a_file_that_this_user_may_not_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    file.chmod(0)
    with _not_root(), pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(caught.value) == (
        f"{file}: cannot be read: permission denied; see its owner and mode with: ls -ld {file}"
    )


@contextmanager
def _not_root() -> Iterator[None]:
    """Root may read everything; for a moment this process is nobody."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {})
    assert str(caught.value) == (
        f"{tmp_path}: cannot be read: is a directory; see its owner and mode with: ls -ld {tmp_path}"
    )

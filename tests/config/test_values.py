"""Wrong types and values of single keys, with the exact line that a person reads."""

from __future__ import annotations

import pytest

from tests.config.conftest import Told

# what is wrong, the file, and the lines that a person reads, without the file's name in front
MISTAKES: list[tuple[str, str, list[str]]] = [
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
        "a slip in a placeholder, on its own line",
        '[process]\ncommand = [\n  "vllm",\n  "--port={prot}",\n]\n',
        ["4: process.command: unknown placeholder {prot}; did you mean {port}? {python}, {port}, {name} are filled in"],
    ),
    (
        "a placeholder of nobody",
        '[process]\ncommand = ["vllm", "{gpu}"]\n',
        ["2: process.command: unknown placeholder {gpu}; {python}, {port}, {name} are filled in"],
    ),
    (
        "the only word is wrong: it is not told that the list is empty without it",
        '[process]\ncommand = ["{gpu}"]\n',
        ["2: process.command: unknown placeholder {gpu}; {python}, {port}, {name} are filled in"],
    ),
    (
        "a shell's variable that would be filled in",
        """[process]\ncommand = ["sh", "-c", "exec vllm --port ${port}"]\n""",
        ["2: process.command: ${port} would be filled in behind the $; write {port}, or a variable of another name"],
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
        "no IPv6 address",
        '[nginx]\nlisten = "[::g]:80"\n',
        ['2: nginx.listen: "[::g]:80": "::g" is not an IPv6 address'],
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
]


@pytest.mark.parametrize(("text", "lines"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_wrong_value_is_told_by_line_key_and_what_was_expected(told: Told, text: str, lines: list[str]) -> None:
    assert told(text) == lines

"""Combinations that cannot work, and all mistakes at once, with the exact lines that a person reads."""

from __future__ import annotations

import pytest

from tests.config.conftest import Told

# what is wrong, the file, and the lines that a person reads, without the file's name in front
MISTAKES: list[tuple[str, str, list[str]]] = [
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
            '2: service.ports: holds the port of http.listen = "127.0.0.1:9180" (the default)',
        ],
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
        "a socket path that the kernel refuses",
        f'[control]\nsocket = "/{"x" * 107}"\n',
        [
            f"2: control.socket: /{'x' * 107} would be longer than the 107 bytes that the kernel allows for a socket; "
            "choose a shorter path",
        ],
    ),
    (
        "a folder in which a socket would have too long a path",
        f'[nginx]\ndir = "/{"x" * 96}"\n',
        [
            f"2: nginx.dir: /{'x' * 96}/access.sock would be longer than the 107 bytes that the kernel allows for a "
            "socket; choose a shorter path"
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
def test_keys_that_do_not_fit_are_told_by_the_one_that_was_set(told: Told, text: str, lines: list[str]) -> None:
    assert told(text) == lines

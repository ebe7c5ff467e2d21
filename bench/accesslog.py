"""What nginx's access log costs the daemon at 10,000 lines a second, and whether its figures are nginx's own.

    python bench/accesslog.py [--rate 10000] [--seconds 10]

A real nginx proxies so many requests a second and writes each to the log socket of a real daemon, in the format and
with the directive of the daemon's own gateway.conf, and to a file beside it. Afterwards the daemon's counts and the
figures of its status are compared with that file. Requests wait up to some 20 ms for their turn (limit_req), and one in
fifty is answered 500, so that there is something to compare; connections are kept, which the gateway itself does not
allow: two cores do not make so many new ones a second. Exits 1 where the daemon takes 40 % of a core or more, a count
a mean or a quantile is more than 1 % off (a quantile: or a millisecond, in which nginx counts); 2 where something does
not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # what starts a daemon is the tests' own

from bench.daemon import STANDIN, free_ports  # noqa: E402
from tests.real.daemon import Daemon, as_processes, daemon  # noqa: E402

CPU_BOUND, BOUND = 0.40, 0.01
CLOCK_MS = 1.0  # nginx writes whole ones
SETTLE_S = 3.0
LATE_S = 20.0
READY_S = 10.0

CONF = """{user}daemon off;
master_process on;
worker_processes 2;
worker_rlimit_nofile 8192;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    geo $ha_generation {{ default 1; }}
{log_format}
    limit_req_zone $server_name zone=turns:1m rate={turns}r/s;
    split_clients $request_id $outcome {{ 2% 500; * 200; }}
    upstream instances {{
        server 127.0.0.1:{first};
        server 127.0.0.1:{second};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{gateway} backlog=4096;
        server_name gateway;
        limit_req zone=turns burst=20000;
        limit_req_log_level info;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        {socket_log}
        access_log {folder}/access.log ha;
        location / {{ proxy_pass http://instances; }}
    }}
    server {{
        listen 127.0.0.1:{first} backlog=4096;
        listen 127.0.0.1:{second} backlog=4096;
        location / {{
            if ($outcome = 500) {{ return 500 "no"; }}
            return 200 "你好，我是人工智能助手。";
        }}
    }}
}}
"""

CLIENT = """
import selectors, socket, sys, time
port, rate, seconds, count, tick = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), 100, 0.02
request = b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: bench\\r\\nContent-Length: 2\\r\\n\\r\\n{}"
held = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
for one in held:
    one.setblocking(False)
began, sent, turn = time.monotonic(), 0, 0
while (now := time.monotonic() - began) < seconds:
    due = int(min(now + tick, seconds) * rate) - sent
    for place in range(count):
        share = (due + place) // count
        if share:
            held[(turn + place) % count].send(request * share)
            sent += share
    turn += 1
    for one in held:
        try:
            one.recv(65536)
        except BlockingIOError:
            pass
    time.sleep(max(0.0, turn * tick - (time.monotonic() - began)))
quiet = time.monotonic() + 2.0
while time.monotonic() < quiet:  # whoever hangs up early is logged as 499
    for one in held:
        try:
            if one.recv(65536):
                quiet = time.monotonic() + 2.0
        except BlockingIOError:
            pass
    time.sleep(tick)
print(sent, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure as the daemon has it and as nginx's file has it."""

    what: str
    ours: float
    file: float
    bound: float | None  # relative; None: shown only

    @property
    def off(self) -> float:
        return abs(self.ours - self.file) / self.file if self.file else abs(self.ours)

    @property
    def kept(self) -> bool:
        return self.bound is None or self.off <= self.bound

    def __str__(self) -> str:
        promise = f"(within {100 * self.bound:g} %)" if self.bound is not None else ""
        return f"{self.what:<24}{self.ours:>12.3f}{self.file:>12.3f}{100 * self.off:>8.2f} %  {promise}"


@contextlib.contextmanager
def nginx(host: Daemon, ports: Sequence[int], turns: int) -> Iterator[Path]:
    """A real nginx that logs to the daemon's socket as the daemon's own gateway does; its folder."""
    folder = host.folder / "bench"
    folder.mkdir()
    written = (host.nginx / "gateway.conf").read_text(encoding="utf-8")
    found = re.search(r"^log_format ha .*?;$", written, re.DOTALL | re.MULTILINE)
    logged = re.search(r'^ *(access_log "?syslog:.*;)$', written, re.MULTILINE)
    if found is None or logged is None:
        print(f"{host.nginx}/gateway.conf has no log_format or access_log to take over", file=sys.stderr)
        raise SystemExit(2)
    first, second, gateway = ports
    conf = folder / "nginx.conf"
    conf.write_text(
        CONF.format(
            user="user root;\n" if os.geteuid() == 0 else "",  # as the daemon: the workers write to its socket
            folder=folder,
            log_format=found[0],
            socket_log=logged[1],
            turns=turns,
            first=first,
            second=second,
            gateway=gateway,
        ),
        encoding="utf-8",
    )
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin"}
    process = subprocess.Popen(["nginx", "-c", str(conf), "-e", str(folder / "error.log")], env=environment)
    try:
        yield folder
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(READY_S)


def listens(port: int) -> bool:
    return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in psutil.net_connections("tcp"))


def until(condition: Callable[[], bool], what: str, within: float) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            print(f"not within {within:g} s: {what}", file=sys.stderr)
            raise SystemExit(2)
        time.sleep(0.05)


def counted(host: Daemon, codes: str = r"\d+") -> float:
    """Requests that the daemon has counted, with such a status."""
    pattern = re.compile(rf'^chatglm_ha_http_requests_total{{code="{codes}",instance="[^"]*"}}$')
    return sum(value for name, value in host.metrics().items() if pattern.match(name))


def seconds_in_all(host: Daemon) -> float:
    total = "chatglm_ha_http_request_duration_seconds_sum"
    return sum(value for name, value in host.metrics().items() if name.startswith(total))


def quantile(what: str, ours: float, file: float) -> Figure:
    return Figure(what, ours, file, max(BOUND, CLOCK_MS / file if file else 1.0))


def compared(host: Daemon, log: Path) -> list[Figure]:
    """The daemon's figures beside those of the file."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    took = sorted(line["rt"] for line in lines if line["st"] < 500)
    errors = sum(line["st"] >= 500 for line in lines)
    traffic = host.status()["traffic"]
    latency = traffic["latency_ms"]
    return [
        Figure("requests", counted(host), len(lines), BOUND),
        Figure("of them 500", counted(host, "500"), errors, BOUND),
        Figure("seconds in all", seconds_in_all(host), sum(line["rt"] for line in lines), BOUND),
        Figure("share of 5xx", 100 * traffic["error_rate"], 100 * errors / len(lines), BOUND),
        Figure("mean, ms", latency["mean"], 1000 * sum(took) / len(took), BOUND),
        quantile("p50, ms", latency["p50"], 1000 * took[len(took) // 2]),
        quantile("p95, ms", latency["p95"], 1000 * took[int(0.95 * len(took))]),
    ]


def measure(host: Daemon, ports: Sequence[int], rate: int, seconds: float) -> bool:
    """Prints the figures; whether all promises were kept."""
    process = psutil.Process(host.pid)
    with nginx(host, ports, turns=round(rate * 1.2)) as folder:
        until(lambda: listens(ports[2]), "nginx listens", READY_S)
        time.sleep(SETTLE_S)
        used, began = sum(process.cpu_times()[:2]), time.monotonic()
        client = [sys.executable, "-c", CLIENT, str(ports[2]), str(rate), str(seconds)]
        with subprocess.Popen(client, stdout=subprocess.PIPE, text=True) as sender:
            time.sleep(seconds)
            share = (sum(process.cpu_times()[:2]) - used) / (time.monotonic() - began)
            assert sender.stdout is not None
            sent = int(sender.stdout.read())
        log = folder / "access.log"
        lines = len(log.read_bytes().splitlines())
        deadline = time.monotonic() + LATE_S
        while counted(host) < lines and time.monotonic() < deadline:
            time.sleep(0.2)
        figures = compared(host, log)
    print(
        f"{sent} requests in {seconds:g} s, {lines} lines in nginx's file, {lines - counted(host):.0f} lost on the way"
    )
    print(f"the daemon: {100 * share:.1f} % of a core (must be below {100 * CPU_BOUND:g} %)\n")
    print(f"{'':<24}{'daemon':>12}{'file':>12}{'off':>10}")
    print("\n".join(map(str, figures)))
    return share < CPU_BOUND and all(figure.kept for figure in figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rate", type=int, default=10_000, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    ports = free_ports(16)
    with daemon(ports[:12], as_processes(STANDIN)) as host:
        host.start()
        host.wait_until_green(2, 60.0)
        kept = measure(host, ports[13:16], options.rate, options.seconds)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

"""What the gateway is told by the configuration, and the addresses that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# A name of our own in the gateway's server block: the proof of a generation asks for it, whatever `server_name` is.
OWN_NAME = "chatglm-ha.internal"


class NginxTrouble(Exception):
    """nginx could not be made to do something; the text is a sentence for people, with nginx's own words."""


@dataclass(frozen=True, slots=True)
class NginxSettings:
    """The keys of [nginx] (CONTRACT 2) that this package uses, and facts from elsewhere. Times are seconds."""

    dir: Path
    mode: str = "system"  # system | own | off
    listen: str = "80"
    server_name: str = "_"
    binary: str = "nginx"
    reload: str = ""  # a command; empty: SIGHUP to the master
    tries: int = 3
    max_fails: int = 0
    fail_timeout: float = 30.0
    max_in_flight: int = 0
    hold: float = 10.0  # seconds that a request waits for somebody who serves; 0: not at all
    hold_max: int = 1000  # requests held at once
    paths: tuple[str, ...] = ()  # what else instances may be asked for; "/x/*" is all below /x/
    silence: float = 600.0  # of an instance that has a request: then 504
    health_path: str = "/health"  # health.path: asked of the instances when the daemon does not answer
    access_log_socket: Path | None = None  # a datagram socket that gets one JSON line a request
    worker_group: str = ""  # of nginx's workers, where they are not the daemon's own user
    boot: str = ""  # names this boot of the host; "": not known

    @property
    def room(self) -> Path:
        """The Unix socket on which nginx asks the daemon."""
        return self.dir / "room.sock"

    @property
    def sign(self) -> Path:
        """What nginx finds while the daemon lives."""
        return self.dir / "alive"

    @property
    def own(self) -> bool:
        """The daemon runs an nginx of its own."""
        return self.mode == "own"


@dataclass(frozen=True, slots=True)
class Listen:
    """nginx.listen, in the words of nginx and as an address to connect to."""

    directive: str
    host: str  # to connect to from this host
    port: int
    source: str | None  # the loopback address to connect from, so that the gateway sees a loopback client


def parse_listen(text: str) -> Listen:
    """Reads `80`, `127.0.0.1:8080`, `*:80`, `[::]:80` or `name:80`. Raises ValueError with what was meant."""
    host, colon, port = text.strip().rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536 or (colon and not host):
        raise ValueError(f'nginx.listen = "{text}": a port or host:port is meant, such as "80" or "127.0.0.1:8080"')
    if host in ("", "*", "0.0.0.0"):
        return Listen(text.strip(), "127.0.0.1", int(port), "127.0.0.1")
    if host.startswith("["):
        bare = host.strip("[]")
        return Listen(text.strip(), "::1" if bare == "::" else bare, int(port), "::1")
    numeric = host.replace(".", "").isdigit()
    return Listen(text.strip(), host, int(port), "127.0.0.1" if numeric else None)


def plain_name(server_name: str) -> str | None:
    """The first name of a server_name that is neither a pattern nor the catch-all; None when there is none."""
    for name in server_name.split():
        if name != "_" and not name.startswith(("~", ".")) and "*" not in name:
            return name
    return None

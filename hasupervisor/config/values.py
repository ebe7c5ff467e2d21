"""The small languages inside values: addresses, port ranges, sizes, paths. Each parser says what it expected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from pathlib import Path

from hasupervisor.model import Address

ANY_HOST = "0.0.0.0"
MAX_NAME = 50  # with -NN it stays a host name, which has at most 63 characters
PLACEHOLDERS = ("{python}", "{port}", "{name}")
"""What the process runtime fills in, in a word of its command."""

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_SIZE = re.compile(r"[1-9][0-9]*[bkmg]?")
_PLACEHOLDER = re.compile(r"\$?\{[a-z_]+\}")
_IPV6 = re.compile(r"\[(?P<host>[^\[\]]*)\]:(?P<port>.*)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# RFC 3986's path and query without `$`, which begins a variable of nginx's.
_URL_PATH = re.compile(r"/(?:[A-Za-z0-9._~!&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_GATEWAY_PATH = re.compile(r"(?:/[A-Za-z0-9._~!&'()+,;=:@-]+)*(?:/\*)?")
_LABELS = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"
_SERVER_NAME = re.compile(rf"(?:\*?\.)?{_LABELS}|{_LABELS}\.\*|~[!-~]+")
MAX_SERVER_NAME = 253


# --- how values are written -------------------------------------------------------------------------------------------


def plain(value: object) -> object:
    """A value with nothing but what TOML and JSON have: text, numbers, booleans, lists, tables."""
    match value:
        case None:
            return ""
        case Path():
            return str(value)
        case Address():
            return str(value.port) if value.host == ANY_HOST else str(value)
        case range():
            return str(value.start) if len(value) == 1 else f"{value.start}-{value.stop - 1}"
        case str():
            return value
        case Mapping():
            return {str(name): plain(entry) for name, entry in value.items()}
        case Sequence():
            return [plain(entry) for entry in value]
        case _:
            return value


def toml(value: object) -> str:
    """A value as one would write it in the file, on one line."""
    match plain(value):
        case bool() as flag:
            return "true" if flag else "false"
        case str() as text:
            return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
        case dict() as table:
            pairs = ", ".join(f"{_toml_key(name)} = {toml(entry)}" for name, entry in table.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case list() as entries:
            return "[" + ", ".join(toml(entry) for entry in entries) + "]"
        case other:
            return str(other)


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


MASK = "***"
_SECRET_ENDINGS = ("KEY", "KEYS", "TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWORDS", "PASSWD", "CREDENTIALS")


_OPTION = re.compile(r"--?[A-Za-z][A-Za-z0-9_-]*")
_ASSIGNMENT = re.compile(
    r"(?P<name>(?<![A-Za-z0-9_-])-{0,2}[A-Za-z_][A-Za-z0-9_-]*)(?P<sep>=| (?=[^-\s]))"
    r"(?:\"[^\"]*\"|'[^']*'|[^\s;&|]+)"
)
_USERINFO = re.compile(r"(://)[^/@\s]+@")
_BEARER = re.compile(r"(\bBearer\s+)\S+", re.IGNORECASE)
_KEYS = re.compile(r"\b(?:sk-[A-Za-z0-9_-]{8,}|hf_[A-Za-z0-9]{8,})")


def looks_secret(variable: str) -> bool:
    """API_KEY and HF_TOKEN do; API_KEY_FILE (a path) and MAX_TOKENS (a number) do not."""
    words = variable.upper().split("_")
    return words[-1] not in ("FILE", "PATH", "DIR") and any(word.endswith(_SECRET_ENDINGS) for word in words)


def masked_words(words: Sequence[str]) -> list[str]:
    """The words of a command for people. What is masked, by the names that `looks_secret` knows:

    the value of such an option ("--api-key X", "--api-key=X") or assignment ("HF_TOKEN=X", in a shell's words too),
    what stands between // and @ in a URL, and what follows "Bearer" or begins as well-known keys do (sk-..., hf_...).
    """
    shown_words: list[str] = []
    is_next = False
    for word in words:
        shown_words.append(MASK if is_next and not word.startswith("-") else _masked(word))
        is_next = bool(_OPTION.fullmatch(word)) and looks_secret(word.lstrip("-").replace("-", "_"))
    return shown_words


def _masked(word: str) -> str:
    def assignment(found: re.Match[str]) -> str:
        if found["sep"] == " " and not found["name"].startswith("-"):
            return found[0]  # two words of a sentence
        name = found["name"].lstrip("-").replace("-", "_")
        return f"{found['name']}{found['sep']}{MASK}" if looks_secret(name) else found[0]

    word = _ASSIGNMENT.sub(assignment, word)
    word = _USERINFO.sub(rf"\g<1>{MASK}@", word)
    return _KEYS.sub(MASK, _BEARER.sub(rf"\g<1>{MASK}", word))


def shown(key: str, value: object) -> object:
    """A key's value for people: in an environment and in a command, what looks like a secret is masked."""
    if key == "env" and isinstance(value, Mapping):
        return {name: MASK if looks_secret(name) and entry else entry for name, entry in value.items()}
    if key == "command" and isinstance(value, Sequence) and not isinstance(value, str):
        return masked_words([str(word) for word in value])
    return plain(value)


# --- parsers: each raises ValueError with the sentence for people -----------------------------------------------------


def service_name(text: str) -> str:
    if not _NAME.fullmatch(text) or len(text) > MAX_NAME:
        raise ValueError(
            f"{toml(text)} cannot be a name: small letters, digits and -, beginning with a letter or digit, "
            f"at most {MAX_NAME} (instances are called after it: chatglm-01, ...)"
        )
    return text


def filled(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def one_word(text: str) -> str:
    if filled(text) != "".join(text.split()):
        raise ValueError(f"{toml(text)} must not contain spaces")
    return text


def absolute_path(text: str) -> Path:
    """An absolute path; "./x" is relative to where the daemon is started. Other relative ones are slips."""
    filled(text)
    if any(char < " " for char in text):
        raise ValueError(f"{toml(text)} has control characters in it")
    if text.startswith("/"):
        return Path(text)
    if text.startswith("./"):
        return Path.cwd() / text
    raise ValueError(
        f"{toml(text)} is not an absolute path; begin it with / "
        "(or with ./ for one relative to where the daemon is started)"
    )


def nginx_path(text: str) -> Path:
    """A path that is also written into nginx's files, where some characters mean something else.

    A comma ends the path of a log socket, a colon that of an upstream's, and an include takes patterns.
    """
    path = absolute_path(text)
    if bad := sorted(set(str(path)) & set("\"'$\\;{}*?[],:\x7f")):
        shown_as = " ".join(toml(char)[1:-1] for char in bad)
        raise ValueError(f"{toml(text)}: {shown_as} in a path means something else to nginx; name another folder")
    return path


def ipv4(text: str) -> str:
    if text == "localhost":
        raise ValueError('expected an IPv4 address; write "127.0.0.1" for localhost')
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        raise ValueError(f"{toml(text)} is not an IPv4 address like 127.0.0.1") from None


def address(text: str) -> Address:
    """host:port, the host an IPv4 address or a name."""
    host, colon, port = text.rpartition(":")
    if ":" in host or "[" in host:
        raise ValueError(f"{toml(text)}: IPv6 is not supported here; write an IPv4 address or a name, host:port")
    if not colon or not host:
        raise ValueError(f"{toml(text)} is not host:port, like 127.0.0.1:{text.strip(':') if text.isdigit() else 9180}")
    if re.fullmatch(r"[0-9.]+", host):
        host = ipv4(host)
    elif not _HOST.fullmatch(host):
        raise ValueError(f"{toml(text)}: {toml(host)} is neither an IPv4 address nor a host name")
    return Address(host, _port(text, port))


def listen(text: str) -> Address:
    """host:port, [IPv6]:port, or a port on every IPv4 address. An IPv6 host keeps its brackets, as nginx writes it."""
    if six := _IPV6.fullmatch(text):
        try:
            return Address(f"[{IPv6Address(six['host'])}]", _port(text, six["port"]))
        except AddressValueError:
            raise ValueError(f"{toml(text)}: {toml(six['host'])} is not an IPv6 address") from None
    if ":" not in text:
        return Address(ANY_HOST, _port(text, text))
    if text.startswith("*:"):
        return Address(ANY_HOST, _port(text, text[2:]))
    if text.lower().startswith("unix:"):
        raise ValueError(f"{toml(text)}: the gateway listens on TCP; write host:port, or a port")
    return address(text)


def ports(text: str) -> range:
    """Both ends included ("8000-8099"), or one port."""
    first, dash, last = text.partition("-")
    try:
        low = _port(text, first.strip())
        high = _port(text, last.strip()) if dash else low
    except ValueError:
        raise ValueError(f"{toml(text)} is not a range of ports (1 to 65535) like 8000-8099") from None
    if low > high:
        raise ValueError(f"{toml(text)} runs backwards; write {toml(f'{high}-{low}')}")
    return range(low, high + 1)


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{toml(text)}: {toml(port)} is not a port (1 to 65535)")
    return int(port)


def size(text: str) -> str:
    """Docker's sizes: a whole number and a unit."""
    if not _SIZE.fullmatch(text.lower()):
        raise ValueError(f"{toml(text)} is not a size like 10m or 1g (a whole number and b, k, m or g)")
    return text


def engine_url(text: str) -> str:
    """Where a Docker engine listens; empty is allowed and means the default."""
    scheme, colon, rest = text.partition("://")
    if text and (scheme not in ("unix", "tcp", "http", "https", "ssh") or not colon or not rest):
        raise ValueError(f"{toml(text)} is not an engine's address like unix:///var/run/docker.sock or tcp://host:2376")
    if scheme == "unix" and not rest.startswith("/"):
        raise ValueError(f"{toml(text)}: a socket's path is absolute; write unix:///var/run/docker.sock")
    return text


def volume(text: str) -> str:
    """SOURCE:TARGET or SOURCE:TARGET:OPTIONS, as `docker run -v` takes it."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"{toml(text)} is not a volume like /models:/models:ro")
    source, target = parts[:2]
    if not target.startswith("/"):
        raise ValueError(f"{toml(text)}: {toml(target)} inside the container must be an absolute path")
    if "/" in source and not source.startswith("/"):
        raise ValueError(f"{toml(text)}: {toml(source)} must be an absolute path or the name of a volume")
    return text


def argument(text: str) -> str:
    """One word of a command of the process runtime, which fills PLACEHOLDERS in. `${lower}` is a shell's own."""
    for found in _PLACEHOLDER.findall(text):
        name = found.removeprefix("$")
        if name != found and name in PLACEHOLDERS:
            raise ValueError(f"{found} would be filled in behind the $; write {name}, or a variable of another name")
        if name == found and name not in PLACEHOLDERS:
            near = get_close_matches(name, PLACEHOLDERS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ";"
            raise ValueError(f"unknown placeholder {name}{hint} {', '.join(PLACEHOLDERS)} are filled in")
    return text


def variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"{toml(name)} cannot be the name of an environment variable")
    return name


def url_path(text: str) -> str:
    if not text.startswith("/") or any(char.isspace() for char in text):
        raise ValueError(f'{toml(text)} is not a path of a URL; begin it with /, like "/health"')
    if not _URL_PATH.fullmatch(text):
        raise ValueError(
            f"{toml(text)} is not a path of a URL: it has letters, digits and -._~!&'()*+,;=:@/? alone; "
            "write everything else as %XX, the bytes of its UTF-8"
        )
    return text


def gateway_path(text: str) -> str:
    """One path, or everything below one ("/files/*"), that clients may ask instances for."""
    if not _GATEWAY_PATH.fullmatch(text) or not text:
        raise ValueError(
            f'{toml(text)} is not a path like "/tokenize", or "/files/*" for all that is below /files/; '
            "it has letters, digits and -._~!&'()+,;=:@/ alone"
        )
    if any(part in (".", "..") for part in text.split("/")):
        raise ValueError(f"{toml(text)}: no client can ask for a path with . or .. in it; write where it leads to")
    if text in ("/health", "/ha") or text.startswith(("/ha/", "/v1/")):
        raise ValueError(f"{toml(text)} is served already: POST /, /v1/*, GET /health and /ha/ are the gateway's")
    return text


def server_name(text: str) -> str:
    """Names with spaces between them, as nginx's server_name has them: plain, with *, or ~ and a pattern."""
    if bad := sorted(set(filled(text)) & set("\"'$\\;{}#")):
        raise ValueError(f"{toml(text)}: {' '.join(bad)} cannot be in a server name")
    for name in text.split(" "):
        if name and (not _SERVER_NAME.fullmatch(name) or len(name) > MAX_SERVER_NAME):
            raise ValueError(
                f'{toml(name)} is not a server name like "a.example.com", "*.example.com", "a.*" or "~^a" (a pattern), '
                f"of at most {MAX_SERVER_NAME} characters; of other alphabets write the xn-- form"
            )
    return text

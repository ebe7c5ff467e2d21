"""`python -m model_api`: serves; with `verify DIR` or `bench` it tries a model out."""

from __future__ import annotations

import logging
import os
import sys

from model_api import exits
from model_api.settings import SettingsError, from_environment

USAGE = """usage: python -m model_api                serve; configured by the environment (docs/model-server.md)
       python -m model_api verify DIR     load a model, ask it something, print speed and memory
       python -m model_api bench [DIR]    tokens/s and first token at 1, 4, 8 and 16 at once
"""


def main(arguments: list[str]) -> int:
    """Runs one command; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # It warns of every request that is no HTTP, which anybody can send by the million.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    # Everything is on this machine: no look at a hub, and no progress bars in a log.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    match arguments:
        case []:
            return _serve()
        case ["-h" | "--help"]:
            print(USAGE, end="")
            return 0
        case ["verify", _] | ["bench"] | ["bench", _]:
            from model_api.measure import run

            return run(arguments)
        case _:
            print(USAGE, end="", file=sys.stderr)
            return exits.USAGE


def _serve() -> int:
    try:
        settings = from_environment(os.environ)
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"model_api: {line}", file=sys.stderr)
        return exits.USAGE
    from model_api.server import bind, run

    try:
        listener = bind(settings)
    except OSError as error:
        print(f"model_api: {error}", file=sys.stderr)
        return exits.USAGE
    return run(settings, listener)


def _leave(code: int) -> None:
    """Ends the process without waiting for daemon threads: inside torch they cannot be stopped, and a loader may be."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))

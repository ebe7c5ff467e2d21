"""chatglm-hactl: the program, and how it ends."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from hasupervisor.ctl.commandline import DEBUG_VARIABLE, PROGRAM, Program
from hasupervisor.ctl.errors import Exit, Failure

COMMANDS = (
    "status",
    "check",
    "scale",
    "autoscale",
    "restart",
    "drain",
    "undrain",
    "operations",
    "pause",
    "resume",
    "explain",
    "history",
    "logs",
    "gpu",
    "nginx",
    "config",
    "drill",
    "doctor",
    "version",
    "completion",
)


@click.group(cls=Program, names=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Operate the ChatGLM instances of this host.

    \b
    chatglm-hactl status                 what serves, what does not, and what to do
    chatglm-hactl explain chatglm-02     why it is as it is
    chatglm-hactl scale 3                wait until three serve
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; whatever happens, a person reads sentences, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no letter for … gets \u2026, not a traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False) or Exit.DONE)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            import traceback

            traceback.print_exc()
        return _tell(error)


def _tell(error: Exception) -> int:
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort):
        return Exit.INTERRUPTED
    if isinstance(error, Failure):
        if error.code is Exit.CLOSED:
            _drop_output()
        else:
            print(*error.lines(), sep="\n", file=sys.stderr)
        return error.code
    if isinstance(error, OSError):
        _drop_output()
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    print(f"{PROGRAM}: {what}", file=sys.stderr)
    print(f"next: set {DEBUG_VARIABLE}=1 and run it again to see where", file=sys.stderr)
    return Exit.FAILED


def _drop_output() -> None:
    """What is still buffered could not be written, and the interpreter would complain of it on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())

"""`completion`: the script that teaches a shell to complete this tool's commands."""

from __future__ import annotations

import click

from hasupervisor.ctl.commandline import PROGRAM, Command
from hasupervisor.ctl.errors import Exit
from hasupervisor.ctl.screen import emit


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    """Print the completion script for a shell.

    \b
    chatglm-hactl completion bash > /etc/bash_completion.d/chatglm-hactl
    chatglm-hactl completion zsh > "${fpath[1]}/_chatglm-hactl"
    chatglm-hactl completion fish > ~/.config/fish/completions/chatglm-hactl.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None, f"click has no completion for {shell}"
    variable = f"_{PROGRAM.replace('-', '_').upper()}_COMPLETE"
    emit(script(ctx.find_root().command, {}, PROGRAM, variable).source())
    return Exit.DONE

"""`zonegate completion`: the script with which a shell completes commands, options, zones and flows."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_ZONEGATE_COMPLETE"


@click.command("completion", short_help="complete commands in bash, zsh or fish")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that has SHELL complete zonegate's commands, options, zones, tunnels and flows.

    \b
    zonegate completion bash > /etc/bash_completion.d/zonegate    # for everybody
    zonegate completion bash >> ~/.bashrc                         # for you
    zonegate completion zsh > ~/.zfunc/_zonegate      # where fpath has ~/.zfunc
    zonegate completion fish > ~/.config/fish/completions/zonegate.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "zonegate", VARIABLE).source())

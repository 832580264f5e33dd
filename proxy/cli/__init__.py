"""The commands. This floor prints and exits; it knows no internals and decides nothing.

Each command is a module of its own, loaded only when it is asked for, so that `zonegate --help` and
`zonegate run` start fast.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import IO, Any

import click
from click.exceptions import NoArgsIsHelpError
from click.shell_completion import CompletionItem

# command -> (module, one line for the list of commands). The function in the module is `command`.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "init": ("proxy.cli.init", "make the files of a new site"),
    "demo": ("proxy.cli.demo", "the whole product on this machine, with real traffic"),
    "run": ("proxy.cli.run", "run a program in a bubble"),
    "up": ("proxy.cli.up", "run the daemon"),
    "status": ("proxy.cli.status", "what is up, what is proved, who is inside"),
    "tunnel": ("proxy.cli.tunnel", "list, show, hold down, take up and import tunnels"),
    "attach": ("proxy.cli.attach", "make a container's network a zone"),
    "detach": ("proxy.cli.detach", "end an attach; its network has no way out then"),
    "leaktest": ("proxy.cli.leaktest", "try every way out of a zone on this machine"),
    "flows": ("proxy.cli.flows", "who is connected where, how fast, and why"),
    "kill": ("proxy.cli.kill", "cut open flows by hand"),
    "lock": ("proxy.cli.lock", "cut and refuse every flow until unlocked"),
    "unlock": ("proxy.cli.unlock", "open what was locked"),
    "reload": ("proxy.cli.reload", "have the daemon read its files again"),
    "audit": ("proxy.cli.audit", "what was recorded of flows, and whether it is whole"),
    "stop": ("proxy.cli.stop", "end the daemon and its bubbles"),
    "cleanup": ("proxy.cli.cleanup", "end the bubbles that a killed daemon left"),
    "cert": ("proxy.cli.cert", "issue, renew, revoke and list tunnel certificates"),
    "passwd": ("proxy.cli.passwd", "logins and passwords of explicit listeners"),
    "gateway": ("proxy.cli.gateway", "run the corporate end of an mtls tunnel"),
    "ca": ("proxy.cli.ca", "the inspection CA: create, show, rotate"),
    "systemd": ("proxy.cli.systemd", "units with which systemd runs the daemon"),
    "completion": ("proxy.cli.completion", "complete commands in bash, zsh or fish"),
    "check": ("proxy.cli.check", "what is wrong with policy files"),
    "test": ("proxy.cli.test", "run policy tests and their claims"),
    "prove": ("proxy.cli.prove", "prove claims over all flows, find dead rules"),
    "diff": ("proxy.cli.diff", "which flows an edit of a policy changes"),
    "explain": ("proxy.cli.explain", "what a policy says of a flow, and why"),
}


INTERRUPTED = 130  # as shells say it of SIGINT


class _Lazy(click.Group):
    """A group that imports a command's module when it is run, and not to list it."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _in_one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _in_one_line():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name][0]}.command is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            meant = get_close_matches(args[0][:80], COMMANDS, n=1)
            cure = f'did you mean "{meant[0]}"?' if meant else "see: zonegate --help"
            ctx.fail(f'"{args[0]:.40}" is no command; {cure}')
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names alone: to look into each command would load it."""
        found = [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found or click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


class _Mistyped(click.ClickException):
    """What was typed wrongly, told as everything is."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"zonegate: {self.message}", file, err=True)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        words = (
            " ".join(error.format_message().split())
            .removesuffix(".")
            .replace(". Did you", "; did you")
            .replace(" Did you", "; did you")
        )
        path = error.ctx.command_path if error.ctx else "zonegate"
        cure = "" if ";" in words else f"; see: {path} --help"
        raise _Mistyped(f"{words[:1].lower()}{words[1:]}{cure}") from None
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="zonegate", prog_name="zonegate")
def zonegate() -> None:
    """What leaves a zone leaves through an authenticated tunnel, or not at all."""


def main() -> None:
    """Run a command; an expected error is one line on standard error and exit code 2."""
    try:
        zonegate(prog_name="zonegate")
    except BrokenPipeError:
        sys.exit(0)

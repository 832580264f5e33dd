"""`zonegate demo`: the whole product on one machine, with real traffic."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from proxy import paths, sandbox
from proxy.cli import folding
from proxy.cli.errors import fail
from proxy.demo.machines import DemoFailed, Machines
from proxy.demo.story import Step, tell
from proxy.run import RunError, connect


@click.command("demo", short_help="the whole product on this machine, with real traffic")
@click.option(
    "--once", is_flag=True, help="End after the last step; so it does when its output is no terminal."
)
@click.option(
    "--tunnel",
    type=click.Choice(["wireguard", "mtls"]),
    help="The kind of tunnel; else WireGuard where wireguard-go and wg are installed.",
)
def command(once: bool, tunnel: str | None) -> None:
    """Make throw-away keys, start a corporate end, a gate and bubbles here, and show what they do.

    Needs no root and no network. Every line says what you should see and what was seen; exit code 1 if
    they differ.

    \b
    zonegate demo
    zonegate demo --tunnel mtls
    """
    if problems := sandbox.missing():
        fail("\n".join(problems))
    lacking = sandbox.missing_for_wireguard(by_hand=True)
    if tunnel == "wireguard" and lacking:
        fail("\n".join(lacking))
    packets = tunnel == "wireguard" or (tunnel is None and not lacking)
    for number in (signal.SIGTERM, signal.SIGHUP):  # however it ends, it takes everything with it
        signal.signal(number, signal.default_int_handler)
    console = folding.console()
    if tunnel is None and lacking:
        words = f"The tunnel is an mtls one, since WireGuard is not here: {'; '.join(lacking)}"
        console.print(Text(folding.fold(words, folding.columns())))
    stays = not once and sys.stdout.isatty()
    with tempfile.TemporaryDirectory(prefix="zonegate-demo-") as directory:
        usual = _free_place() if stays else None
        run = usual or Path(directory) / "run"
        machines = Machines(Path(directory), run, dict(os.environ), packets=packets)
        shown: list[bool] = []
        try:
            with machines.up():
                shown.extend(_show(step, console) for step in tell(machines))
                console.print(f"{sum(shown)} of {len(shown)} as expected")
                if stays:
                    _stay(machines, usual is not None, console)
        except DemoFailed as error:
            fail(str(error), 1)
        except (LookupError, subprocess.TimeoutExpired) as error:
            fail(f"a part of it did not answer: {error}; try again when this machine has less to do", 1)
        except KeyboardInterrupt:
            pass
    sys.exit(0 if all(shown) else 1)


def _free_place() -> Path | None:
    """Where commands look for a daemon, if none is there: then they need no further word."""
    place = paths.run_directory(os.getuid(), os.environ)
    try:
        connect(paths.admin_sockets(os.getuid(), os.environ)).close()
    except RunError:
        return place
    return None


def _show(step: Step, console: Console) -> bool:
    mark = Text("✓ ", "bold green") if step.good else Text("✗ ", "bold red")
    console.print(mark + Text(step.title, "bold"))
    width = folding.columns()
    console.print(Text(folding.fold(f"    expected  {step.expected}", width), "dim"))
    console.print(Text(folding.fold(f"    seen      {step.seen}", width), "" if step.good else "red"))
    return step.good


def _stay(machines: Machines, usual: bool, console: Console) -> None:
    where = "" if usual else f"ZONEGATE_SOCKET={machines.environment['ZONEGATE_SOCKET']} "
    console.print()
    console.print("It is still up. In another terminal, try:")
    for line in ("run -- bash", "run -- curl http://intranet.corp.example/", "status"):
        console.print(f"    {where}{_command()} {line}")
    console.print("Ctrl-C ends it and everything in it.")
    machines.gate.wait()


def _command() -> str:
    """How this command was called, where it is not simply on the path."""
    called = Path(sys.argv[0])
    return "zonegate" if shutil.which("zonegate") == str(called) else str(called)

"""So that `python -m proxy.cli` is `zonegate`."""

from proxy.cli import main

main()

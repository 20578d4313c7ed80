"""``python -m keybearer``: the command line."""

from keybearer.cli import main

main()

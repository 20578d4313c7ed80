"""The command line.

``serving``  ``serve``, ``demo``, ``mock-provider``
``operate``  commands on the server's own data directory and database: ``admin``, ``user``, ``token``, ``key``, ``audit``
``use``      commands that talk HTTP with ``KEYBEARER_URL`` and ``KEYBEARER_TOKEN``: ``secret``, ``provider``, ``usage``
``run``      ``keybearer run -- CMD``
``output``   tables, JSON, ``error:`` and ``hint:``
"""

from __future__ import annotations

import sys

import typer

from keybearer.cli import operate, run, serving, use
from keybearer.cli.output import print_error
from keybearer.errors import KeybearerError

app = typer.Typer(
    name="keybearer",
    help="Bring-your-own-key vault and LLM gateway.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
serving.add_to(app)
operate.add_to(app)
use.add_to(app)
run.add_to(app)


def main() -> None:
    """Run the command line; deliberate errors print as ``error:`` and ``hint:`` and exit with 1."""
    try:
        app()
    except KeybearerError as error:
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

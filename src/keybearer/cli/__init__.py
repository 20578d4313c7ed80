"""The command line.

``serving``  ``serve``, ``demo``, ``mock-provider``
``operate``  commands on the server's own data directory and database: ``admin``, ``user``, ``token``, ``freeze``, ``unfreeze``;
``operator`` is what they work with
``trail``    the audit trail, likewise: ``audit``
``keys``     ``key``: the root key and the owners' keys
``use``      commands that talk HTTP with ``KEYBEARER_URL`` and ``KEYBEARER_TOKEN``: ``usage``
``registry`` ``provider`` and ``model``, likewise
``budgets``  ``budget``, likewise
``secrets``  ``secret``, likewise
``teams``    ``team``, likewise; ``names`` turns names that people type into ids
``transfer``  ``import`` and ``export``: over HTTP, or on the server's own data
``backups``  ``backup`` and ``restore``: everything, on the server's own data
``doctor``   ``doctor``, likewise; ``diagnosis`` is what it looks at
``run``      ``keybearer run -- CMD``
``output``   tables, JSON, ``error:`` and ``hint:``; ``progress`` shows how far long work is
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib import import_module

import typer
from typer.exceptions import TyperException

from keybearer.errors import Invalid, KeybearerError

MODULES = (
    "serving",
    "operate",
    "keys",
    "trail",
    "use",
    "registry",
    "secrets",
    "teams",
    "budgets",
    "transfer",
    "backups",
    "doctor",
    "run",
)
MODULE_OF = {"serve": "serving", "demo": "serving", "mock-provider": "serving"}
"""Commands that start a server import their own module alone: the others bring an HTTP client that a server does not need."""

COLLECT_WHILE_STARTING = (100_000, 50, 100)
"""Hardly ever: what a start builds stays. Measured: 75 ms of a start of 1.1 s went into looking for garbage."""


def commands(modules: Sequence[str] = MODULES) -> typer.Typer:
    """Build the command line with the commands of ``modules``."""
    app = typer.Typer(
        name="keybearer",
        help="Bring-your-own-key vault and LLM gateway.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    for module in modules:
        import_module(f"{__name__}.{module}").add_to(app)
    return app


def _print_usage_error(error: TyperException) -> None:
    if not (message := error.format_message()):  # a group without a command: its help is printed already
        return
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "keybearer"
    import_module(f"{__name__}.output").print_error(Invalid(message, hint=f"'{path} --help' shows how."))


def main() -> None:
    """Run the command line; errors print as ``error:`` and ``hint:``: deliberate ones exit with 1, wrong usage with 2."""
    gc.set_threshold(*COLLECT_WHILE_STARTING)
    module = MODULE_OF.get(sys.argv[1]) if len(sys.argv) > 1 else None
    try:
        code = commands((module,) if module else MODULES)(standalone_mode=False)
    except TyperException as error:
        _print_usage_error(error)
        sys.exit(error.exit_code)
    except KeybearerError as error:
        import_module(f"{__name__}.output").print_error(error)
        sys.exit(1)
    except typer.Abort:
        print("Aborted.", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        sys.exit(code if isinstance(code, int) else 0)

"""Commands that serve: ``serve``, ``demo`` and ``mock-provider``. They need the ``server`` extra."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keybearer import config
from keybearer.cli.output import say
from keybearer.errors import Invalid, OperatorError

Host = Annotated[str | None, typer.Option(help="Address to bind. Any other than loopback needs TLS or a declared proxy.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to bind; 0 picks a free one.")]
DataDir = Annotated[Path | None, typer.Option(help="Directory of the database, the root key file and the journal.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("serve")(serve)
    app.command("demo")(demo)
    app.command("mock-provider")(mock_provider)


def need_server_extra(error: ImportError) -> OperatorError:
    """Say how to get what is not installed."""
    return OperatorError(f"This command needs the server: {error.name} is not installed.", hint="pip install 'keybearer[server]'")


def serve(
    *,
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Worker processes.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Serve the console, the API and the gateway."""
    try:
        from keybearer import app as server  # noqa: PLC0415  # the server extra
    except ImportError as error:
        raise need_server_extra(error) from error
    server.serve(config.load(host=host, port=port, workers=workers, data_dir=data_dir))


def demo(
    *,
    host: Host = None,
    port: Port = None,
    data_dir: Annotated[Path, typer.Option(help="Where the demonstration keeps its data.")] = Path("demo-data"),
) -> None:
    """Serve with a built-in mock provider and sample data: nothing leaves this machine."""
    try:
        from keybearer.cli.demo import run  # noqa: PLC0415  # the server extra
    except ImportError as error:
        raise need_server_extra(error) from error
    run(host, port, data_dir)


def mock_provider(
    *,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to bind; 0 picks a free one.")] = 9797,
    key: Annotated[
        list[str] | None, typer.Option(help="provider=key to accept (repeatable); else any that holds kbtest-.")
    ] = None,
    record: Annotated[int, typer.Option(min=0, help="How many requests to keep, readable at /_mock/requests.")] = 1000,
) -> None:
    """Play the providers: OpenAI, Anthropic and Gemini dialects, errors on demand."""
    try:
        from keybearer import mock  # noqa: PLC0415  # the server extra
    except ImportError as error:
        raise need_server_extra(error) from error
    try:
        options = mock.Options(keys=mock.parse_keys(key or []), record=record)
    except ValueError as error:
        raise Invalid(str(error), hint="For example --key openai=kbtest-key") from None
    mock.run(host, port, options, announce=lambda url: say(f"The mock provider listens at {url}"))

"""``keybearer run -- CMD``: a child process that calls the gateway with nothing to configure.

The SDKs' own environment variables point at the gateway and hold the access token, never a provider's key. The token is
masked in what the child prints. Who stops the command stops the child.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import IO, Annotated, Final

import typer

from keybearer import config
from keybearer.cli.use import client
from keybearer.errors import OperatorError

MASK = b"kb_[masked]"
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP)
_KILLED: Final = 128
"""A shell's exit code for a command that a signal ended is the signal's number and this."""


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("run", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run)


def child_environment(url: str, token: str) -> dict[str, str]:
    """What the official SDKs read: OpenAI, Anthropic, Google Gen AI."""
    return {
        "KEYBEARER_URL": url,
        "KEYBEARER_TOKEN": token,
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": token,
        "ANTHROPIC_BASE_URL": f"{url}/anthropic",
        "ANTHROPIC_API_KEY": token,
        "GOOGLE_GEMINI_BASE_URL": f"{url}/gemini",
        "GEMINI_API_KEY": token,
        "GOOGLE_API_KEY": token,
    }


def run(command: Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")]) -> None:
    """Run CMD with the gateway's URL and token in its environment; the token is masked in its output."""
    url, token = config.client_environment()
    with client() as api:
        api.request("GET", "/me")  # a wrong token is told here, not by the child
    environment = config.with_process_environment(child_environment((url or "http://127.0.0.1:8787").rstrip("/"), token))
    try:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # noqa: S603  # the user's own
    except OSError as error:
        message = f"Cannot run {command[0]}: {error.strerror}."
        raise OperatorError(message, hint="Is it installed and on PATH?") from None
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal tells the child, too, and the child decides
    for number in _PASSED_ON:
        signal.signal(number, lambda received, _: child.send_signal(received))
    if child.stdout is not None:
        mask_stream(child.stdout, sys.stdout.buffer, token.encode())
    code = child.wait()
    raise typer.Exit(code if code >= 0 else _KILLED - code)


def mask_stream(source: IO[bytes], sink: IO[bytes], hidden: bytes) -> None:
    """Copy ``source`` to ``sink`` as it comes, with ``hidden`` masked wherever it falls, also across reads."""
    kept = b""
    while chunk := source.read1(65536) if hasattr(source, "read1") else source.read(65536):
        text = (kept + chunk).replace(hidden, MASK)
        hold = overlap(text, hidden)
        sink.write(text[: len(text) - hold])
        sink.flush()
        kept = text[len(text) - hold :]
    sink.write(kept)
    sink.flush()


def overlap(text: bytes, hidden: bytes) -> int:
    """Return how many bytes at the end of ``text`` could be the beginning of ``hidden``."""
    for size in range(min(len(text), len(hidden) - 1), 0, -1):
        if text.endswith(hidden[:size]):
            return size
    return 0

"""What the drivers share. A driver runs a framework against a gateway, in that framework's own environment, and prints what it got.

It is told ``{"url", "token"}`` on its standard input, runs its cases one after another, and prints one JSON object: ``cases``, by name
what each returned or the error it ended in, and ``strangers``, the addresses outside this machine that somebody asked for and did not get.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CHAT, VECTORS, CLAUDE = "gpt-4o-mini", "text-embedding-3-small", "claude-sonnet-4-6"
QUESTION = "What is a keybearer?"
UNKNOWN, LIMITED = "no-such-model", "openai/mock-429-retry-20ms-ms"


@dataclass(frozen=True)
class Gateway:
    """Where the gateway is, and with what token; nothing else is told to a framework."""

    url: str
    token: str

    @property
    def openai(self) -> str:
        """What stands where OpenAI's base URL would."""
        return f"{self.url}/v1"

    @property
    def anthropic(self) -> str:
        """What stands where Anthropic's base URL would."""
        return f"{self.url}/anthropic"

    @property
    def of_a_stranger(self) -> Gateway:
        """The same with a token that is none."""
        return Gateway(self.url, "kb_" + "0" * 50)


Case = Callable[[Gateway], object]
Call = Callable[[Gateway, str], object]
"""One chat with the named model."""


def drive(call: Call, *cases: Case) -> None:
    """Run the cases, and what every framework must make of three errors; print the results."""
    told = json.loads(sys.stdin.read())
    strangers = _keep_to_this_machine()
    gateway = Gateway(told["url"], told["token"])
    with contextlib.redirect_stdout(sys.stderr):
        found = {case.__name__: _result(lambda case=case: case(gateway)) for case in cases}  # type: ignore[misc]
        found["wrong_token"] = _result(lambda: call(gateway.of_a_stranger, CHAT))
        found["unknown_model"] = _result(lambda: call(gateway, UNKNOWN))
        found["limited"] = _result(lambda: call(gateway, LIMITED))
    print(json.dumps({"cases": found, "strangers": strangers}))  # noqa: T201 - the result


def _result(run: Callable[[], object]) -> dict[str, Any]:
    try:
        return {"returned": run()}
    except Exception as error:  # noqa: BLE001 - whatever a framework raises is what the test looks at
        return {"raised": _described(error)}


def _described(error: BaseException) -> dict[str, Any]:
    """Frameworks wrap the SDK's error: the status is somewhere on the way to its cause."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    statuses = [status for each in chain if isinstance(status := getattr(each, "status_code", None), int)]
    return {"type": type(error).__name__, "status": statuses[0] if statuses else None, "text": " | ".join(map(str, chain))}


def _keep_to_this_machine() -> list[str]:
    """Refuse names and addresses of other machines, and list them: no framework's telemetry leaves, or is only missed."""
    strangers: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = arguments[0]
        elif event in {"socket.connect", "socket.sendto"} and isinstance(arguments[1], tuple):
            host = arguments[1][0]
        else:
            return
        if not _is_here(host):
            strangers.append(str(host))
            message = f"{host} is not this machine"
            raise ConnectionRefusedError(message)

    sys.addaudithook(watch)
    return strangers


def _is_here(host: object) -> bool:
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return text in {"localhost", "None", ""}

"""The mock provider as a child process, as `keybearer mock-provider` starts it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
from tests.support.server import ROOT, environment


@dataclass
class Provider:
    """One running mock provider."""

    url: str
    process: subprocess.Popen[str]

    def requests(self) -> list[dict[str, Any]]:
        """What it was sent, oldest first."""
        found = httpx2.get(f"{self.url}/_mock/requests", timeout=5).json()
        recorded = found["requests"] if isinstance(found, dict) else found
        return [
            {**one, "headers": {name.lower(): value for name, value in one["headers"]}}
            for one in recorded
            if one["provider"] != "_mock"
        ]

    def base_url(self, name: str) -> str:
        """The base URL under which the mock plays one provider."""
        return f"{self.url}/{name}"

    def forget(self) -> None:
        """Forget what it was sent."""
        httpx2.delete(f"{self.url}/_mock/requests", timeout=5)


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Provider]:
    """A mock provider for the length of a block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "keybearer", "mock-provider", "--port", "0", *arguments],
        env=environment(ROOT), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"https?://\S+", line)
    assert found, line
    try:
        yield Provider(found.group(0).rstrip("/"), process)
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()

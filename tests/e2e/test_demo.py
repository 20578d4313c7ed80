"""`keybearer demo`: a server with a mock provider and sample data, on a free port, twice on the same data."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx2
from tests.support import server as servers

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}


def try_out(data_dir: Path) -> int:
    """Start the demonstration, call it with the token that it prints; how many calls are on record then."""
    log = data_dir.parent / "demo.log"
    with log.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "keybearer", "demo", "--port", "0", "--data-dir", str(data_dir)],
            env=servers.environment(data_dir), cwd=data_dir.parent, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    with process.stdout as printed:
        text = ""
        while "root key" not in text:
            line = printed.readline()
            assert line, text + log.read_text()
            text += line
        url, token = re.search(r"gateway\s+(\S+?)/v1", text), re.search(r"kb_\w+", text)
        assert url is not None, text
        assert token is not None, text
        try:
            return recorded(url.group(1), token.group(0), data_dir)
        finally:
            process.terminate()
            process.wait(40)


def recorded(url: str, token: str, data_dir: Path) -> int:
    """Call until the server answers; then wait for the sample calls and this one to be on record."""
    deadline, answered = time.monotonic() + 30, False
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            headers = {"authorization": f"Bearer {token}"}
            answered = answered or httpx2.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers).is_success
        listed = subprocess.run(
            [sys.executable, "-m", "keybearer", "audit", "verify", "--json"],
            env=servers.environment(data_dir), capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        counts = [int(count) for count in re.findall(r'"records": (\d+)', listed)]
        if answered and sum(counts[1:]) >= 11:  # its opening line, and a use and an outcome for each of five calls
            return sum(counts[1:])
        time.sleep(0.2)
    raise AssertionError(f"answered: {answered}")


def test_the_demonstration_serves_and_has_something_to_show(data_dir: Path) -> None:
    first = try_out(data_dir)
    assert try_out(data_dir) > first

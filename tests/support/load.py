"""Callers that keep a server busy while it is killed, and what its journal says of their calls."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

CALLERS = 4
CHAT = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass
class Load:
    """Callers that call until they are told to stop, and the request ids they were answered."""

    url: str
    token: str
    persistent: bool = False
    """Whether a connection that breaks is made anew, as where only one of several workers was killed."""
    answered: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self.threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(20)

    def _call(self) -> None:
        headers = {"authorization": f"Bearer {self.token}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=10) as client:
            while not self.stop.is_set():
                try:
                    answer = client.post("/v1/chat/completions", json=CHAT)
                except httpx2.TransportError:
                    if self.persistent:
                        continue
                    return  # killed: what was not answered is not claimed
                if answer.status_code == 200:
                    self.answered.append(answer.headers["x-keybearer-request-id"])


def journal_lines(data_dir: Path) -> Counter[str]:
    """How often each request id stands in a use line of the journal."""
    found: Counter[str] = Counter()
    for path in (data_dir / "journal").rglob("*.jsonl"):
        for raw in path.read_bytes().splitlines():
            try:
                line = json.loads(raw)["line"]
            except ValueError:
                continue  # the torn last line of a killed process
            if line["kind"] == "use":
                found[line["request_id"]] += 1
    return found

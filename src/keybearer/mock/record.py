"""What the mock provider was sent: the last N requests, for tests and for people who want to look."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keybearer.mock.wire import Exchange, Request

KEPT_BODY = 64 * 1024
"""Bytes of each body that are kept; digest and size are of the whole."""


@dataclass(slots=True)
class Recorded:
    """One request as it arrived, and how its answer went."""

    at: float
    """Unix seconds."""
    method: str
    target: str
    """Path and query, as sent."""
    headers: tuple[tuple[str, str], ...]
    body: bytes
    """At most ``KEPT_BODY`` bytes of it."""
    body_size: int
    body_sha256: str
    provider: str
    operation: str
    model: str
    status: int
    outcome: str = "answering"
    """``answering``, ``done`` or ``left`` (the client closed before the answer's end)."""
    steps: int = 0
    """Events written so far, of a paced stream."""

    def header(self, name: str) -> str | None:
        """Return the first header of that (lower-case) name."""
        return next((value for key, value in self.headers if key == name), None)

    def document(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {
            "at": self.at,
            "method": self.method,
            "target": self.target,
            "headers": self.headers,
            "body": self.body.decode("utf-8", "replace"),
            "body_size": self.body_size,
            "body_sha256": self.body_sha256,
            "provider": self.provider,
            "operation": self.operation,
            "model": self.model,
            "status": self.status,
            "outcome": self.outcome,
            "steps": self.steps,
        }


class Record:
    """A bounded list of requests, oldest first. Reads like a sequence."""

    def __init__(self, limit: int) -> None:
        """``limit``: how many are kept; 0 keeps none."""
        self.is_on = limit > 0
        self._kept: deque[Recorded] = deque(maxlen=limit)

    def add(self, request: Request, exchange: Exchange) -> Recorded:
        """Keep a request."""
        body = request.body
        recorded = Recorded(
            time.time(),
            request.method,
            request.target,
            request.headers,
            body[:KEPT_BODY],
            len(body),
            hashlib.sha256(body).hexdigest(),
            exchange.provider,
            exchange.operation,
            exchange.model,
            exchange.status,
        )
        self._kept.append(recorded)
        return recorded

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Recorded:
        return self._kept[index]

    def __iter__(self) -> Iterator[Recorded]:
        return iter(tuple(self._kept))

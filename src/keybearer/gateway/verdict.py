"""What a connection test says: its status, and the refusal that a test of a protocol other than HTTP raises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ProbeStatus = Literal["ok", "invalid", "forbidden", "no_credit", "rate_limited", "dns", "tls", "timeout", "unreachable", "error"]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a connection test found."""

    status: ProbeStatus
    """``invalid``: the provider does not know the key; ``forbidden``: it knows it and refuses; ``error``: anything else."""
    latency_ms: float
    """From the first look at the name to the last byte."""
    models: tuple[str, ...] = ()
    """Model names, if the test call lists them; at most ``probe.MAX_MODELS``."""
    message: str = ""
    """The provider's own words, or ours where it said nothing: without the key, at most 300 characters."""
    http_status: int | None = None


class Refused(Exception):
    """The server answered, and would not: ``message`` without what no message shows."""

    def __init__(self, status: ProbeStatus, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(status)


def masked(words: str, hidden: Iterable[str]) -> str:
    """A server's words without what no message shows, longest first."""
    for part in sorted({part for part in hidden if part}, key=len, reverse=True):
        words = words.replace(part, "***")
    return words

"""Which models OpenRouter has, by its own list: read without a key, kept for an hour by each process."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic

from keybearer.catalog import Provider, TestCall, with_auth
from keybearer.catalog.openrouter import StandIn
from keybearer.catalog.provider import OPENAI
from keybearer.domain import SecretBytes
from keybearer.errors import KeybearerError, UpstreamUnreachable
from keybearer.gateway import probe
from keybearer.gateway.egress import egress_set
from keybearer.gateway.upstream import Upstream

_SECONDS = 3600.0
_AGAIN_SECONDS = 15.0
"""After a failure, how long it is not asked again."""
_LIST = TestCall("GET", "/models", OPENAI)


class Listing:
    """The list, of whichever address OpenRouter has in this deployment."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._lock = asyncio.Lock()
        self._base_url = ""
        self._names: frozenset[str] = frozenset()
        self._until = 0.0
        self._failure: KeybearerError | None = None

    async def has(self, found: StandIn) -> bool:
        """Whether the model is listed. Raises ``UpstreamUnreachable`` where the list cannot be read."""
        async with self._lock:
            if monotonic() >= self._until or self._base_url != found.provider.base_url:
                await self._read(found.provider)
        if self._failure is not None:
            raise self._failure
        return found.model in self._names

    async def _read(self, provider: Provider) -> None:
        """Read it anew; an old list of the same address is better than none."""
        asked = replace(with_auth(provider, "none", ""), test=_LIST)
        answer = await probe.probe(self._upstream, asked, SecretBytes(b""), egress_set(asked))
        if answer.status == "ok" and answer.models:
            self._names, self._failure, self._until = frozenset(answer.models), None, monotonic() + _SECONDS
        else:
            if self._base_url != provider.base_url or not self._names:
                self._names = frozenset()
                self._failure = UpstreamUnreachable(f"OpenRouter's list of models could not be read: {answer.message}")
            self._until = monotonic() + _AGAIN_SECONDS
        self._base_url = provider.base_url

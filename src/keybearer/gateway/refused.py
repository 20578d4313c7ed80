"""Keys that a provider refused in use: confirmed by a connection test, then marked, so that calls stop with a clear answer.

A 401, 402 or 403 alone may be about the model, the region or the call. So the key is tested first, in the background, at most once a
minute each; only a provider that does not know the key any more makes it *failed*. A later test that succeeds, or a new value, mends
that (``Secrets.mark``); a secret in a rotation's overlap falls back to the value before.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from uuid import UUID

import structlog

from keybearer.domain import Credential
from keybearer.errors import KeybearerError
from keybearer.gateway.checks import Checker
from keybearer.gateway.credentials import Credentials
from keybearer.vault.secrets import Secrets

EVERY = 60.0
"""Seconds between two tests of one key."""
_AT_ONCE = 16
_REMEMBERED = 10_000

log = structlog.get_logger(__name__)


class RefusedKeys:
    """Listens to the credentials of one process; see the module."""

    def __init__(self, credentials: Credentials, checker: Checker, secrets: Secrets) -> None:
        self._credentials = credentials
        self._checker = checker
        self._secrets = secrets
        self._tested: dict[tuple[UUID, int], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        credentials.on_key_refused = self.told

    def told(self, credential: Credential, status: int) -> None:
        """A provider answered ``status`` (401, 402 or 403) to this key. Called on the hot path: does no more than start a task."""
        key, now = (credential.secret_id, credential.secret_version), time.monotonic()
        # A flood of refusals tests little: what is not confirmed now is refused, and told, again.
        if now < self._tested.get(key, 0.0) + EVERY or len(self._tasks) >= _AT_ONCE:
            return
        while len(self._tested) >= _REMEMBERED:
            del self._tested[next(iter(self._tested))]
        self._tested.pop(key, None)
        self._tested[key] = now
        task = asyncio.get_running_loop().create_task(self._confirm(credential, status), name="test a refused key")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End the tests under way."""
        for task in tuple(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _confirm(self, credential: Credential, status: int) -> None:
        try:
            await self._credentials.check_not_frozen()
            if await self._secrets.is_replaced(credential):
                return  # the next call has the new one
            provider = await self._checker.provider_of(credential, await self._secrets.model_of(credential))
            await self._secrets.note_test(None, credential)
            await self._checker.check(provider, credential, because=f"Refused in use ({status}) and in a test: ")
        except KeybearerError as error:
            log.warning("a refused key could not be tested", secret=str(credential.secret_id), code=error.code)

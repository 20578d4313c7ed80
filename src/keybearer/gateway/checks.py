"""Tests of stored keys: one way for all, whoever asks: a person, a schedule, or a provider's refusal in use.

The scheduled ones are taken from the database one by one (``vault.checks``), by whichever process has room: few at once in each, so
that no schedule comes before calls, and none while a key's provider has asked for a pause.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from uuid import UUID

import structlog

from keybearer.catalog import Provider
from keybearer.domain import Credential
from keybearer.errors import Frozen, Invalid, KeybearerError, ProviderUnknown, Unavailable
from keybearer.gateway.credentials import Credentials
from keybearer.gateway.prober import Prober, TestOptions
from keybearer.gateway.verdict import ProbeResult
from keybearer.vault.checks import Due
from keybearer.vault.models import Models
from keybearer.vault.providers import Providers
from keybearer.vault.sealed import Unreadable
from keybearer.vault.secrets import Secrets

AT_ONCE = 4
"""Scheduled tests of one process."""
TURN_SECONDS = 5.0
"""After which a turn begins no further test: a server that stops waits for it."""
_PLAIN = TestOptions()

log = structlog.get_logger(__name__)


class Checker:
    """One per process; see the module."""

    def __init__(self, credentials: Credentials, prober: Prober, providers: Providers, models: Models, secrets: Secrets) -> None:
        self._credentials = credentials
        self._prober = prober
        self._providers = providers
        self._models = models
        self._secrets = secrets

    async def check(
        self, provider: Provider, credential: Credential, options: TestOptions = _PLAIN, because: str = ""
    ) -> ProbeResult:
        """Test a stored key, whose test is on record, and keep what was found; ``because``: said before a refusal's own words.

        Raises ``Frozen``, and as ``Prober.test`` does: then nothing was sent, and nothing is kept.
        """
        await self._credentials.check_not_frozen()
        found = await self._prober.test(provider, credential.value, credential.egress, credential.owner.id, options)
        message = f"{because}{found.message}" if found.status == "invalid" else found.message
        await self._secrets.checks.keep(credential, found.status, message)
        return found

    async def provider_of(self, credential: Credential, model_id: UUID | None) -> Provider:
        """Where an owner's key is tested, as that owner sees it. Raises ``ProviderUnknown``, ``NotFound``."""
        if model_id is not None:
            return await self._models.provider_for_owner(credential.owner.id, model_id)
        return (await self._providers.registry(credential.owner.id)).get(credential.provider)

    async def turn(self) -> None:
        """Make the checks that are due. For a job; safe in every process at once."""
        until = monotonic() + TURN_SECONDS
        outcomes = await asyncio.gather(*(self._work(until) for _ in range(AT_ONCE)), return_exceptions=True)
        for error in filter(None, outcomes):  # when all have ended: nothing goes on behind a turn
            raise error

    async def _work(self, until: float) -> None:
        while monotonic() < until:
            try:
                await self._credentials.check_not_frozen()
            except Frozen:
                return
            due = await self._secrets.checks.take()
            if due is None:
                return
            await self._make(due)

    async def _make(self, due: Due) -> None:
        checks = self._secrets.checks
        rests = self._credentials.health(due.secret_id, due.version)
        if rests.state == "cooling":
            await checks.settle(due, is_good=True, not_before=rests.until)
            return
        try:
            is_good = await self._is_good(due)
        except Frozen:
            is_good = True  # it was not tested; nothing speaks against it
        except Unavailable:
            raise  # of the database: the lease ends by itself
        except (Invalid, ProviderUnknown):
            is_good = False  # there is nothing that could be tested, and nothing wrong with the key
        except Unreadable as error:
            log.warning("a key could not be checked", secret=str(due.secret_id), code=error.code)
            is_good = False  # marked, and told of, as any that does not open
        except KeybearerError as error:
            await checks.keep_problem(due, "error", f"{error.message} {error.hint}".strip())
            is_good = False
        await checks.settle(due, is_good=is_good)

    async def _is_good(self, due: Due) -> bool:
        opened = await self._secrets.checks.open(due)
        if opened is None:
            return False
        credential, model_id = opened
        return (await self.check(await self.provider_of(credential, model_id), credential)).status == "ok"

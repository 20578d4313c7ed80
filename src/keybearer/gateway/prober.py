"""Connection tests of one process: which test is whose, its time, and its verdict in one form for all of them.

Providers with a test call are asked over ``Upstream`` like any call (``probe``). Connection strings say themselves where they lead:
their hosts are sealed in them, and every connection is held to the egress policy (``dial``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol
from uuid import UUID

from keybearer.catalog import Provider, TestCall
from keybearer.domain import SYSTEM_OWNER_ID, SecretBytes
from keybearer.errors import FieldError, Invalid, KeybearerError, UpstreamTimeout
from keybearer.gateway.dial import Dialer
from keybearer.gateway.egress import placed
from keybearer.gateway.probe import PROBE_SECONDS, failed, probe, shown
from keybearer.gateway.probe_mysql import probe_mysql
from keybearer.gateway.probe_smtp import probe_smtp
from keybearer.gateway.probe_webhook import Method, probe_webhook
from keybearer.gateway.upstream import Upstream
from keybearer.gateway.verdict import ProbeResult, ProbeStatus, Refused


class _Probe(Protocol):
    async def __call__(self, dialer: Dialer, value: SecretBytes, *, is_systems: bool, seconds: float) -> None: ...


async def _probe_postgresql(dialer: Dialer, value: SecretBytes, *, is_systems: bool, seconds: float) -> None:
    # The client is 10 MB, which a server on SQLite need not hold until somebody tests such a connection string.
    from keybearer.gateway.probe_postgresql import probe_postgresql  # noqa: PLC0415

    await probe_postgresql(dialer, value, is_systems=is_systems, seconds=seconds)


_BY_PROVIDER: Mapping[str, _Probe] = {"postgresql": _probe_postgresql, "mysql": probe_mysql, "smtp": probe_smtp}
_PATH = re.compile(r"/[!-~]{0,500}", re.ASCII)


@dataclass(frozen=True, slots=True)
class TestOptions:
    """How something without a test call of its own is tested."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    method: Method | None = None
    """``None``: GET for custom providers, HEAD for addresses of webhooks, POST for signed messages."""
    path: str = ""
    """Of a custom provider, behind its base URL; empty: ``/models``."""
    url: str = ""
    """Where a signed webhook goes."""


_PLAIN = TestOptions()


class Prober:
    """Tests secrets; see the module. ``hooks`` holds to what users' own addresses may be."""

    def __init__(self, upstream: Upstream, hooks: Upstream, dialer: Dialer) -> None:
        self._upstream = upstream
        self._hooks = hooks
        self._dialer = dialer

    async def test(
        self,
        provider: Provider,
        value: SecretBytes,
        egress: Iterable[str],
        owner: UUID | None = None,
        options: TestOptions = _PLAIN,
        seconds: float = PROBE_SECONDS,
    ) -> ProbeResult:
        """Test a value at its provider. Never raises for what network and provider do; the result says it.

        ``owner``: whose it is; ``None``: not saved yet. Raises ``Invalid`` for what is not tested, or not like this, and
        ``EgressRefused`` where the key is not bound to its provider's address: then nothing was sent.
        """
        if provider.name in _BY_PROVIDER and provider.is_predefined:
            _refuse(options, "method", "path", "url")
            return await self._by_protocol(_BY_PROVIDER[provider.name], value, owner, seconds)
        if provider.name == "webhook" and provider.is_predefined:
            _refuse(options, "path")
            return await probe_webhook(self._hooks, value, options.url, options.method, owner, seconds=seconds)
        _refuse(options, "url")
        bound = tuple(egress)
        found = placed(provider, bound) or provider
        if options == _PLAIN:
            return await probe(self._upstream, found, value, bound, seconds=seconds)
        return await probe(self._upstream, _as_asked(found, options), value, bound, seconds=seconds, expects_json=False)

    async def _by_protocol(self, run: _Probe, value: SecretBytes, owner: UUID | None, seconds: float) -> ProbeResult:
        started = monotonic()
        status: ProbeStatus = "ok"
        message = ""
        try:
            async with asyncio.timeout(seconds):
                await run(self._dialer, value, is_systems=owner == SYSTEM_OWNER_ID, seconds=seconds)
        except TimeoutError:
            failure: KeybearerError = UpstreamTimeout(f"The server did not answer within {seconds:g} seconds.", hint="")
            return failed(failure, _since(started))
        except Refused as refusal:
            status, message = refusal.status, shown(refusal.message)
        except Invalid:
            raise
        except KeybearerError as error:
            return failed(error, _since(started))
        return ProbeResult(status, _since(started), message=message)


def _as_asked(provider: Provider, options: TestOptions) -> Provider:
    """A custom provider with the test call that its owner asks for. The host stays: keys go to no other."""
    test = provider.test
    if provider.is_predefined or test is None:
        raise Invalid(
            "This provider is tested with a call of its own.",
            hint="Leave out method and path.",
            fields=tuple(FieldError(name, "is not taken") for name in ("method", "path") if getattr(options, name)),
        )
    path = options.path or test.path
    if not _PATH.fullmatch(path):
        raise Invalid("path is no path.", fields=(FieldError("path", "begins with a slash, and has visible characters only"),))
    return replace(provider, test=TestCall(options.method or "GET", path, test.dialect))


def _refuse(options: TestOptions, *names: str) -> None:
    wrong = tuple(FieldError(name, "is not taken") for name in names if getattr(options, name))
    if wrong:
        raise Invalid(f"{wrong[0].field} is not taken for this provider.", fields=wrong)


def _since(started: float) -> float:
    return (monotonic() - started) * 1000

"""A use of a key as it comes about: one synchronous path from the token to the journal's line, with waits in between.

Where something is not at hand (a token not yet verified, a key not yet opened, a database that has gone away) ``proceed`` raises
``Wait`` and is called again from its top afterwards, so that there is one path, not a fast and a slow one, and a token revoked
during the wait is found out. ``Exchange`` bears a key to its provider, ``Fetch`` hands a value out.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Coroutine
from typing import Any

from keybearer.domain import Client
from keybearer.errors import EgressRefused, KeybearerError, TrustLost, Unavailable, UpstreamError
from keybearer.gateway.fields import USER_AGENT_CHARACTERS
from keybearer.gateway.intake import Intake
from keybearer.gateway.request import Head
from keybearer.gateway.turns import Connection

log = logging.getLogger("keybearer.gateway")

CLIENT_GONE = 499
"""Noted as the status where the client left before there was one."""
_ATTEMPTS = 16
"""Times that ``proceed`` may begin anew before the server owns up to being overtaken by changes. A cold process waits six times, and
as often again after a change that makes it forget everything."""
_RETRY_SECONDS = 0.25


class Wait(Exception):  # no error: how a step says what it needs
    """Something is not at hand: ``work`` gets it."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self.work = work


class Use(Intake):
    """What every use has in common (a ``Turn`` in its connection's queue, and a ``Departure`` for the journal)."""

    __slots__ = ("_attempts", "_use_at", "keep_alive", "request_id", "started", "used_at")

    def __init__(self, connection: Connection, head: Head, length: int | None, fault: KeybearerError | None = None) -> None:
        """``length``: the body's, as declared; ``None``: chunked. ``fault``: what it is to be refused with, when its turn comes."""
        super().__init__(connection, head, length, fault)
        self.request_id = self.plane.request_id()
        self.started = time.monotonic()
        self.keep_alive = head.fields.keep_alive
        self.used_at = 0.0
        """Unix time of the journal's line; 0: no use is on record that wants an outcome."""
        self._use_at = 0.0
        """``used_at``, from the moment the journal has been told."""
        self._attempts = 0

    # --- what kinds of uses differ in -----------------------------------------------------------------------------------

    def _leave(self) -> None:
        """The use is on record: let the key go where it is to go. Raises nothing."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Drop what was found out for a use that did not come about."""
        raise NotImplementedError

    def note_outcome(self, status: int, outcome: str) -> None:
        """The journal's second line for a use."""
        raise NotImplementedError

    # --- the journal's word ---------------------------------------------------------------------------------------------

    def depart(self, seq: int) -> None:
        """The use is on record as entry ``seq``."""
        self.used_at = self._use_at
        if self._is_over:  # the client left meanwhile: the key stays here
            self.note_outcome(CLIENT_GONE, "aborted")
        elif self.plane.journal.needs_wait:
            self._wait(self._leave_when_durable(seq))
        else:
            self._leave()

    def stay(self, error: KeybearerError) -> None:
        """The use could not be recorded."""
        self.refuse(error)

    # --- waiting --------------------------------------------------------------------------------------------------------

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        self._is_waiting = True
        self.plane.spawn(self.connection.loop, work)

    async def _proceed_after(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
            self._attempts += 1
        except KeybearerError as error:
            # A database that has just gone away is held for like one that is known to be away.
            if type(error) is not Unavailable or time.monotonic() > self.started + self.plane.limits.hold_seconds:
                self.refuse(error)
                return
            await asyncio.sleep(_RETRY_SECONDS)
        except Exception as error:  # noqa: BLE001  # as in proceed
            self._fail(error)
            return
        self._is_waiting = False
        if not self._is_over:
            self._again()

    async def _leave_when_durable(self, seq: int) -> None:
        try:
            await self.plane.journal.durable(seq)
        except KeybearerError as error:
            self.refuse(error)
        except Exception as error:  # noqa: BLE001  # as in proceed
            self._fail(error)
        else:
            self._is_waiting = False
            if not self._is_over:
                self._leave()

    def _again(self) -> None:
        if self._attempts > _ATTEMPTS:
            self.refuse(Unavailable("What this call needs is being changed too often.", retry_after=1.0))
        else:
            self.proceed()

    def restart(self) -> None:
        """The key did not leave, because trust was lost or something changed: that use ends refused, and a new one may begin."""
        self.note_outcome(TrustLost.status, "refused")
        self._forget()
        self.request_id = self.plane.request_id()
        self._attempts += 1
        self._again()

    def _log_failure(self, error: Exception) -> None:
        # Where, and not the exception's own words, which may be a key's or a value's.
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("a use failed unexpectedly: %s\n%s", type(error).__name__, where, extra={"request_id": self.request_id})

    def _fail(self, error: Exception) -> None:
        self._log_failure(error)
        if self.used_at:
            self.note_outcome(Unavailable.status, "failed")
        self.refuse(Unavailable("Something went wrong in the gateway."))

    # --- what the head says ---------------------------------------------------------------------------------------------

    def _client(self) -> Client:
        """Where the request comes from; found out once for all requests with these headers on this connection."""
        fields = self._head.fields
        if fields.client is None:
            address = self.plane.proxies.client_address(self.connection.peer, fields.forwarded_for)
            fields.client = Client(address, fields.user_agent[:USER_AGENT_CHARACTERS].decode("latin-1"))
        return fields.client


def outcome_of(error: KeybearerError) -> str:
    """How the journal calls a use that ended in one of our own errors."""
    if isinstance(error, UpstreamError):
        return "upstream_error"
    return "refused" if isinstance(error, Unavailable | EgressRefused) else "failed"

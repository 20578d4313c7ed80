"""The way back of an answer that may tell of something new, made with a key of several people.

The answer waits here until it is on record whose that is: so they can use it at once, in any process. A stream waits until its
first event that tells an id, an answer that is not streamed until it is whole. What tells no id within bounds, or could not be
recorded, goes on and is nobody's.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from keybearer.errors import KeybearerError
from keybearer.gateway.fields import Headers
from keybearer.gateway.relay import Relay
from keybearer.gateway.sharing import NOTHING, Guard, Named

if TYPE_CHECKING:
    from keybearer.gateway.exchange import Exchange
    from keybearer.gateway.plan import Plan

log = logging.getLogger("keybearer.gateway")

_HELD_LIMIT: Final = 4 * 2**20
"""Bytes of an answer that are held; descriptions of files and batches have some hundred, stored responses some thousand."""
_BEGINNING_LIMIT: Final = 256 * 1024
"""Likewise of a stream, whose first event tells the id."""
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_SUCCESSES: Final = range(200, 300)


class KeepingRelay(Relay):
    """A relay that holds an answer until what it tells of is on record, or that the object is gone."""

    __slots__ = ("_failure", "_guard", "_has_ended", "_held", "_is_complete", "_is_holding", "_is_recording", "_size", "_unread")

    def __init__(self, exchange: Exchange, planned: Plan, *, hides_usage: bool, guard: Guard) -> None:
        super().__init__(exchange, planned, hides_usage=hides_usage)
        self._guard = guard
        self._held: list[bytes] = []
        self._size = 0
        self._unread = bytearray()
        """Of a stream, the event that has not ended yet."""
        self._is_holding = False
        self._is_recording = False
        self._has_ended = False
        """The body has come as a whole ..."""
        self._is_complete = False
        """... and the provider's connection is free again."""
        self._failure: tuple[KeybearerError, bool] | None = None

    # --- the sink -------------------------------------------------------------------------------------------------------

    def on_response(self, status: int, headers: Headers) -> None:
        self._is_holding = status in _SUCCESSES
        super().on_response(status, headers)

    def on_wait(self) -> None:
        if not self._is_holding:
            super().on_wait()

    def on_data(self, data: bytes, ended: bool) -> None:  # noqa: FBT001  # the seam's shape
        if not self._is_holding:
            super().on_data(data, ended)
            return
        self._held.append(data)
        self._size += len(data)
        self._has_ended = self._has_ended or ended
        if not self._is_recording:
            self._look()

    def on_complete(self) -> None:
        self._is_complete = True
        if self._is_recording:
            return
        if self._guard.deletes and self._status in _SUCCESSES:
            self._spawn(NOTHING)
            return
        self._release()

    def on_failure(self, error: KeybearerError, sent: bool) -> None:  # noqa: FBT001  # the seam's shape
        if self._is_recording:
            self._failure = (error, sent)
        else:
            self._held.clear()
            self._is_holding = False
            super().on_failure(error, sent)

    def resume(self) -> None:
        if not self._is_recording:
            super().resume()

    # --- what is told ---------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find out what the answer tells of, as soon as it can be told; nothing, beyond the limit."""
        told = NOTHING
        if self._is_event_stream:
            told = self._told_by_events()
        elif self._has_ended:
            told = self._guard.made(b"".join(self._held), streamed=False)
        if told:
            if self.call is not None and not self._has_ended:
                self.call.pause_reading()
            self._spawn(told)
        elif self._size > (_BEGINNING_LIMIT if self._is_event_stream else _HELD_LIMIT) or (
            self._has_ended and not self._guard.deletes
        ):
            self._release()

    def _told_by_events(self) -> Named:
        """What the events tell that have ended with the last piece; each is looked at once, however small the pieces are."""
        unread = self._unread
        searched = max(len(unread) - 3, 0)  # what was there has no end of an event, but may have a part of one
        unread += self._held[-1]
        end = max((match.end() for match in _EVENT_END.finditer(unread, searched)), default=0)
        events = bytes(unread[:end])
        del unread[:end]
        return self._guard.made(events, streamed=True) if events else NOTHING

    def _spawn(self, told: Named) -> None:
        self._is_recording = True
        self._exchange.plane.spawn(self._exchange.connection.loop, self._record(told))

    async def _record(self, told: Named) -> None:
        objects, guard = self._exchange.plane.objects, self._guard
        try:
            if told and not await objects.record(guard.asked, told):
                log.warning("whose an object is could not be recorded: it is nobody's", extra={"object": min(told)[1]})
            if guard.deletes and self._status in _SUCCESSES:
                await objects.forget(guard.asked, (guard.verdict.kind, guard.verdict.object_id))
        except KeybearerError as error:
            log.warning("whose an object is could not be recorded", extra={"code": error.code})
        finally:
            self._is_recording = False
            self._release()

    def _release(self) -> None:
        """The answer goes on as if it had never waited."""
        was_holding, self._is_holding = self._is_holding, False
        if self._is_over:
            return
        held, self._held = b"".join(self._held), []
        self._unread.clear()
        if was_holding and (held or self._has_ended):
            super().on_data(held, self._has_ended)
        if self._failure is not None:
            super().on_failure(*self._failure)
        elif self._is_complete:
            super().on_complete()
        elif not self._exchange.connection.is_write_paused:
            super().resume()

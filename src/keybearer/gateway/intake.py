"""A gateway request as it arrives: its body, taken within limits, and only once it is known who sends it.

``Exchange`` is one; what it does with a request that has arrived is in ``exchange``.
"""

from __future__ import annotations

from uuid import UUID

from keybearer.errors import InvalidRequest, KeybearerError, TooLarge
from keybearer.gateway.answer import CONTINUE
from keybearer.gateway.request import Head
from keybearer.gateway.turns import Connection


class Intake:
    """The receiving half of a gateway request. ``proceed`` is called when the caller is to be known, and when all has arrived."""

    __slots__ = (
        "_fault",
        "_head",
        "_is_admitted",
        "_is_over",
        "_is_received",
        "_is_started",
        "_is_waiting",
        "_length",
        "_parts",
        "_share",
        "_share_of",
        "buffered",
        "connection",
        "plane",
    )

    def __init__(self, connection: Connection, head: Head, length: int | None, fault: KeybearerError | None) -> None:
        self.connection = connection
        self.plane = connection.plane
        self.buffered = 0
        self._head = head
        self._length = length
        self._fault = fault
        self._parts: list[bytes] = []
        self._share_of: UUID | None = None
        self._share = 0
        """What the body's sender is held to have in hand with it."""
        self._is_started = False
        self._is_received = False
        self._is_waiting = False
        self._is_over = False
        self._is_admitted = False

    def proceed(self) -> None:
        """Do what can be done with what has arrived."""
        raise NotImplementedError

    def refuse(self, error: KeybearerError) -> None:
        """Answer with an error."""
        raise NotImplementedError

    # --- a turn in the connection's queue -------------------------------------------------------------------------------

    def start(self) -> None:
        self._is_started = True
        if self._fault is not None:
            self.refuse(self._fault)
        elif self._is_received:
            self.proceed()

    def on_body(self, data: bytes) -> None:
        if self._is_over:
            return
        size = len(data)
        limit = self._body_limit()
        if self.buffered + size > limit:
            self.connection.fail_receiving(_too_large(limit))
            return
        try:
            self.plane.budget.take(size)
        except KeybearerError as error:
            self.connection.fail_receiving(error)
            return
        self.buffered += size
        self._parts.append(data)
        if self._share_of is not None:
            try:
                self._take_share(self._share_of, size)
            except KeybearerError as error:
                self.connection.fail_receiving(error)

    def on_more(self) -> None:
        """Before more of the body is read, the caller must be known and the route must exist."""
        if self._fault is None and not (self._is_admitted or self._is_waiting or self._is_over):
            self.proceed()
            if self._is_waiting:
                self.connection.flow.pause_reading()

    def take(self, body: bytes) -> None:
        """The whole request has come in one piece, and it is its turn."""
        self._is_started = self._is_received = True
        size, budget = len(body), self.plane.budget
        try:
            if self._fault is not None:
                raise self._fault
            route = self._head.route
            if size > self.plane.body_limit or route is None or route.body_limit is not None:
                self._check_size(size)
            if budget.held + size > budget.limit:
                budget.take(size)  # says why not
        except KeybearerError as error:
            self.refuse(error)
            return
        budget.held += size
        self.buffered = size
        self._parts = [body]
        self.proceed()

    def on_end(self) -> None:
        self._is_received = True
        if self._is_started and not self._is_waiting and not self._is_over:
            self.proceed()

    def on_malformed(self, error: KeybearerError) -> None:
        if self._is_started:
            self.refuse(error)
        else:
            self._fault = error

    # --- the body -------------------------------------------------------------------------------------------------------

    def _take_body(self) -> None:
        """The caller is known and the route exists: now the body is welcome, up to the route's limit."""
        self._is_admitted = True
        limit = self._body_limit()
        declared = self._length
        if (declared is not None and declared > limit) or self.buffered > limit:
            raise _too_large(limit)
        admission = self._head.admission
        if admission is not None:
            self._take_share(admission.grant.user_id, self.buffered)
        if self._head.fields.expects_continue and not self.buffered:
            self.connection.write(CONTINUE)
        self.connection.flow.resume_reading()

    def _take_share(self, user_id: UUID, size: int) -> None:
        self.plane.budget.take_for(user_id, size, self._share)
        self._share_of = user_id
        self._share += size

    def _check_size(self, size: int) -> None:
        limit = self._body_limit()
        if size > limit:
            raise _too_large(limit)

    def _body_limit(self) -> int:
        limit = self.plane.body_limit
        route = self._head.route
        if route is not None and route.body_limit is not None:
            limit = min(limit, route.body_limit)
        return limit

    def _body(self) -> bytes:
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0] if self._parts else b""

    def release_body(self) -> None:
        """The request's body is no longer held."""
        self.plane.budget.held -= self.buffered
        if self._share_of is not None:
            self.plane.budget.give_for(self._share_of, self._share)
            self._share_of, self._share = None, 0
        self.buffered = 0
        self._parts = []


def _too_large(limit: int) -> KeybearerError:
    if not limit:
        return InvalidRequest("This request takes no body.", hint="Send it without a body.")
    return TooLarge(f"The body is larger than {limit} bytes.")

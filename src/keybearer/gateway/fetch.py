"""A secret's value for server-side code that truly needs it (MISSION G14): ``POST /api/v1/secrets/resolve``, on the fast path.

The route is the API's, and so are the shapes of its errors; who asks, what is on record and how soon a revocation is heard is as for
every use of a key. ``Fetch`` is a turn beside ``Exchange``: the same steps, but that the key leaves in the answer.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Final

from keybearer.audit.lines import repeated_use_line
from keybearer.audit.refusals import is_refusal
from keybearer.domain import Asked, OutcomeRecord, Scope
from keybearer.errors import Frozen, KeybearerError, TooLarge, Unavailable
from keybearer.gateway.allowance import check_address, check_scope
from keybearer.gateway.answer import answer, problem
from keybearer.gateway.asked import asked_in
from keybearer.gateway.endpoints import Route
from keybearer.gateway.fields import Headers
from keybearer.gateway.handout import OPERATION, Handout
from keybearer.gateway.plan import read
from keybearer.gateway.ready import Admission, now
from keybearer.gateway.refusal import known, refusal
from keybearer.gateway.request import Head
from keybearer.gateway.turns import Connection
from keybearer.gateway.use import CLIENT_GONE, Use, Wait

log = logging.getLogger("keybearer.gateway")

PATH: Final = b"/api/v1/secrets/resolve"
BODY_BYTES: Final = 4096
_ROUTE: Final = Route("", OPERATION, b"POST", None, PATH, model="", body_limit=BODY_BYTES)
_HEADERS: Final = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]


def is_fetch(head: Head) -> bool:
    """Whether a request is taken out here: exactly so spelled. Any other spelling is the API's, which hands no value out."""
    return head.target == PATH and head.method == b"POST"


class Fetch(Use):
    """A fetch in its connection's queue (a ``Turn``)."""

    __slots__ = ("_asked", "_handout")

    def __init__(self, connection: Connection, head: Head, length: int | None, fault: KeybearerError | None = None) -> None:
        """As ``Use``."""
        super().__init__(connection, head, length, fault)
        self._asked: Asked | None = None
        self._handout: Handout | None = None

    # --- the steps ------------------------------------------------------------------------------------------------------

    def proceed(self) -> None:
        """From the token to the journal, which calls ``depart``. Synchronous; after a wait it begins at the top again."""
        try:
            admission = self._authenticate()
            if not self._is_received:
                self._take_body()
                return
            if self._asked is None:
                self._asked = self._read()
            handout = self._handout = self._find(admission, self._asked)
            self._use_at = time.time()
            tail = handout.use_tail(admission.grant, self._head.fields, self._client())
            self.plane.journal.depart(repeated_use_line(self.request_id, self._use_at, tail), self)
        except Wait as wait:
            self._wait(self._proceed_after(wait.work))
        except KeybearerError as error:
            self.refuse(error)
        except Exception as error:  # noqa: BLE001  # named boundary: a mistake of ours ends this request, not the connection
            self._fail(error)

    def _authenticate(self) -> Admission:
        """The token is valid, known to be so at this moment, and may fetch from here."""
        plane, head = self.plane, self._head
        if not plane.feed.is_trusted():
            raise Wait(plane.feed.wait_trusted(plane.limits.hold_seconds))
        admission = head.admission
        if admission is not None and not admission.is_dropped and admission.until > now():
            return admission  # found to be so before, for this very head on this very connection
        fields = head.fields
        admission = plane.credentials.admission(fields.digest)
        if admission is None:
            raise Wait(plane.credentials.fill_admission(fields.token))
        check_scope(admission.grant, fields.acts_as, Scope.SECRETS_READ)
        if admission.networks:
            check_address(admission.networks, self._client().ip)
        head.route = _ROUTE
        head.admission = admission
        return admission

    def _read(self) -> Asked:
        body = self._body()
        if len(body) > BODY_BYTES:
            raise TooLarge(f"The body is larger than {BODY_BYTES} bytes.")
        read(_ROUTE, body, self._head.fields.content_type)  # refuses what is not one JSON object
        return asked_in(body)

    def _find(self, admission: Admission, asked: Asked) -> Handout:
        """The value, from the cache or resolved and decrypted; none while the deployment is frozen."""
        credentials = self.plane.credentials
        if credentials.is_frozen is None:
            raise Wait(credentials.fill_frozen())
        if credentials.is_frozen:
            raise Frozen
        handout = credentials.handout(admission, asked)
        if handout is None:
            raise Wait(credentials.fill_handout(admission, asked))
        return handout

    def _leave(self) -> None:
        """The last look, at the very moment the bytes are written; then the value leaves."""
        plane, handout = self.plane, self._handout
        is_frozen = plane.credentials.is_frozen
        if is_frozen:
            self.refuse(Frozen())
        elif is_frozen is None or handout is None or not handout.is_good(now()) or not plane.feed.is_trusted():
            self.restart()
        else:
            headers = [*self.connection.default_headers(), *_HEADERS]
            receipt = self._receipt() + handout.receipt
            self.connection.write(answer(200, headers, handout.body.reveal(), receipt, keep_alive=self.keep_alive))
            self.note_outcome(200, "ok")
            self._finish(keep_alive=self.keep_alive)

    def _forget(self) -> None:
        self._handout = None

    # --- answers --------------------------------------------------------------------------------------------------------

    def refuse(self, error: KeybearerError) -> None:
        """Answer with problem details."""
        if self._is_over:
            return
        if self.used_at:
            self.note_outcome(error.status, "refused" if isinstance(error, Unavailable) else "failed")
        elif is_refusal(error):
            self._note_refusal(error)
        keep_alive = self.keep_alive and self._is_received
        headers: Headers = self.connection.default_headers()
        self.connection.write(problem(error, headers, self._receipt(), keep_alive=keep_alive))
        self._finish(keep_alive=keep_alive)

    def _note_refusal(self, error: KeybearerError) -> None:
        fields = self._head.fields
        admission = self.plane.credentials.admission(known(fields))
        noted = refusal(error, fields, self._client(), ("", ""), admission)
        secret_id = None if self._asked is None else self._asked.id
        detail = (("route", f"POST {PATH.decode()}"), *noted.detail)
        self.plane.refusals.note(replace(noted, action="secret.refuse", subject=str(secret_id or ""), detail=detail))

    def _receipt(self) -> bytes:
        return b"x-keybearer-request-id: %b\r\n" % self.request_id.encode("ascii")

    def _finish(self, *, keep_alive: bool) -> None:
        self._end()
        self.connection.finish(self, keep_alive=keep_alive)

    def _end(self) -> None:
        self._is_over = True
        if self.buffered:
            self.release_body()
        self._handout = None

    def note_outcome(self, status: int, outcome: str) -> None:
        """The journal's second line. A fetch itself costs nothing; what its value is used for is not seen here."""
        spent = (time.monotonic() - self.started) * 1000
        self.plane.journal.outcome(OutcomeRecord(self.request_id, time.time(), status, outcome, spent, None, cost_micro_usd=0))
        self.used_at = 0.0

    # --- a turn in the connection's queue -------------------------------------------------------------------------------

    def on_disconnect(self) -> None:
        if self._is_over:
            return
        if self.used_at:
            self.note_outcome(CLIENT_GONE, "aborted")
        self._end()

    def on_pause(self) -> None:
        """The answer is one write: there is nothing to hold back."""

    def on_resume(self) -> None:
        """As ``on_pause``."""

    def cut_off(self) -> None:
        self.refuse(Unavailable("The server is stopping.", retry_after=1.0))

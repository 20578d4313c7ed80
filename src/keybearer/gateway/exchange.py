"""One gateway request, from its head to the moment its bytes are on their way to the provider: six steps on one screen.

``proceed`` is the whole story. It is synchronous; how it waits is told in ``use``. The way back is ``relay``'s.
"""

from __future__ import annotations

import logging
import time

from keybearer.audit.lines import repeated_use_line, reserving_tail
from keybearer.audit.refusals import is_refusal
from keybearer.catalog import Provider, Registry
from keybearer.domain import Grant, OutcomeRecord, Usage, UseRecord
from keybearer.errors import Frozen, KeybearerError, KeyUnusable, LimitReached, TokenMissing, Unavailable
from keybearer.gateway import dialect
from keybearer.gateway.allowance import check_address, check_model, check_one_model, check_scope
from keybearer.gateway.answer import JSON_HEADERS, PROBE_BODY, answer, error_headers
from keybearer.gateway.counters import reserve, used_of
from keybearer.gateway.course import Course, CourseKey, key_of
from keybearer.gateway.fields import Headers
from keybearer.gateway.health import Health
from keybearer.gateway.keeping import KeepingRelay
from keybearer.gateway.plan import Document, Form, Plan, compose, dialect_of, is_probe, plan, read, rerouted, route
from keybearer.gateway.ready import Admission, Ready, Wanted, now
from keybearer.gateway.refusal import known, refusal
from keybearer.gateway.relay import NO_USAGE, Relay
from keybearer.gateway.request import Head, refuse_token_elsewhere
from keybearer.gateway.ring import kind_of
from keybearer.gateway.sharing import Guard
from keybearer.gateway.turns import Connection
from keybearer.gateway.use import CLIENT_GONE, Use, Wait, outcome_of
from keybearer.usage import prices
from keybearer.usage.limits import NOTHING, Hold

log = logging.getLogger("keybearer.gateway")

_COURSES = 64
"""Courses kept for one head of one connection ..."""
_LARGE_BLOCK, _COURSES_OF_LARGE = 4096, 4
"""... and of one with so many bytes of headers, of which some providers' courses have a copy each."""
_CACHEABLE = frozenset({b"GET", b"HEAD"})
_PAST_OWN = "past own"
"""In the key of a course that leads to others' keys, because one's own are at their limits."""
_OTHER_KEYS = 7
"""Keys that one call may try beside the first."""


class Exchange(Use):
    """A gateway request in its connection's queue (a ``Turn``)."""

    __slots__ = (
        "_course",
        "_hides_usage",
        "_hold",
        "_limit",
        "_relay",
        "_sent",
        "_tried",
        "is_head",
        "is_http10",
        "model",
        "provider",
        "ready",
        "registry",
    )

    def __init__(self, connection: Connection, head: Head, length: int | None, fault: KeybearerError | None = None) -> None:
        """As ``Use``."""
        super().__init__(connection, head, length, fault)
        self.model = self.provider = ""
        self.registry: Registry | None = None
        self.ready: Ready | None = None
        self.is_http10 = head.fields.is_http10
        self.is_head = head.method == b"HEAD"
        self._course: Course | None = None
        self._sent = b""
        """The body that goes to the provider, until it has gone."""
        self._hides_usage = False
        self._hold: Hold | None = None
        """What it has reserved of the limits that it is held to."""
        self._relay: Relay | None = None
        self._tried: tuple[Health, ...] = ()
        """The keys that failed this call."""
        self._limit: LimitReached | None = None
        """Why the caller's own keys do not serve it, where others' may."""

    @property
    def is_cacheable(self) -> bool:
        """Whether a cache may keep the answer, if it is not told otherwise (RFC 9111, section 3)."""
        return self._head.method in _CACHEABLE

    # --- the six steps --------------------------------------------------------------------------------------------------

    def proceed(self) -> None:
        """From the token to the journal, which calls ``depart``; step 6, meter, settle and note the outcome, is ``Relay``'s."""
        try:
            admission = self._authenticate()
            if not self._is_received:
                self._take_body()
                return
            body = self._body()
            document = self._read(body)
            key = key_of(document) if self._limit is None else (*key_of(document), _PAST_OWN)
            course = self._head.courses.get(key)
            ready = course.ready() if course is not None and course.admission is admission else None
            if course is None or ready is None or ready.is_stale():
                planned = self._plan(admission, document)
                if planned.provider is None:
                    self._answer_locally(planned, admission.grant)
                    return
                ready = self._credentials(admission, _wanted(planned, planned.provider, is_past_own=self._limit is not None))
                course = self._set_course(admission, planned, ready, key)
            elif ready.takes_turns or ready.health.marks:
                course, ready = self._take_turn(course, ready, key)
            if course.one_model:
                check_one_model(document)
            if course.guard is not None:
                self._check_objects(course.guard, body)
            self._sent, self._hides_usage = compose(course.plan, body, document)
            self._note_use(course, ready)
        except Wait as wait:
            self._wait(self._proceed_after(wait.work))
        except KeybearerError as error:
            self.refuse(error)
        except Exception as error:  # noqa: BLE001  # named boundary: a mistake of ours ends this request, not the connection
            self._fail(error)

    def _authenticate(self) -> Admission:
        """1. The token is valid, known to be so at this moment, and may do this from here."""
        plane, head = self.plane, self._head
        if not plane.feed.is_trusted():
            raise Wait(plane.feed.wait_trusted(plane.limits.hold_seconds))
        admission = head.admission
        if admission is not None and not admission.is_dropped and admission.until > now():
            return admission  # found to be so before, for this very head on this very connection
        fields = head.fields
        refuse_token_elsewhere(head.target, fields.forwarded.block)
        admission = plane.credentials.admission(fields.digest)
        if admission is None:
            raise Wait(plane.credentials.fill_admission(fields.token))
        check_scope(admission.grant, fields.acts_as)
        if admission.networks:
            check_address(admission.networks, self._client().ip)
        if head.route is None:
            head.route = route(head.method, head.target, fields.headers)
        head.admission = admission
        head.courses.clear()
        return admission

    def _read(self, body: bytes) -> Document | Form | None:
        """2. What the body says of it: model and stream."""
        head = self._head
        if head.route is None:
            raise Unavailable
        return read(head.route, body, head.fields.content_type)

    def _plan(self, admission: Admission, document: Document | Form | None) -> Plan:
        """2. Which provider, which model, which path; all of them allowed to this token."""
        grant, credentials = admission.grant, self.plane.credentials
        self.registry = credentials.registry(grant.user_id)
        if self.registry is None or self._head.route is None:
            raise Wait(credentials.fill_registry(grant.user_id))
        planned = plan(self._head.route, document, self.registry)
        if planned.provider is not None:
            self.provider, self.model = planned.provider.name, planned.model
            check_model(grant, planned.provider, planned.model, planned.operation)
        return planned

    def _credentials(self, admission: Admission, wanted: Wanted) -> Ready:
        """3. The key, from the cache or resolved and decrypted; none while the deployment is frozen."""
        credentials = self.plane.credentials
        if credentials.is_frozen is None:
            raise Wait(credentials.fill_frozen())
        if credentials.is_frozen:
            raise Frozen
        ready = self._key(admission, wanted)
        ready.check_egress()
        return ready

    def _key(self, admission: Admission, wanted: Wanted) -> Ready:
        """3. The key whose turn it is, of those that have not failed this call."""
        credentials = self.plane.credentials
        ready = credentials.ready(admission, wanted, self._tried)
        if ready is None:
            raise Wait(credentials.fill_ready(admission, wanted))
        return ready

    def _check_objects(self, guard: Guard, body: bytes) -> None:
        """3. With a key of several people, every object that the call names must be its caller's own."""
        objects = self.plane.objects
        unknown = objects.unknown(guard.asked, guard.named(body, self._head.fields.content_type))
        if unknown:
            raise Wait(objects.find(guard.asked, unknown))

    def _take_turn(self, course: Course, ready: Ready, key: CourseKey) -> tuple[Course, Ready]:
        """3. Of several keys, or where something is known against the only one: the key that serves this call, and its course."""
        head = self._head
        chosen = self._key(course.admission, ready.wanted)
        if chosen is ready:
            return course, ready
        key = (*key, chosen.health)
        beside = head.courses.get(key)
        if beside is None or beside.admission is not course.admission or beside.ready() is not chosen:
            chosen.check_egress()
            beside = self._set_course(course.admission, course.plan, chosen, key)
        return beside, chosen

    def _set_course(self, admission: Admission, planned: Plan, ready: Ready, key: CourseKey) -> Course:
        """For this call and those that look like it."""
        head, grant, credential = self._head, admission.grant, ready.credential
        if ready.stand_in is not None:
            planned = rerouted(planned, *ready.stand_in)
        if self.plane.counters.is_behind:
            raise Wait(self.plane.counters.catch_up())
        use = UseRecord(
            request_id="",
            at=0.0,
            user_id=grant.user_id,
            token_id=grant.token_id,
            secret_id=credential.secret_id,
            secret_version=credential.secret_version,
            owner=credential.owner,
            source=credential.source,
            provider=ready.provider,
            model=planned.model,
            operation=planned.operation,
            streamed=planned.streamed,
            workflow=head.fields.workflow,
            node=head.fields.node,
            client=self._client(),
        )
        guard = Guard.of(planned, credential, ready.target.origin.text, grant)
        forwarded = head.fields.forwarded if guard is None else guard.forwarded(head.fields.forwarded)
        course = Course(admission, planned, ready, forwarded, use)
        course.guard = guard
        course.limits = self.plane.counters.limits_of(grant, credential)
        if len(head.courses) >= (_COURSES if len(forwarded.block) <= _LARGE_BLOCK else _COURSES_OF_LARGE):
            head.courses.clear()
        head.courses[key] = course
        return course

    def _note_use(self, course: Course, ready: Ready) -> None:
        """4. The most that the call may use is taken from what it is held to; then the journal's line, before the key leaves."""
        self._course = course
        self.ready = ready
        self.model = course.plan.model
        if course.limits is None:
            self._depart_as(course.use_tail, ready)
            return
        try:
            reserve(course.limits, course.plan, ready.provider, self._sent, self)
        except LimitReached as error:
            self.unreserved(error)

    def _depart_as(self, tail: bytes, ready: Ready) -> None:
        self._use_at = time.time()
        if ready.health.marks:
            self.plane.credentials.try_out(ready)
        self.plane.journal.depart(repeated_use_line(self.request_id, self._use_at, tail), self)

    def reserved(self, hold: Hold) -> None:
        """4. What the call may use is its own; that is on record with the use, and ``depart`` or ``stay`` comes next."""
        course, ready = self._course, self.ready
        if self._is_over or course is None or ready is None:  # the client left meanwhile
            hold.release()
            return
        self._hold = hold
        tail, most = course.use_tail, hold.most
        try:
            self._depart_as(tail if most == NOTHING else reserving_tail(most.tokens, most.micro_usd, tail), ready)
        except Exception as error:  # noqa: BLE001  # as in proceed
            self.release()
            self._fail(error)

    def unreserved(self, error: KeybearerError) -> None:
        """4. A limit is reached, or nobody knows. Where it is the key's own, another may serve: of its scope, else as its owner said."""
        ready, tried = self.ready, None
        if isinstance(error, LimitReached) and error.is_of_key and ready is not None and ready.wanted.kind != "keeping":
            if self.may_fail_over():
                tried = (*self._tried, ready.health)
            elif self._limit is None and ready.credential.may_fall_back:
                self._limit, tried = error, ()
        if tried is None:
            self.refuse(error)
            return
        self._tried = tried
        self._forget()
        self.proceed()

    def release(self) -> None:
        """Nothing was sent: what was reserved is free again."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _settle(self, hold: Hold, outcome: OutcomeRecord) -> None:
        """6. What it did use takes the place of what it reserved; nothing, where the key stayed here."""
        self._hold = None
        if self._relay is None:
            hold.release()
        else:
            hold.settle(outcome.outcome, outcome.status, used_of(outcome.usage, outcome.cost_micro_usd))

    def stay(self, error: KeybearerError) -> None:
        self.release()
        super().stay(error)

    def _leave(self) -> None:
        """5. To the provider; the answer comes to the relay, which does step 6."""
        course, ready = self._course, self.ready
        if course is None or ready is None:
            return
        try:
            guard = course.guard
            if guard is None or not (guard.keeps or guard.deletes):
                relay = Relay(self, course.plan, hides_usage=self._hides_usage)
            else:
                relay = KeepingRelay(self, course.plan, hides_usage=self._hides_usage, guard=guard)
            self._relay = relay
            request, self._sent = course.request(ready, self._sent), b""
            relay.call = self.plane.upstream.send(ready.target, request, relay, head_only=self.is_head)
            if self.connection.is_write_paused:
                relay.pause()
        except Exception as error:  # noqa: BLE001  # as in proceed
            self._fail(error)

    def _forget(self) -> None:
        self._relay = self.ready = self._course = None

    # --- the next key ---------------------------------------------------------------------------------------------------

    def may_fail_over(self) -> bool:
        """Whether another key of the same scope can try this call: one is left, and the request as it came is still at hand."""
        course, ready = self._course, self.ready
        if course is None or ready is None or len(self._tried) >= _OTHER_KEYS:
            return False
        return self.plane.credentials.other(course.admission, ready, (*self._tried, ready.health))

    def fail_over(self, status: int, first_byte: float | None = None) -> None:
        """The key did not serve: its use ends so, and another begins, with a look at everything anew."""
        if self.ready is not None:
            self._tried = (*self._tried, self.ready.health)
        self.note_outcome(status, "upstream_error", first_byte)
        self._forget()
        self.request_id = self.plane.request_id()
        self.started = time.monotonic()
        self.proceed()

    def refuse_resting(self, status: int, first_byte: float | None) -> bool:
        """The last of several keys was asked too often: the caller is told when the first of them can be asked again."""
        course, ready = self._course, self.ready
        if course is None or ready is None:
            return False
        problem = self.plane.credentials.resting(course.admission, ready)
        if problem is None:
            return False
        problem.is_recorded = True
        self.note_outcome(status, "upstream_error", first_byte)
        self.refuse(problem)
        return True

    # --- answers of our own ---------------------------------------------------------------------------------------------

    def _answer_locally(self, planned: Plan, grant: Grant) -> None:
        """The model list over all providers, or that somebody is here: no key leaves, so there is no use to note."""
        if planned.local == "probe":
            self._answer(200, JSON_HEADERS, PROBE_BODY)
            return
        body = dialect.models_body(
            self._dialect(),
            self.registry or Registry(()),
            allowed_providers=grant.allowed_providers,
            allowed_models=grant.allowed_models,
        )
        self._answer(200, JSON_HEADERS, body)

    def refuse(self, error: KeybearerError) -> None:
        """Answer with an error in the dialect's shape."""
        if self._is_over:
            return
        if self._limit is not None and isinstance(error, KeyUnusable):
            error = self._limit  # nobody else's serves: that is the answer
        if isinstance(error, TokenMissing) and is_probe(self._head.method, self._head.path):
            self._answer(200, JSON_HEADERS, PROBE_BODY)
            return
        status, content_type, body = dialect.error_body(self._dialect(), error, self.request_id)
        if self.used_at:
            self.note_outcome(status, outcome_of(error))
        elif is_refusal(error):
            admission = self.plane.credentials.admission(known(self._head.fields))
            self.plane.refusals.note(refusal(error, self._head.fields, self._client(), (self.provider, self.model), admission))
        self._answer(status, error_headers(error, content_type), body)

    def _answer(self, status: int, headers: Headers, body: bytes) -> None:
        keep_alive = self.keep_alive and self._is_received
        headers = [*self.connection.default_headers(), *headers]
        self.connection.write(answer(status, headers, body, self.receipt(), is_head=self.is_head, keep_alive=keep_alive))
        self.finish(keep_alive=keep_alive)

    def receipt(self) -> bytes:
        """The header lines that say which request this was, and whose key served it."""
        lines = b"x-keybearer-request-id: " + self.request_id.encode("ascii") + b"\r\n"
        return lines + self.ready.receipt if self.ready is not None else lines

    def finish(self, *, keep_alive: bool) -> None:
        """The answer is written as a whole."""
        self._end()
        self.connection.finish(self, keep_alive=keep_alive)

    def abort(self) -> None:
        """The answer cannot be finished: cut the connection, so that nobody takes it for whole."""
        self._end()
        self.connection.transport.abort()

    def leave(self) -> None:
        """The answer has come as a whole: it goes to the client, if there still is one."""
        if self._relay is None:
            return
        try:
            self._relay.leave()
        except Exception as error:  # noqa: BLE001  # as in proceed, but that part of it may be written: the connection is cut
            self._log_failure(error)
            if self.used_at:
                self.note_outcome(Unavailable.status, "failed")
            self.abort()

    def _end(self) -> None:
        self._is_over = True
        if self.buffered:
            self.release_body()
        self.ready = self._relay = self._course = None  # no reference cycle is left for the collector
        self._sent = b""

    def note_outcome(self, status: int, outcome: str, first_byte: float | None = None, usage: Usage = NO_USAGE) -> None:
        """The journal's second line for a use. ``first_byte``: monotonic time at which the answer began."""
        now = time.monotonic()
        cost: int | None = None
        if usage is not NO_USAGE and self.ready is not None:
            cost = prices.cost_micro_usd(self.ready.provider, self.model, usage, self.used_at)
        record = OutcomeRecord(
            request_id=self.request_id,
            at=time.time(),
            status=status,
            outcome=outcome,
            duration_ms=(now - self.started) * 1000,
            first_byte_ms=None if first_byte is None else (first_byte - self.started) * 1000,
            usage=usage,
            cost_micro_usd=cost,
        )
        self.plane.journal.outcome(record)
        if self._hold is not None:
            self._settle(self._hold, record)
        self.used_at = 0.0

    # --- a turn in the connection's queue -------------------------------------------------------------------------------

    def on_disconnect(self) -> None:
        if self._is_over:
            return
        if self._relay is not None:
            self._relay.on_client_gone()
        elif self.used_at:
            self.note_outcome(CLIENT_GONE, "aborted")
        self._end()

    def on_pause(self) -> None:
        if self._relay is not None:
            self._relay.pause()

    def on_resume(self) -> None:
        if self._relay is not None:
            self._relay.resume()

    def cut_off(self) -> None:
        stopping = Unavailable("The server is stopping.", retry_after=1.0)
        if self._relay is not None:
            self._relay.cut_off(stopping)
        else:
            self.refuse(stopping)

    def _dialect(self) -> str:
        if self._head.route is not None:
            return self._head.route.dialect
        return dialect_of(self._head.target, self._head.fields.headers)


def leave_together(exchanges: list[Exchange]) -> None:
    """Whole answers of two turns of the event loop leave right after each other."""
    for exchange in exchanges:
        exchange.leave()


def _wanted(planned: Plan, provider: Provider, *, is_past_own: bool) -> Wanted:
    return Wanted(provider, planned.dialect, planned.model, kind_of(planned.operation), is_past_own)

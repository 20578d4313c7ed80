"""The course of calls that look alike: same head, same token, same model, streamed or not. Worked out once, followed many times.

A course holds what need not be worked out again: the plan, the request's lines, the end of the journal's line. It holds neither the
key nor anything that may outlive a change: it is followed only with the very admission and the very key it was made for, as long as
the caches (``credentials``) have them.
"""

from __future__ import annotations

from weakref import ref

from keybearer.audit.lines import use_tail
from keybearer.domain import UseRecord
from keybearer.errors import InvalidRequest
from keybearer.gateway.fields import Lines
from keybearer.gateway.plan import Document, Form, Plan
from keybearer.gateway.ready import Admission, Ready
from keybearer.gateway.sharing import Guard
from keybearer.usage.limits import Limits

Request = bytes | list[bytes]
CourseKey = tuple[object, ...]
"""The model's name and the stream flag as the body has them; where several keys take turns, the key's health beside."""

_JOINED_BODY = 64 * 1024
"""Bodies up to this size are joined with the head for one write; larger ones are not copied."""
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


class Course:
    """Where calls that look alike go, and how they are written down."""

    __slots__ = ("_block", "_first", "_states_length", "admission", "guard", "limits", "one_model", "plan", "ready", "use_tail")

    def __init__(self, admission: Admission, plan: Plan, ready: Ready, forwarded: Lines, use: UseRecord) -> None:
        """``forwarded``: what of the client's headers goes on; ``use``: one such use. Raises ``InvalidRequest``."""
        self.admission = admission
        self.plan = plan
        self.guard: Guard | None = None
        """What a key of several people may not do; ``None``: the key is the caller's own."""
        self.limits: Limits | None = None
        """What its calls are held to; ``None``: nothing."""
        self.one_model = admission.grant.allowed_models is not None or ready.credential.allowed_models is not None
        """Token or key is limited to certain models, so a body may name no further ones."""
        self.use_tail = use_tail(use)
        self.ready = ref(ready)  # the caches decide how long a key is in memory, not a connection that idles
        if ready.auth_name or ready.defaults:
            forwarded = Lines(_adapted(forwarded.pieces, ready))
        self._first = b"%b %b" % (plan.method, plan.path)
        self._block = forwarded.block
        self._states_length = plan.method in _WITH_BODY
        self._check(ready, forwarded)

    def request(self, ready: Ready, body: bytes) -> Request:
        """The whole request as the provider gets it: prepared lines with the key, the client's own headers, the body."""
        end = b"\r\ncontent-length: %d\r\n\r\n" % len(body) if body or self._states_length else b"\r\n\r\n"
        if len(body) > _JOINED_BODY:
            return [b"".join((self._first, ready.head.reveal(), self._block, end)), body]
        return b"".join((self._first, ready.head.reveal(), self._block, end, body))

    def _check(self, ready: Ready, forwarded: Lines) -> None:
        """The parser let no line break pass and ``plan`` none into the path; counting them would catch a mistake."""
        head = b"".join((self._first, ready.head.reveal(), self._block))
        lines = ready.lines + forwarded.count
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head or b" " in self.plan.path:
            raise InvalidRequest("The request cannot be passed on.")


def key_of(document: Document | Form | None) -> CourseKey:
    """By what courses of one head are told apart; where the body decides nothing, there is one."""
    return (None, None) if document is None else (document.head.model, document.head.stream)


def _adapted(forward: list[bytes], ready: Ready) -> list[bytes]:
    """Without a header of the name that the key goes in, and with what the provider wants where the client said nothing."""
    names = forward[::2]
    if ready.auth_name in names:
        pairs = zip(names, forward[1::2], strict=True)
        forward = [piece for pair in pairs if pair[0] != ready.auth_name for piece in pair]
    return [*forward, *(piece for pair in ready.defaults if pair[0] not in names for piece in pair)]

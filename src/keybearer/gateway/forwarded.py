"""The request as the provider gets it: prepared lines with the key, the client's own headers, the planned body."""

from __future__ import annotations

from keybearer.errors import InvalidRequest
from keybearer.gateway.credentials import Ready
from keybearer.gateway.fields import Lines
from keybearer.gateway.plan import Plan

Request = bytes | list[bytes]

_JOINED_BODY = 64 * 1024
"""Bodies up to this size are joined with the head for one write; larger ones are not copied."""
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


def forwarded_request(planned: Plan, ready: Ready, forwarded: Lines) -> Request:
    """The whole request. ``forwarded``: what of the client's headers goes on.

    llhttp let no line break pass and ``plan`` none into the path; counting them costs 100 ns and would catch a mistake.
    """
    if ready.auth_name or ready.defaults:
        forwarded = Lines(_adapted(forwarded.pieces, ready))
    body = planned.body
    lines = ready.lines + forwarded.count + 3
    length = b"\r\ncontent-length: %d\r\n\r\n" % len(body)
    if not body and planned.method not in _WITH_BODY:
        length = b"\r\n\r\n"
        lines -= 1
    head = b"".join((planned.method, b" ", planned.path, ready.head.reveal(), forwarded.block, length))
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head or b" " in planned.path:
        raise InvalidRequest("The request cannot be passed on.")
    if len(body) > _JOINED_BODY:
        return [head, body]
    return head + body


def _adapted(forward: list[bytes], ready: Ready) -> list[bytes]:
    """Without a header of the name that the key goes in, and with what the provider wants where the client said nothing."""
    names = forward[::2]
    if ready.auth_name in names:
        pairs = zip(names, forward[1::2], strict=True)
        forward = [piece for pair in pairs if pair[0] != ready.auth_name for piece in pair]
    return [*forward, *(piece for pair in ready.defaults if pair[0] not in names for piece in pair)]

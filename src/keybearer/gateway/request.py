"""A request's head, read strictly: what is malformed or ambiguous is refused here, before anything acts on it.

llhttp (strict mode) already refuses obs-fold, bare CR and LF, NUL and control characters in values, both lengths, repeated
or crooked Content-Length and white space before the colon; what it lets pass is refused in ``read_head``: other versions,
absolute, authority and asterisk form, fragments, missing or repeated Host, codings before ``chunked``, Transfer-Encoding on
HTTP/1.0, Upgrade, and sizes (RFC 9112 §3, §5, §6). Tests hold both halves, so a laxer parser would be noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

from keybearer.errors import CredentialsConflict, InvalidRequest, TokenMissing, TooLarge
from keybearer.gateway.limits import Limits

Headers = list[tuple[bytes, bytes]]

LABEL_CHARACTERS = 128
"""Workflow and node ids are cut to this."""
USER_AGENT_CHARACTERS = 256


class Kind(IntEnum):
    """What becomes of a request header."""

    FORWARD = 0
    """Reaches the provider as the client sent it."""
    DROP = 1
    """Ends here: hop by hop, cookies, forwarding, encodings we do not ask for, Keybearer's own."""
    CONTENT_TYPE = 2
    USER_AGENT = 3
    CREDENTIAL = 4
    HOST = 5
    LENGTH = 6
    TRANSFER_ENCODING = 7
    CONNECTION = 8
    EXPECT = 9
    UPGRADE = 10
    FORWARDED_FOR = 11
    FORWARDED_PROTO = 12
    WORKFLOW = 13
    NODE = 14
    ACT_AS = 15


CREDENTIAL_NAMES = frozenset({b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key"})

_KINDS: dict[bytes, Kind] = {
    b"content-type": Kind.CONTENT_TYPE,
    b"user-agent": Kind.USER_AGENT,
    b"host": Kind.HOST,
    b"content-length": Kind.LENGTH,
    b"transfer-encoding": Kind.TRANSFER_ENCODING,
    b"connection": Kind.CONNECTION,
    b"expect": Kind.EXPECT,
    b"upgrade": Kind.UPGRADE,
    b"x-forwarded-for": Kind.FORWARDED_FOR,
    b"x-forwarded-proto": Kind.FORWARDED_PROTO,
    b"x-keybearer-workflow": Kind.WORKFLOW,
    b"x-keybearer-node": Kind.NODE,
    b"x-keybearer-user": Kind.ACT_AS,
    **dict.fromkeys(CREDENTIAL_NAMES, Kind.CREDENTIAL),
}
_DROPPED = frozenset(
    # hop by hop (RFC 9110 §7.6.1) and their unofficial kin
    b"keep-alive te trailer http2-settings "
    # content codings: usage is read from the answer, so identity is asked for
    b"accept-encoding cookie cookie2 "
    # who the client is, and where it thinks it is: no provider's business
    b"forwarded via x-real-ip x-client-ip x-cluster-client-ip true-client-ip x-original-forwarded-for "
    b"cf-connecting-ip cf-connecting-ipv6 cf-ipcountry cf-ray cf-visitor fastly-client-ip cdn-loop "
    b"x-envoy-external-address x-original-url x-rewrite-url x-original-host x-host".split()
)
_DROPPED_PREFIXES = (b"x-keybearer-", b"x-forwarded-", b"proxy-")

_SINGLE = frozenset({Kind.HOST, Kind.LENGTH, Kind.TRANSFER_ENCODING, Kind.EXPECT, Kind.CONTENT_TYPE, Kind.ACT_AS})
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*\Z")  # origin form, no fragment
_TOKEN_ANYWHERE = re.compile(rb"kb_[0-9A-Za-z]{12}_[0-9A-Za-z]")


def header_kind(name: bytes) -> tuple[bytes, Kind, bytes]:
    """A header name as sent → its lower-cased name, its kind, and how its line begins in the forwarded head."""
    lower = name.lower()
    kind = _KINDS.get(lower)
    if kind is None:
        kind = Kind.DROP if lower in _DROPPED or lower.startswith(_DROPPED_PREFIXES) else Kind.FORWARD
    return lower, kind, b"\r\n" + lower + b": "


_usual_kind = lru_cache(maxsize=4096)(header_kind)  # names recur
_USUAL_NAME = 64
"""Longer names are not remembered: invented ones must not fill the memory."""


@dataclass(slots=True)
class Head:
    """One request's head after the checks. Frozen at headers-complete by use: trailers never reach it."""

    method: bytes
    target: bytes
    path: bytes
    query: bytes
    headers: Headers
    """All of them, names lower-cased, in the order sent."""
    is_http10: bool
    keep_alive: bool
    length: int | None = 0
    """Declared body length; ``None``: chunked."""
    expects_continue: bool = False
    connection: bytes = b""
    content_type: bytes = b""
    user_agent: bytes = b""
    credentials: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Names and values of the headers that can carry a token."""
    forward: list[bytes] = field(default_factory=list)
    """``\\r\\nname: ``, value, … of what reaches the provider."""
    forwarded_for: list[bytes] = field(default_factory=list)
    forwarded_proto: bytes = b""
    workflow: bytes = b""
    node: bytes = b""
    acts_as: bytes | None = None

    @property
    def is_head(self) -> bool:
        """Whether the answer has no body."""
        return self.method == b"HEAD"


def read_head(method: bytes, version: str, target: bytes, sent: Headers, limits: Limits) -> Head:
    """The head of a request from what the parser gave; ``sent`` has the names as sent. Raises ``InvalidRequest`` or ``TooLarge``.

    Whether the connection persists (``keep_alive``) is decided here by RFC 9112 §9.3; HTTP/1.0 is always answered to the close.
    """
    if version not in ("1.1", "1.0"):
        raise InvalidRequest("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if len(sent) > limits.header_count:
        raise TooLarge(f"The request has more than {limits.header_count} headers.")
    if len(target) > limits.target_bytes:
        raise TooLarge(f"The request target is longer than {limits.target_bytes} bytes.")
    if _TARGET.match(target) is None or method == b"CONNECT":
        raise InvalidRequest("The request target must be a path: absolute, authority and asterisk form are not served.")
    path, _, query = target.partition(b"?")
    is_http10 = version == "1.0"
    head = Head(method, target, path, query, [], is_http10, not is_http10)
    _read_headers(head, sent)
    return head


def _read_headers(head: Head, sent: Headers) -> None:
    """One pass over the headers: each by its kind."""
    headers, forward = head.headers, head.forward
    seen: set[Kind] = set()
    for name, value in sent:
        lower, kind, prefix = _usual_kind(name) if len(name) <= _USUAL_NAME else header_kind(name)
        headers.append((lower, value))
        if kind is Kind.FORWARD:
            forward += (prefix, value)
        elif kind is not Kind.DROP:
            if kind in seen and kind in _SINGLE:
                raise InvalidRequest(f"The header '{lower.decode('latin-1')}' was sent twice.")
            seen.add(kind)
            _READERS[kind](head, lower, value)
    if Kind.HOST not in seen and not head.is_http10:
        raise InvalidRequest("The header 'host' is missing.")
    if head.connection:
        _read_connection(head, [token.strip() for token in head.connection.lower().split(b",")])


def _on_content_type(head: Head, name: bytes, value: bytes) -> None:
    head.content_type = value
    head.forward += (_usual_kind(name)[2], value)


def _on_user_agent(head: Head, name: bytes, value: bytes) -> None:
    head.user_agent = value
    head.forward += (_usual_kind(name)[2], value)


def _on_credential(head: Head, name: bytes, value: bytes) -> None:
    head.credentials.append((name, value))


def _on_host(head: Head, name: bytes, value: bytes) -> None:
    if not value and not head.is_http10:
        raise InvalidRequest(f"The header '{name.decode()}' is empty.")


def _on_length(head: Head, _name: bytes, value: bytes) -> None:
    head.length = int(value)  # llhttp has let only digits and white space around them pass


def _on_transfer_encoding(head: Head, _name: bytes, value: bytes) -> None:
    if head.is_http10 or value.strip().lower() != b"chunked":
        raise InvalidRequest("The only transfer coding is 'chunked', on HTTP/1.1.")
    head.length = None


def _on_connection(head: Head, _name: bytes, value: bytes) -> None:
    head.connection = b",".join((head.connection, value)) if head.connection else value


def _on_expect(head: Head, _name: bytes, value: bytes) -> None:
    if value.strip().lower() != b"100-continue":
        raise InvalidRequest("The only expectation served is '100-continue'.")
    head.expects_continue = not head.is_http10


def _on_upgrade(_head: Head, _name: bytes, _value: bytes) -> None:
    raise InvalidRequest("Protocol upgrades are not served here.")


def _on_forwarded_for(head: Head, _name: bytes, value: bytes) -> None:
    head.forwarded_for.append(value)


def _on_forwarded_proto(head: Head, _name: bytes, value: bytes) -> None:
    head.forwarded_proto = value


def _on_workflow(head: Head, _name: bytes, value: bytes) -> None:
    head.workflow = value


def _on_node(head: Head, _name: bytes, value: bytes) -> None:
    head.node = value


def _on_acts_as(head: Head, _name: bytes, value: bytes) -> None:
    head.acts_as = value


_READERS: dict[Kind, Callable[[Head, bytes, bytes], None]] = {
    Kind.CONTENT_TYPE: _on_content_type,
    Kind.USER_AGENT: _on_user_agent,
    Kind.CREDENTIAL: _on_credential,
    Kind.HOST: _on_host,
    Kind.LENGTH: _on_length,
    Kind.TRANSFER_ENCODING: _on_transfer_encoding,
    Kind.CONNECTION: _on_connection,
    Kind.EXPECT: _on_expect,
    Kind.UPGRADE: _on_upgrade,
    Kind.FORWARDED_FOR: _on_forwarded_for,
    Kind.FORWARDED_PROTO: _on_forwarded_proto,
    Kind.WORKFLOW: _on_workflow,
    Kind.NODE: _on_node,
    Kind.ACT_AS: _on_acts_as,
}


def _read_connection(head: Head, tokens: Sequence[bytes]) -> None:
    """``close`` ends the connection; headers named here are hop by hop and go no further (RFC 9110 §7.6.1)."""
    if b"close" in tokens:
        head.keep_alive = False
    named = {header_kind(token)[2] for token in tokens if token not in (b"close", b"keep-alive")}
    if named:
        pairs = zip(head.forward[::2], head.forward[1::2], strict=True)
        head.forward = [piece for pair in pairs if pair[0] not in named for piece in pair]


def token_of(head: Head) -> bytes:
    """The access token of a gateway request. Raises ``TokenMissing`` or ``CredentialsConflict``.

    It comes from a header only: one in the target would end up in logs and at the provider. The same token in two headers is
    what some SDKs send; the same header twice, or two different tokens, is refused.
    """
    if _TOKEN_ANYWHERE.search(head.target):
        raise CredentialsConflict(
            "A credential was sent in the URL.", hint="Send the Keybearer token in a header, never in the URL."
        )
    credentials = head.credentials
    if not credentials:
        raise TokenMissing
    if len({name for name, _ in credentials}) != len(credentials):
        raise CredentialsConflict("A credential header was sent twice.")
    found = {_bare_token(name, value) for name, value in credentials}
    if len(found) > 1:
        raise CredentialsConflict
    token = found.pop()
    if not token:
        raise TokenMissing
    return token


def _bare_token(name: bytes, value: bytes) -> bytes:
    if name != b"authorization":
        return value.strip()
    scheme, _, token = value.strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else value


def label(value: bytes) -> str:
    """A workflow's or node's id as it is recorded: printable, at most ``LABEL_CHARACTERS`` characters."""
    text = value.decode("utf-8", "replace")[: LABEL_CHARACTERS * 2]
    return "".join(character for character in text if character.isprintable())[:LABEL_CHARACTERS]

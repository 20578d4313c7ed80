"""What one set of request headers says: worked out once, and kept by the connection, for programs send the same ones over and over.

Each header name has a *reader*, which notes what the header means; names without one reach the provider as they came, names
whose reader is ``_drop`` end here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256

from keybearer.domain import Client
from keybearer.errors import CredentialsConflict, InvalidRequest, TokenMissing

Headers = list[tuple[bytes, bytes]]

LABEL_CHARACTERS = 128
"""Workflow and node ids are cut to this."""
USER_AGENT_CHARACTERS = 256
CREDENTIAL_NAMES = frozenset({b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key"})


class Fields:
    """The headers of a request after the checks. Raises ``InvalidRequest`` for what is malformed or ambiguous."""

    __slots__ = (
        "_credentials",
        "_digest",
        "_forward",
        "_options",
        "_token",
        "acts_as",
        "client",
        "content_type",
        "expects_continue",
        "forwarded",
        "forwarded_for",
        "forwarded_proto",
        "headers",
        "is_chunked",
        "is_http10",
        "keep_alive",
        "length_at",
        "node",
        "sent",
        "user_agent",
        "workflow",
    )

    def __init__(self, sent: Headers, *, is_http10: bool) -> None:
        """``sent``: names as sent. Content-Length's value is left to ``read_length``: it is what changes from request to request."""
        self.sent = sent
        self.is_http10 = is_http10
        self.headers: Headers = []
        """All of them, names lower-cased, in the order sent."""
        self.length_at = -1
        """Where Content-Length stands; -1: nowhere."""
        self.is_chunked = False
        self.expects_continue = False
        self.content_type = b""
        self.user_agent = b""
        self.forwarded_for: list[bytes] = []
        self.forwarded_proto = b""
        self.workflow = ""
        self.node = ""
        self.acts_as: bytes | None = None
        self.client: Client | None = None
        """Set by whoever finds out; it depends on the connection too, which keeps this."""
        self._credentials: Headers = []
        self._options: list[bytes] = []
        self._forward: list[bytes] = []
        self._token = b""
        self._digest = b""
        self._read(sent)
        self.keep_alive = not is_http10 and b"close" not in self._options
        self._forward = _without(self._forward, self._options)
        self.forwarded = Lines(self._forward)

    def _read(self, sent: Headers) -> None:
        headers, forward = self.headers, self._forward
        seen = 0
        for name, value in sent:
            lower, prefix, reader, bit = _usual_reader(name) if len(name) <= _USUAL_NAME else header_reader(name)
            headers.append((lower, value))
            if reader is None:
                forward += (prefix, value)
            elif reader is not _drop:
                if seen & bit:
                    raise InvalidRequest(f"The header '{lower.decode('latin-1')}' was sent twice.")
                seen |= bit
                reader(self, lower, value)
        if not (seen & _HOST or self.is_http10):
            raise InvalidRequest("The header 'host' is missing.")

    def says(self, sent: Headers, *, is_http10: bool) -> bool:
        """Whether ``sent`` says the same, but for the value of Content-Length."""
        known, at = self.sent, self.length_at
        if len(sent) != len(known) or is_http10 is not self.is_http10:
            return False
        if at < 0:
            return sent == known
        return sent[at][0] == known[at][0] and sent[:at] == known[:at] and sent[at + 1 :] == known[at + 1 :]

    def read_length(self, sent: Headers) -> int | None:
        """The declared length of the body; ``None``: chunked. llhttp lets only digits and white space around them pass."""
        if self.length_at >= 0:
            return int(sent[self.length_at][1])
        return None if self.is_chunked else 0

    @property
    def token(self) -> bytes:
        """The access token. Raises ``TokenMissing`` or ``CredentialsConflict``.

        The same token in two headers is what some SDKs send; the same header twice, or two different tokens, is refused.
        """
        if not self._token:
            self._token = _token_of(self._credentials)
        return self._token

    @property
    def digest(self) -> bytes:
        """SHA-256 of the whole token. Raises as ``token`` does."""
        if not self._digest:
            self._digest = sha256(self.token).digest()
        return self._digest


class Lines:
    """Header lines of a request to a provider, as one piece of bytes, each begun by its line break."""

    __slots__ = ("block", "count", "pieces")

    def __init__(self, pieces: list[bytes]) -> None:
        """``pieces``: how a line begins, value, and so on."""
        self.pieces = pieces
        self.block = b"".join(pieces)
        self.count = len(pieces) // 2


Reader = Callable[[Fields, bytes, bytes], None]


def header_reader(name: bytes) -> tuple[bytes, bytes, Reader | None, int]:
    """A name as sent → lower-cased, how its line begins when it is forwarded, its reader, and its bit if it may come once only."""
    lower = name.lower()
    reader = _READERS.get(lower)
    if reader is None and (lower in _DROPPED or lower.startswith(_DROPPED_PREFIXES)):
        reader = _drop
    bit = 1 << _ONCE.index(lower) if lower in _ONCE else 0
    return lower, b"\r\n" + lower + b": ", reader, bit


def label(value: bytes) -> str:
    """A workflow's or node's id as it is recorded: printable, at most ``LABEL_CHARACTERS`` characters."""
    text = value.decode("utf-8", "replace")[: LABEL_CHARACTERS * 2]
    return "".join(character for character in text if character.isprintable())[:LABEL_CHARACTERS]


# --- readers ----------------------------------------------------------------------------------------------------------


def _drop(_fields: Fields, _name: bytes, _value: bytes) -> None:
    """Ends here: hop by hop, cookies, forwarding, encodings that we do not ask for, Keybearer's own."""


def _read_content_type(fields: Fields, name: bytes, value: bytes) -> None:
    fields.content_type = value
    fields._forward += (b"\r\n" + name + b": ", value)  # noqa: SLF001  # readers are part of Fields


def _read_user_agent(fields: Fields, name: bytes, value: bytes) -> None:
    fields.user_agent = value
    fields._forward += (b"\r\n" + name + b": ", value)  # noqa: SLF001  # readers are part of Fields


def _read_credential(fields: Fields, name: bytes, value: bytes) -> None:
    fields._credentials.append((name, value))  # noqa: SLF001  # readers are part of Fields


def _read_host(fields: Fields, _name: bytes, value: bytes) -> None:
    if _HOST_VALUE.fullmatch(value) is None or not (value or fields.is_http10):
        raise InvalidRequest("The header 'host' names no host.")


def _read_length(fields: Fields, _name: bytes, _value: bytes) -> None:
    fields.length_at = len(fields.headers) - 1


def _read_transfer_encoding(fields: Fields, _name: bytes, value: bytes) -> None:
    if fields.is_http10 or value.strip().lower() != b"chunked":
        raise InvalidRequest("The only transfer coding is 'chunked', on HTTP/1.1.")
    fields.is_chunked = True


def _read_connection(fields: Fields, _name: bytes, value: bytes) -> None:
    fields._options += (token.strip() for token in value.lower().split(b","))  # noqa: SLF001  # readers are part of Fields


def _read_expect(fields: Fields, _name: bytes, value: bytes) -> None:
    if value.strip().lower() != b"100-continue":
        raise InvalidRequest("The only expectation served is '100-continue'.")
    fields.expects_continue = not fields.is_http10


def _refuse_upgrade(_fields: Fields, _name: bytes, _value: bytes) -> None:
    raise InvalidRequest("Protocol upgrades are not served here.")


def _read_forwarded_for(fields: Fields, _name: bytes, value: bytes) -> None:
    fields.forwarded_for.append(value)


def _read_forwarded_proto(fields: Fields, _name: bytes, value: bytes) -> None:
    fields.forwarded_proto = value


def _read_workflow(fields: Fields, _name: bytes, value: bytes) -> None:
    fields.workflow = label(value)


def _read_node(fields: Fields, _name: bytes, value: bytes) -> None:
    fields.node = label(value)


def _read_acts_as(fields: Fields, _name: bytes, value: bytes) -> None:
    fields.acts_as = value


_READERS: dict[bytes, Reader] = {
    b"content-type": _read_content_type,
    b"user-agent": _read_user_agent,
    **dict.fromkeys(CREDENTIAL_NAMES, _read_credential),
    b"host": _read_host,
    b"content-length": _read_length,
    b"transfer-encoding": _read_transfer_encoding,
    b"connection": _read_connection,
    b"expect": _read_expect,
    b"upgrade": _refuse_upgrade,
    b"x-forwarded-for": _read_forwarded_for,
    b"x-forwarded-proto": _read_forwarded_proto,
    b"x-keybearer-workflow": _read_workflow,
    b"x-keybearer-node": _read_node,
    b"x-keybearer-user": _read_acts_as,
}
_ONCE = (b"host", b"content-length", b"transfer-encoding", b"expect", b"content-type", b"x-keybearer-user")
_HOST = 1
_HOST_VALUE = re.compile(rb"[A-Za-z0-9._~!$&'()*+;=%-]*(?::[0-9]*)?|\[[A-Za-z0-9.:%]+\](?::[0-9]*)?")  # RFC 3986 §3.2
_DROPPED = frozenset(
    # hop by hop (RFC 9110 §7.6.1) and their unofficial kin
    b"keep-alive te trailer http2-settings "
    # content codings: usage is read from the answer, so identity is asked for
    b"accept-encoding cookie cookie2 "
    # who the client is, and where it thinks it is: no provider's business
    b"forwarded via x-real-ip x-client-ip x-cluster-client-ip true-client-ip x-original-forwarded-for "
    b"cf-connecting-ip cf-connecting-ipv6 cf-ipcountry cf-ray cf-visitor fastly-client-ip cdn-loop "
    b"x-envoy-external-address x-original-url x-rewrite-url x-original-host x-host "
    # another method than the one that was checked: Google's APIs follow it
    b"x-http-method-override x-http-method x-method-override".split()
)
_DROPPED_PREFIXES = (b"x-keybearer-", b"x-forwarded-", b"proxy-")
_USUAL_NAME = 64
"""Longer names are not remembered: invented ones must not fill the memory."""
_usual_reader = lru_cache(maxsize=4096)(header_reader)


def _without(forward: list[bytes], options: Sequence[bytes]) -> list[bytes]:
    """Headers named by Connection are hop by hop and go no further (RFC 9110 §7.6.1)."""
    named = {b"\r\n" + option + b": " for option in options if option not in (b"close", b"keep-alive")}
    if not named:
        return forward
    return [piece for pair in zip(forward[::2], forward[1::2], strict=True) if pair[0] not in named for piece in pair]


def _token_of(credentials: Headers) -> bytes:
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

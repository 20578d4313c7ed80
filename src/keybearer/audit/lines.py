"""What an entry of the audit trail looks like, to the byte. Pure: values in, bytes out, and back.

An entry is one line of JSON in this one form, without spaces, ended by a line feed::

    {"w":"<writer, 32 hex>","n":<seq from 1>,"x":"<nonce, 32 hex>","d":"<64 hex>","h":"<64 hex>","line":{…}}

``d = SHA-256(nonce | line)`` over the exact bytes of ``line``; ``h = SHA-256(h of the entry before | d)``. A reader refuses any
other spelling of the same JSON, so every byte of a journal is covered. A writer's first line is ``open`` and names the writer,
which binds the chain to it.

Text that clients chose (model, workflow, node, user agent …) is cut to the width of its column, and whatever is not printable is
written as an escape, so that it can neither break a line nor play tricks on a terminal that shows it.
"""

from __future__ import annotations

from binascii import hexlify, unhexlify
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from math import modf
from typing import Any, Literal, NamedTuple, get_args
from uuid import UUID

import msgspec

from keybearer.domain import Client, KeySource, ManagementRecord, OutcomeRecord, Owner, Usage, UseRecord

GENESIS = bytes(32)
"""The ``h`` before a writer's first entry."""
NONCE_BYTES = 16
MAX_ENTRY_BYTES = 64 * 1024
"""No entry is longer; a reader stops looking for the end of one here."""
UNKNOWN = "unknown"
"""The outcome of a use until its outcome line arrives: for ever, if the process was killed in between."""

# The widths of the columns that hold client-chosen or provider-chosen text, in characters.
REQUEST_ID, TOKEN_ID, PROVIDER, MODEL, OPERATION, WORKFLOW, NODE, IP, USER_AGENT = 40, 12, 64, 200, 40, 200, 200, 64, 256
ACTION, OUTCOME, USAGE_OUTCOME, SUBJECT, DETAIL_NAME, DETAIL_VALUE, DETAIL_COUNT, HOST = 64, 40, 16, 200, 64, 200, 32, 255
_SHORT = 200
"""Up to so many characters in all, no field of client-chosen text can be wider than its column; the server's own are not."""

Kind = Literal["use", "outcome", "open", "close", "manage"]

_MOST = 2**63 - 1
_ENTRY = b'%b%d,"x":"%b","d":"%b","h":"%b","line":%b}\n'
_UNTIMED = b'{"request_id":"","at":0.0,'
_encode = msgspec.json.Encoder().encode


class LineError(ValueError):
    """The bytes are not an entry: the message says what is wrong with them."""


class Entry(NamedTuple):
    """One entry as read back; ``line`` is exactly what was hashed."""

    writer: UUID
    seq: int
    nonce: bytes
    d: bytes
    h: bytes
    line: bytes


class Facts(NamedTuple):
    """What the database's columns say about a line, in their order."""

    at: datetime
    kind: str
    action: str
    user_id: UUID | None
    owner_id: UUID | None
    secret_id: UUID | None
    request_id: str | None
    outcome: str


class Opened(msgspec.Struct, frozen=True):
    """A writer's first line; ``durability`` is empty for the management writer."""

    writer: UUID
    at: float
    host: str
    pid: int
    durability: str


class Managed(msgspec.Struct, frozen=True):
    """A management line as read back."""

    at: float
    action: str
    subject: str
    outcome: str
    user_id: UUID | None
    token_id: str | None
    session_id: UUID | None
    client: Client | None
    owner: Owner | None
    detail: dict[str, str]


class Ended(msgspec.Struct, frozen=True):
    """An outcome line as read back: an ``OutcomeRecord`` whose figures may be missing (JSON has no infinity)."""

    request_id: str
    at: float
    status: int
    outcome: str
    duration_ms: float | None
    first_byte_ms: float | None
    usage: Usage
    cost_micro_usd: int | None


class UseStart(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What differs between two uses of one key by one application: the beginning of their lines."""

    kind: Literal["use"]
    request_id: str
    at: float
    reserved_tokens: int | None = None
    """The most that a call could use which is held to a limit, and cost; ``None``: no limit asked."""
    reserved_micro_usd: int | None = None


class UseRest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What follows it: the same bytes for most of an application's uses."""

    user_id: UUID
    token_id: str
    secret_id: UUID
    secret_version: int
    owner: Owner
    source: KeySource
    provider: str
    model: str
    operation: str
    streamed: bool
    workflow: str
    node: str
    client: Client


class _At(msgspec.Struct, frozen=True):
    at: float


decode_use = msgspec.json.Decoder(UseRecord).decode
decode_outcome = msgspec.json.Decoder(Ended).decode
decode_open = msgspec.json.Decoder(Opened).decode
decode_manage = msgspec.json.Decoder(Managed).decode
_decode_at = msgspec.json.Decoder(_At).decode
_decode_use_start = msgspec.json.Decoder(UseStart).decode
_decode_use_rest = msgspec.json.Decoder(UseRest).decode


# --- digests


def digest(nonce: bytes, line: bytes) -> bytes:
    """``d``: what stands for a line."""
    return sha256(nonce + line).digest()


def chain(before: bytes, d: bytes) -> bytes:
    """``h``: what stands for a line and all before it."""
    return sha256(before + d).digest()


# --- writing


def clean(text: str, limit: int) -> str:
    r"""Cut ``text`` to ``limit`` characters, and write everything that is not printable as an escape (``\x1b``, ``\u202e``)."""
    if len(text) <= limit and text.isprintable():
        return text
    if not text.isprintable():
        text = "".join(
            character if character.isprintable() else ascii(character)[1:-1] for character in text[: limit + 1]
        )  # repr() of one unprintable character is its escape between quotes
    return text if len(text) <= limit else text[: limit - 1] + "…"


def use_line(record: UseRecord) -> bytes:
    """Return the line of a use."""
    return repeated_use_line(clean(record.request_id, REQUEST_ID), record.at, use_tail(record))


def use_tail(record: UseRecord) -> bytes:
    """Return the end of a use's line, which is the same for all uses that differ in request id and time only."""
    return _encode(msgspec.structs.replace(_clean_use(record), request_id="", at=0.0)).removeprefix(_UNTIMED)


def reserving_tail(tokens: int | None, micro_usd: int | None, tail: bytes) -> bytes:
    """Return the end of a use's line that says what was reserved for it. ``tail`` is a ``use_tail``."""
    return b'"reserved_tokens":%b,"reserved_micro_usd":%b,%b' % (_number(tokens), _number(micro_usd), tail)


def _number(number: int | None) -> bytes:
    return b"%d" % number if number is not None and 0 <= number <= _MOST else b"null"


def repeated_use_line(request_id: str, at: float, tail: bytes) -> bytes:
    """Return the line of a use. ``tail`` is a ``use_tail``, or a ``reserving_tail``."""
    return b'{"kind":"use","request_id":%b,"at":%b,%b' % (_encode(request_id), _encode(at), tail)


def outcome_line(record: OutcomeRecord) -> bytes:
    """Return the line of an outcome; the model's name in it is the provider's text."""
    text = f"{record.usage.model}{record.outcome}"
    if len(text) > _SHORT or not text.isprintable():
        record = _clean_outcome(record)
    try:
        line: bytes = _encode(record)
    except OverflowError:  # a count beyond 64 bits
        line = _encode(_clean_outcome(record))
    return b'{"kind":"outcome",' + line[1:]


def open_line(opened: Opened) -> bytes:
    """Return a writer's first line."""
    return b'{"kind":"open",' + _encode(msgspec.structs.replace(opened, host=clean(opened.host, HOST)))[1:]


def close_line(at: float) -> bytes:
    """Return a writer's last line: after it, nothing was lost. ``at`` is Unix time in seconds."""
    return b'{"kind":"close","at":%b}' % _encode(at)


def manage_line(record: ManagementRecord, at: float) -> bytes:
    """Return the line of a management record. ``at`` is Unix time in seconds."""
    caller = record.caller
    managed = Managed(
        at=at,
        action=clean(record.action, ACTION),
        subject=clean(record.subject, SUBJECT),
        outcome=clean(record.outcome, OUTCOME),
        user_id=caller.user_id if caller else None,
        token_id=clean(caller.token_id, TOKEN_ID) if caller and caller.token_id is not None else None,
        session_id=caller.session_id if caller else None,
        client=_clean_client(caller.client) if caller else None,
        owner=record.owner,
        detail={clean(name, DETAIL_NAME): clean(value, DETAIL_VALUE) for name, value in record.detail[:DETAIL_COUNT]},
    )
    return b'{"kind":"manage",' + _encode(managed)[1:]


def entry_head(writer: UUID) -> bytes:
    """Return the constant beginning of a writer's entries."""
    return b'{"w":"%b","n":' % writer.hex.encode()


def next_entries(head: bytes, seq: int, nonces: bytes, before: bytes, lines: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the entries of ``lines`` that follow entry ``seq``, whose ``h`` is ``before``: the last ``h``, and all bytes.

    ``nonces`` has ``NONCE_BYTES`` for each line. Each entry ends with its line feed.
    """
    entries: list[bytes] = []
    at = 0
    for line in lines:
        nonce = nonces[at : at + NONCE_BYTES]
        at += NONCE_BYTES
        seq += 1
        d = sha256(nonce + line).digest()
        before = sha256(before + d).digest()
        entries.append(_ENTRY % (head, seq, hexlify(nonce), hexlify(d), hexlify(before), line))
    return before, b"".join(entries)


def _clean_client(client: Client) -> Client:
    return Client(clean(client.ip, IP), clean(client.user_agent, USER_AGENT))


def _clean_use(record: UseRecord) -> UseRecord:
    return msgspec.structs.replace(
        record,
        token_id=clean(record.token_id, TOKEN_ID),
        provider=clean(record.provider, PROVIDER),
        model=clean(record.model, MODEL),
        operation=clean(record.operation, OPERATION),
        workflow=clean(record.workflow, WORKFLOW),
        node=clean(record.node, NODE),
        client=_clean_client(record.client),
    )


def _clean_outcome(record: OutcomeRecord) -> OutcomeRecord:
    usage = record.usage
    return msgspec.structs.replace(
        record,
        request_id=clean(record.request_id, REQUEST_ID),
        outcome=clean(record.outcome, USAGE_OUTCOME),
        cost_micro_usd=count(record.cost_micro_usd),
        usage=Usage(**{name: _bounded(getattr(usage, name)) for name in Usage.__struct_fields__}),
    )


def _bounded(value: Any) -> Any:
    """Return a part of a usage within bounds: text as a model's name, whole numbers as counts."""
    if isinstance(value, str):
        return clean(value, MODEL)
    return count(value) if isinstance(value, int) else value


def count(number: int | None) -> int | None:
    """Return a count as a provider stated it, if a column of 64 bits can hold it; otherwise it is not known."""
    return number if number is not None and 0 <= number <= _MOST else None


# --- reading


def parse(raw: bytes) -> Entry:
    """Return the entry in ``raw`` (without its line feed). Raises ``LineError`` for anything but the one right spelling.

    The digest is not checked here: ``check`` does, given what came before.
    """
    try:
        # Fixed widths up to the number and from there to the line.
        writer, head = _writer(raw[6:38])
        at = raw.index(b",", len(head))
        seq = int(raw[len(head) : at])
        nonce, d, h = unhexlify(raw[at + 6 : at + 38]), unhexlify(raw[at + 45 : at + 109]), unhexlify(raw[at + 116 : at + 180])
        line = raw[at + 189 : -1]
        line.decode()
    except ValueError as error:  # binascii.Error and UnicodeDecodeError are such
        raise LineError("not an entry") from error
    # Spelled again it must be the same: numbers and hex digits could be written otherwise, and what is between them too.
    if seq < 1 or raw != (_ENTRY % (head, seq, hexlify(nonce), hexlify(d), hexlify(h), line))[:-1]:
        raise LineError("not in the one form an entry has")
    return Entry(writer, seq, nonce, d, h, line)


def following(raw: bytes, head: bytes, seq: int, before: bytes) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Return nonce, ``d``, ``h`` and line of ``raw`` if it is, to the byte, entry ``seq`` after the one whose ``h`` is ``before``.

    ``head`` is the beginning of its writer's entries. The same as ``parse`` and ``check``, at a third of their cost: what the
    digests must be is calculated and compared as text, so that nothing need be read and spelled again. ``None`` says that something
    is wrong and not what: ``parse`` and ``check`` do.
    """
    start = b'%b%d,"x":"' % (head, seq)
    at = len(start)
    spelled = raw[at : at + 32]
    line = raw[at + 183 : -1]
    try:
        nonce = unhexlify(spelled)
        if not line.isascii():
            line.decode()
    except ValueError:  # binascii.Error and UnicodeDecodeError are such
        return None
    d = sha256(nonce + line).digest()
    h = sha256(before + d).digest()
    rest = b'","d":"%b","h":"%b","line":' % (hexlify(d), hexlify(h))
    if raw.startswith(start) and raw.startswith(rest, at + 32) and raw.endswith(b"}") and hexlify(nonce) == spelled:
        return nonce, d, h, line
    return None


@lru_cache(maxsize=64)
def _writer(text: bytes) -> tuple[UUID, bytes]:
    writer = UUID(text.decode())
    return writer, entry_head(writer)


def check(entry: Entry, before: bytes | None) -> None:
    """Raise ``LineError`` unless ``entry`` is whole and follows the entry whose ``h`` is ``before`` (``None``: not known)."""
    if digest(entry.nonce, entry.line) != entry.d:
        raise LineError("changed: the line is not what was hashed")
    if before is not None and chain(before, entry.d) != entry.h:
        raise LineError("out of place: it does not follow the entry before it")


def kind_of(line: bytes) -> Kind:
    """Return the kind of a line, from its first bytes. Raises ``LineError``."""
    for kind, head in _HEADS:
        if line.startswith(head):
            return kind
    raise LineError("of no known kind")


def facts(line: bytes, use_of: Callable[[str], Facts | None]) -> Facts:
    """Return what the columns of the database say about ``line``; ``use_of`` finds the use that an outcome belongs to.

    Raises ``LineError`` if the line does not say what its kind must say.
    """
    kind = kind_of(line)
    try:
        if kind == "use":
            return use_facts(decode_use(line))
        if kind == "outcome":
            ended = decode_outcome(line)
            return outcome_facts(ended, use_of(ended.request_id[:REQUEST_ID]))
        if kind == "manage":
            return _manage_facts(decode_manage(line))
        at = decode_open(line).at if kind == "open" else _decode_at(line).at
        return Facts(_time(at), kind, f"journal.{kind}", None, None, None, None, "ok")
    except (ValueError, OverflowError, OSError) as error:  # the last two: times beyond the calendar
        raise LineError(f"not a line of kind {kind}") from error


def split_use(line: bytes) -> tuple[UseStart, bytes]:
    """Return the start of a use's line, and the rest of it as it stands. Raises ``ValueError``: not spelled as ours are.

    What the line says is what both say: ``decode_rest`` refuses a rest that names what comes before it once more.
    """
    at = line.find(_REST)
    return _decode_use_start(line[:at] + b"}"), line[at:]


def decode_rest(rest: bytes) -> UseRest:
    """Read the rest of a use's line. Raises ``ValueError``."""
    return _decode_use_rest(b"{" + rest[1:])


def time_text(at: float) -> str:
    """Return Unix time in seconds as databases have it: ISO, UTC, microseconds. Raises ``ValueError`` or ``OverflowError``.

    Rounded as ``datetime.fromtimestamp`` does, half to even, at a third of its cost and ``isoformat``'s.
    """
    fraction, whole = modf(at)
    micro = round(fraction * 1e6)
    if not 0 <= micro < 1e6:  # noqa: PLR2004  # as above; before 1970, or rounded up
        return _time(at).isoformat(timespec="microseconds")
    return f"{_second(int(whole))}.{micro:06d}+00:00"


@lru_cache(maxsize=64)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")[:19]


def use_action(operation: str) -> str:
    """Return the action of a use."""
    return "secret.test" if operation == "test" else "secret.use"


def use_facts(use: UseRecord) -> Facts:
    """Return what the columns say about a use. Its outcome stays ``unknown`` there: an audit record is never changed."""
    return Facts(
        _time(use.at),
        "use",
        use_action(use.operation),
        use.user_id,
        use.owner.id,
        use.secret_id,
        use.request_id[:REQUEST_ID],
        UNKNOWN,
    )


def outcome_facts(ended: Ended, use: Facts | None) -> Facts:
    """Return what the columns say about an outcome: who and whose is known from its use."""
    who = (use.user_id, use.owner_id, use.secret_id) if use else (None, None, None)
    return Facts(_time(ended.at), "outcome", "secret.outcome", *who, ended.request_id[:REQUEST_ID], ended.outcome[:OUTCOME])


def _manage_facts(managed: Managed) -> Facts:
    owner_id = managed.owner.id if managed.owner else None
    secret_id = _secret_id(managed.subject) if managed.action.startswith("secret.") else None
    who = (managed.user_id, owner_id, secret_id)
    return Facts(_time(managed.at), "manage", managed.action[:ACTION], *who, None, managed.outcome[:OUTCOME])


def _secret_id(subject: str) -> UUID | None:
    """Return the subject of a ``secret.…`` action as an id; a refused attempt may name anything."""
    try:
        return UUID(subject)
    except ValueError:
        return None


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


_REST = b',"user_id":'
_HEADS: tuple[tuple[Kind, bytes], ...] = tuple((kind, b'{"kind":"%b",' % kind.encode()) for kind in get_args(Kind))

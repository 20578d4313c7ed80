"""What a row MAC covers: a database row as bytes, in one way only. Pure; ``keyring`` has the key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

RowField = str | bytes | int | bool | UUID | datetime | Sequence[str] | None
"""What a row MAC covers. Times have a zone; floats have no one encoding and are left out."""


def encode_row(table: str, *fields: RowField) -> bytes:
    """Return what a row MAC covers: "keybearer/v1/row-mac", the table's name, the fields.

    Each is one letter for its type, its length (u32, big-endian) and its bytes: ``s`` text as UTF-8, ``y`` bytes, ``i`` an
    integer in decimal, ``b`` 01 or 00, ``u`` a UUID's 16 bytes, ``t`` a UTC time as ``2026-01-31T12:00:00.000000+00:00``, ``l``
    the items of a list, each encoded as text, ``n`` nothing. So no two rows have the same bytes.
    """
    return b"keybearer/v1/row-mac" + _tagged(b"s", table.encode()) + b"".join(_encode_field(value) for value in fields)


def _encode_field(value: RowField) -> bytes:
    match value:
        case None:
            return _tagged(b"n", b"")
        case bool():
            return _tagged(b"b", b"\x01" if value else b"\x00")
        case int():
            return _tagged(b"i", b"%d" % value)
        case str():
            return _tagged(b"s", value.encode())
        case bytes():
            return _tagged(b"y", value)
        case UUID():
            return _tagged(b"u", value.bytes)
        case datetime():
            if value.tzinfo is None:
                raise ValueError("naive datetime")
            return _tagged(b"t", value.astimezone(UTC).isoformat(timespec="microseconds").encode())
        case list() | tuple():
            return _tagged(b"l", b"".join(_tagged(b"s", item.encode()) for item in value))
    raise TypeError(f"a row MAC covers no {type(value).__name__}")


def _tagged(tag: bytes, data: bytes) -> bytes:
    return tag + len(data).to_bytes(4, "big") + data

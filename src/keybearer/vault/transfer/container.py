"""A backup's form: a header in the clear, then a stream of sealed chunks. No cipher of its own: each chunk is an envelope (v1).

::

    file    = "KBB" 3 | format 1 | header length u32-BE | header | chunk …
    header  = JSON: what made it, of which deployment, when, of which schema, and how its key is wrapped
    chunk   = length u32-BE | envelope v1 of at most 1 MiB of the stream, under the backup's own key
    context = purpose "backup", deployment, owner nil, record: the backup's id, version: the chunk's number from 0 on,
              field: "more:" or "last:" and SHA-256 (hex) of everything before the first chunk

So a chunk opens at its own place in its own file and nowhere else, under the header that it was written with; a file that is cut short
has no last chunk (the STREAM construction, Hoang, Reyhanitabar, Rogaway and Vizár 2015). The backup's key is 32 random bytes, wrapped by
a passphrase (Argon2id, ``crypto.kms.passphrase``) or sealed under the deployment's root key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import IO, Any
from uuid import UUID

import msgspec

from keybearer.crypto.envelope import OVERHEAD, Context, open_sealed, seal
from keybearer.domain import SecretBytes
from keybearer.errors import BackupError, EnvelopeError

FORMAT = 1
CHUNK = 1024 * 1024

_MAGIC = b"KBB"
_LENGTH = 4
_MOST_HEADER = 256 * 1024
_MOST_LINE = 64 * 1024 * 1024
_NIL = UUID(int=0)

CUT_SHORT = "The backup is cut short, or damaged at its end."
DAMAGED = "The backup is damaged: it does not open from here on."
NO_BACKUP = "The file is no backup of Keybearer."


class Header(msgspec.Struct, frozen=True):
    """What can be told of a backup without its key. Authenticated with it."""

    id: UUID
    deployment: UUID
    made_at: str
    version: str
    """Of the program that made it."""
    revision: str
    """Of the schema."""
    key_by: str
    """``passphrase`` or ``root-key``."""
    key: bytes
    """The backup's key, wrapped so."""
    root_keys: list[dict[str, str]]
    """Without which nothing in the backup opens: id, provider, reference and state of each."""
    root_key: dict[str, Any] = {}
    """Of ``root-key``: id, provider, reference, wrapped and proof of the one that sealed it."""


class Writer:
    """Writes a backup to ``file``, chunk by chunk; ``close`` ends it. What was not closed is cut short."""

    def __init__(self, file: IO[bytes], header: Header, key: SecretBytes) -> None:
        encoded = msgspec.json.encode(header)
        front = _MAGIC + bytes([FORMAT]) + len(encoded).to_bytes(_LENGTH, "big") + encoded
        file.write(front)
        self._file = file
        self._header = header
        self._key = key
        self._front = hashlib.sha256(front).hexdigest()
        self._held = bytearray()
        self._number = 0

    def line(self, value: object) -> None:
        """Write one line of the stream: any JSON value."""
        self._held += msgspec.json.encode(value) + b"\n"
        while len(self._held) > CHUNK:
            self._write(bytes(self._held[:CHUNK]), "more")
            del self._held[:CHUNK]

    def close(self) -> None:
        """Write the last chunk."""
        self._write(bytes(self._held), "last")

    def _write(self, part: bytes, which: str) -> None:
        context = _context(self._header, self._number, which, self._front)
        sealed = seal(self._key.reveal(), self._header.id, context, part)
        self._file.write(len(sealed).to_bytes(_LENGTH, "big") + sealed)
        self._number += 1


class Reader:
    """Reads a backup from ``file``. The header first; ``lines`` with the key that it wraps.

    Raises ``BackupError`` where the file is no backup, or one of a later version.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        front = file.read(len(_MAGIC) + 1 + _LENGTH)
        if len(front) < len(_MAGIC) + 1 + _LENGTH or front[: len(_MAGIC)] != _MAGIC:
            raise BackupError(NO_BACKUP)
        if front[len(_MAGIC)] != FORMAT:
            raise _newer(f"of format {front[len(_MAGIC)]}")
        length = int.from_bytes(front[-_LENGTH:], "big")
        encoded = file.read(length) if length <= _MOST_HEADER else b""
        if len(encoded) != length or not encoded:
            raise BackupError(CUT_SHORT)
        try:
            self.header = msgspec.json.decode(encoded, type=Header)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise BackupError(NO_BACKUP) from None
        self._front = hashlib.sha256(front + encoded).hexdigest()

    def lines(self, key: SecretBytes) -> Iterator[Any]:
        """Yield the lines of the stream, each authenticated before it is read. To the end: then the file is whole.

        Raises ``BackupError`` at what does not open, is cut short, or goes on behind its end.
        """
        held = b""
        for part in self._chunks(key):
            held += part
            *whole, held = held.split(b"\n")
            if len(held) > _MOST_LINE:
                raise BackupError(DAMAGED)
            for line in whole:
                yield json.loads(line)
        if held:
            raise BackupError(CUT_SHORT)

    def _chunks(self, key: SecretBytes) -> Iterator[bytes]:
        number, following = 0, self._sealed()
        while following is not None:
            sealed, following = following, self._sealed()
            context = _context(self.header, number, "more" if following is not None else "last", self._front)
            try:
                yield open_sealed(key.reveal(), context, sealed)
            except EnvelopeError:
                # The last of a file that was cut between two chunks is one that others should follow.
                raise BackupError(DAMAGED if following is not None else CUT_SHORT) from None
            number += 1
        if not number:
            raise BackupError(CUT_SHORT)

    def _sealed(self) -> bytes | None:
        prefix = self._file.read(_LENGTH)
        if not prefix:
            return None
        length = int.from_bytes(prefix, "big")
        if len(prefix) < _LENGTH or not OVERHEAD <= length <= CHUNK + OVERHEAD:
            raise BackupError(CUT_SHORT if len(prefix) < _LENGTH else DAMAGED)
        sealed = self._file.read(length)
        if len(sealed) != length:
            raise BackupError(CUT_SHORT)
        return sealed


def wrapped_for(backup_id: UUID, deployment: UUID) -> bytes:
    """What a key that a passphrase wraps is bound to."""
    return b"keybearer/v1/backup-key" + deployment.bytes + backup_id.bytes


def _context(header: Header, number: int, which: str, front: str) -> Context:
    return Context("backup", header.deployment, _NIL, header.id, number, f"{which}:{front}")


def _newer(what: str) -> BackupError:
    return BackupError(
        f"The backup was made by a newer version: it is {what}.", hint="Restore it with that version, or a later one."
    )

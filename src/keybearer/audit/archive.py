"""The whole sealed log in one file, which proves itself: JSON lines, the signed checkpoint first, then every record in the tree's order.

::

    {"archive":1,"public_key":"<name+id+base64>","checkpoint":"<signed note>"}
    {"index":0,"writer":"<uuid>","seq":1,"nonce":"<hex>","d":"<hex>","h":"<hex>","line":"<the exact text that was hashed>"}
    …

``line`` and ``nonce`` are empty where retention has dropped them. To check one, nothing else is needed than this file, the public
key as somebody else noted it down, and, against a log that was written anew, checkpoints that somebody else kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from uuid import UUID

import msgspec

from keybearer.audit import lines as entries
from keybearer.audit import merkle, notes
from keybearer.audit.notes import NoteError, Verifier
from keybearer.audit.sealed import MOST_PROBLEMS, Claims, Progress, TreeReport
from keybearer.audit.tree import leaf_hash
from keybearer.audit.verify import NOBODY, Problem
from keybearer.errors import NotFound
from keybearer.store.db import Actor, Database
from keybearer.store.queries import tree as queries

MEDIA_TYPE = "application/jsonl"
CHUNK = 500
TOLD_EVERY = 10_000


class _Head(msgspec.Struct, frozen=True):
    archive: int
    public_key: str
    checkpoint: str


class _Record(msgspec.Struct, frozen=True):
    index: int
    writer: UUID
    seq: int
    nonce: str
    d: str
    h: str
    line: str


_encode = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(_Head).decode
_decode = msgspec.json.Decoder(_Record).decode


async def write(db: Database, verifier: Verifier) -> AsyncIterator[bytes]:
    """Yield the archive of everything that is sealed. Raises ``NotFound`` where nothing is."""
    async with db.read(Actor.system()) as tx:
        note = await queries.latest_note(tx)
    if note is None:
        raise NotFound("Nothing is sealed yet.")
    yield _encode(_Head(1, str(verifier), note.note)) + b"\n"
    index = 0
    while index < note.size:
        async with db.read(Actor.system()) as tx:
            runs = await queries.runs(tx, index, CHUNK)
        if not runs:
            return  # the file is short, and its reader says so
        for run in runs:
            if run.first_index >= note.size:
                break
            async for chunk in _run(db, run):
                yield chunk
            index = run.first_index + run.length


async def _run(db: Database, run: queries.Run) -> AsyncIterator[bytes]:
    seq, last = run.first_seq, run.first_seq + run.length - 1
    while seq <= last:
        async with db.read(Actor.system()) as tx:
            rows = await queries.evidence(tx, run.writer_id, seq, last, CHUNK)
        if not rows:
            return
        yield b"".join(_encode(_record(run, row)) + b"\n" for row in rows)
        seq = rows[-1].seq + 1


def _record(run: queries.Run, row: queries.Evidence) -> _Record:
    index = run.first_index + row.seq - run.first_seq
    return _Record(index, run.writer_id, row.seq, row.nonce.hex(), row.d.hex(), row.h.hex(), row.line)


class _Check:
    """Verification of an archive under way."""

    def __init__(self, claims: Claims) -> None:
        self.claims = claims
        self.tree = merkle.Tree()
        self.problems: list[Problem] = []
        self.redacted = 0
        self._ends: dict[UUID, tuple[int, bytes]] = {}
        self._hashes: list[bytes] = []
        self._first_after = ""

    def blame(self, writer: UUID, seq: int, what: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(writer, seq, "archive", what))

    def take(self, raw: bytes) -> None:
        """Check the next record."""
        size = self.tree.size + len(self._hashes)
        try:
            record = _decode(raw)
            nonce, d, h = bytes.fromhex(record.nonce), bytes.fromhex(record.d), bytes.fromhex(record.h)
        except (msgspec.MsgspecError, ValueError):
            self.blame(NOBODY, 0, f"changed: what should be leaf {size} is no record")
            self._hashes.append(bytes(merkle.HASH))
            return
        seq, before = self._ends.get(record.writer, (0, entries.GENESIS))
        if (record.index, record.seq) != (size, seq + 1):
            what = f"missing or out of place: leaf {record.index} and entry {record.seq} stand where {size} and {seq + 1} should"
            self.blame(record.writer, seq + 1, what)
        elif entries.chain(before, d) != h:
            self.blame(record.writer, record.seq, "changed: it does not follow the entry before it")
        if not record.line and not nonce:
            self.redacted += 1
        elif entries.digest(nonce, record.line.encode()) != d:
            self.blame(record.writer, record.seq, "changed: the line is not what was hashed")
        self._ends[record.writer] = record.seq, h
        self._first_after = self._first_after or f"entry {record.seq} of writer {record.writer}"
        self._hashes.append(leaf_hash(record.writer, record.seq, d))
        if len(self._hashes) == merkle.WIDTH or size + 1 == self.claims.next_size:
            self.settle()

    def settle(self) -> None:
        """Append what was checked, and compare the tree with what is known of this size."""
        self.tree.append(b"".join(self._hashes))
        self._hashes = []
        while self.claims.next_size is not None and self.claims.next_size <= self.tree.size:
            self.claims.compare(self.tree, self._first_after)
            self._first_after = ""


def verify(
    file: Iterable[bytes], verifier: Verifier | None, pushed: Sequence[str] = (), progress: Progress | None = None
) -> tuple[TreeReport, int]:
    """Verify an archive, line by line; return the report and how many of its records retention has emptied.

    ``verifier``: the public key as somebody else noted it down; ``None`` takes the archive's own, which proves less. Raises
    ``NoteError`` if the file is no archive, or not one of the log that has this key.
    """
    stream = iter(file)
    try:
        head = _decode_head(next(stream, b""))
    except msgspec.MsgspecError:
        raise NoteError("the file is no archive of an audit trail") from None
    own = Verifier.parse(head.public_key)
    if verifier is not None and own != verifier:
        raise NoteError("the archive is of a log with another public key")
    signed = notes.opened(head.checkpoint, own)
    claims = Claims(own)
    claims.add([(head.checkpoint, None)], "checkpoint")
    claims.add(((text, None) for text in pushed), "pushed")
    check = _Check(claims)
    for number, raw in enumerate(stream, 1):
        check.take(raw)
        if progress is not None and number % TOLD_EVERY == 0:
            progress(TOLD_EVERY)
    check.settle()
    if check.tree.size != signed.size:
        check.blame(NOBODY, 0, f"cut off or added to: it has {check.tree.size} records, its checkpoint tells of {signed.size}")
    later = claims.later_than(check.tree.size)
    problems = (*check.problems, *claims.problems)
    report = TreeReport(check.tree.size, claims.verified.get("checkpoint", 0), claims.verified.get("pushed", 0), problems, later)
    return report, check.redacted

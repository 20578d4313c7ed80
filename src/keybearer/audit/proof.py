"""Proofs as the API answers them, checked by whoever has the log's public key: no server, no database. Pure.

A proof says that a record is in the log of the checkpoint that comes with it. Whether that log is the one that a checkpoint kept
elsewhere tells of is said by their roots, where they are of one size, or by a proof of consistency between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from keybearer.audit import merkle, notes
from keybearer.audit.merkle import ProofError
from keybearer.audit.notes import Checkpoint, NoteError, Verifier


class Inclusion(msgspec.Struct):
    """What ``GET /api/v1/audit/{writer_id}/{seq}/proof`` answers, as far as it proves anything."""

    writer_id: UUID
    seq: int
    index: int
    d: bytes
    hashes: list[bytes]
    checkpoint: str


class Consistency(msgspec.Struct):
    """What ``GET /api/v1/audit/consistency`` answers."""

    first: int
    second: int
    hashes: list[bytes]


@dataclass(frozen=True, slots=True)
class Checked:
    """A proof that was checked."""

    proof: Inclusion
    size: int
    """Of the log that the record is in."""
    compared: int
    """Checkpoints kept elsewhere that tell of the same log."""
    uncompared: int
    """Those of other sizes than the proof of consistency is between."""


def check(answer: bytes, verifier: Verifier, kept: Sequence[str] = (), between: bytes | None = None) -> Checked:
    """Check a proof and hold it against checkpoints ``kept`` elsewhere; ``between``: a proof of consistency.

    Raises ``ProofError`` where it proves nothing, or another log than a checkpoint that was kept; ``NoteError`` for a
    checkpoint that the key has not signed; ``ValueError`` for what is no such answer.
    """
    proof = msgspec.json.decode(answer, type=Inclusion)
    if not 0 < proof.seq < 2**64:
        raise ProofError("no such record")
    steps = None if between is None else msgspec.json.decode(between, type=Consistency)
    signed = notes.opened(proof.checkpoint, verifier)
    leaf = merkle.leaf_hash(proof.writer_id.bytes + proof.seq.to_bytes(8, "big") + proof.d)
    merkle.check_inclusion(leaf, proof.index, signed.size, proof.hashes, signed.root)
    agreed = [_agrees(_opened(note, verifier), signed, steps) for note in kept]
    return Checked(proof, signed.size, sum(agreed), len(agreed) - sum(agreed))


def _opened(note: str, verifier: Verifier) -> Checkpoint:
    try:
        return notes.opened(note, verifier)
    except NoteError as error:
        raise NoteError(f"a checkpoint that was kept: {error}") from None


def _agrees(kept: Checkpoint, signed: Checkpoint, steps: Consistency | None) -> bool:
    """Whether both are of one log; ``False``: nothing here tells. Raises ``ProofError`` where they are of two."""
    first, second = sorted((kept, signed), key=lambda each: each.size)
    hashes = [] if steps is None else steps.hashes
    if first.size != second.size and (steps is None or (steps.first, steps.second) != (first.size, second.size)):
        return False
    try:
        merkle.check_consistency(
            (first.size, first.root), (second.size, second.root), hashes if first.size != second.size else []
        )
    except ProofError as error:
        raise ProofError(f"the log contradicts a checkpoint that was kept: {error}") from None
    return True

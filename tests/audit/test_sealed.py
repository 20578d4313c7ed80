"""Whatever is done to a sealed trail is found, and the first wrong record named: also where hash chains alone see nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.audit.audit_samples import rows
from tests.audit.sealing import Place, keyring_of, managed, sealer_of, written
from tests.support.tamper import Tamper

from keybearer.audit import lines, management, merkle, notes
from keybearer.audit.notes import Checkpoint, Signer, Verifier
from keybearer.audit.seal import Sealer
from keybearer.audit.sealed import TreeReport, verify_tree
from keybearer.audit.verify import verify
from keybearer.store import schema
from keybearer.store.db import Database

RECORD, WRITER, TREE, TILE = schema.audit_record, schema.audit_writer, schema.audit_tree, schema.audit_tile
RUN, SEALED, NOTE = schema.audit_run, schema.audit_sealed, schema.audit_note


@dataclass
class Log:
    """A trail of several writers, sealed in several steps, each of which was pushed elsewhere."""

    database: Database
    directory: Path
    sealer: Sealer
    place: Place
    verifier: Verifier
    writer: UUID
    """A process's, whose 602 records were sealed in the middle."""

    async def verify(self, pushed: list[str] | None = None) -> TreeReport:
        return await verify_tree(self.database, self.verifier, self.place.notes if pushed is None else pushed)

    async def first_problem(self, pushed: list[str] | None = None) -> str:
        report = await self.verify(pushed)
        assert report.problems
        return str(report.problems[0])

    def record(self, seq: int) -> sa.ColumnElement[bool]:
        return sa.and_(RECORD.c.writer_id == self.writer, RECORD.c.seq == seq)


@pytest.fixture
async def log(database: Database, tmp_path: Path) -> Log:
    place = Place()
    sealer = await sealer_of(database, place)
    await managed(database, 3)
    await sealer.turn()
    writer = await written(database, tmp_path, 300)
    await sealer.turn()
    for _ in range(3):
        await managed(database, 2)
        await sealer.turn()
    return Log(database, tmp_path, sealer, place, await sealer.verifier(), writer)


async def test_an_untouched_log_verifies_also_while_more_is_written(log: Log) -> None:
    report = await log.verify()
    assert report.problems == ()
    assert (report.checkpoints, report.pushed) == (5, 5)
    assert report.size == len(await rows(log.database, RECORD))
    await managed(log.database)
    told: list[int] = []

    async def more(count: int) -> None:
        await managed(log.database)
        await log.sealer.turn()

    again = await verify_tree(log.database, log.verifier, log.place.notes, told.append)
    assert again.problems == ()
    assert sum(told) == again.size == report.size


async def test_an_empty_log_verifies(database: Database) -> None:
    sealer = await sealer_of(database)
    report = await verify_tree(database, await sealer.verifier())
    assert (report.size, report.problems) == (0, ())


@pytest.mark.parametrize("column", ["d", "writer_id", "seq"])
@pytest.mark.parametrize("seq", [1, 300, 602])
async def test_a_changed_record_is_named(log: Log, tamper: Tamper, column: str, seq: int) -> None:
    other: dict[str, Any] = {"d": bytes(32), "seq": 7777}
    if column == "writer_id":
        await tamper(sa.update(RECORD).where(log.record(seq)).values(writer_id=management.WRITER, seq=7777))
    else:
        await tamper(sa.update(RECORD).where(log.record(seq)).values({column: other[column]}))
    assert (await log.first_problem([])).startswith(f"entry {seq} of writer {log.writer}, seal: ")


async def test_every_byte_of_a_stored_tile_counts(log: Log, tamper: Tamper) -> None:
    for tile in await rows(log.database, TILE):
        at = sa.and_(TILE.c.level == tile.level, TILE.c.number == tile.number)
        for position in {0, len(tile.hashes) // 2, len(tile.hashes) - 1}:
            changed = bytearray(tile.hashes)
            changed[position] ^= 1
            await tamper(sa.update(TILE).where(at).values(hashes=bytes(changed)))
            problem = await log.first_problem([])
            assert "tree" in problem  # the records agree with what was signed, so it is the tree that was changed
        await tamper(sa.update(TILE).where(at).values(hashes=tile.hashes))
    assert (await log.verify()).problems == ()


async def test_a_missing_tile_is_found(log: Log, tamper: Tamper) -> None:
    for tile in await rows(log.database, TILE):
        at = sa.and_(TILE.c.level == tile.level, TILE.c.number == tile.number)
        await tamper(sa.delete(TILE).where(at))
        assert "tree" in await log.first_problem([])
        await tamper(sa.insert(TILE).values(**tile._mapping))


async def test_a_changed_checkpoint_is_found(log: Log, tamper: Tamper) -> None:
    found = await rows(log.database, NOTE)
    for note, position in [(found[0], at) for at in (0, 20, 55, 60, 100, -80, -40, -2)] + [(note, 60) for note in found]:
        text = list(note.note)
        text[position] = "A" if text[position] != "A" else "B"
        await tamper(sa.update(NOTE).where(NOTE.c.size == note.size).values(note="".join(text)))
        assert f"checkpoint of {note.size} does not verify" in await log.first_problem([])
        await tamper(sa.update(NOTE).where(NOTE.c.size == note.size).values(note=note.note))


async def test_a_checkpoint_moved_to_another_size_is_found(log: Log, tamper: Tamper) -> None:
    await tamper(sa.update(NOTE).where(NOTE.c.size == 4).values(size=5))
    assert "checkpoint of 5 was changed" in await log.first_problem([])


async def test_whatever_else_is_kept_of_the_tree_counts(log: Log, tamper: Tamper) -> None:
    kept = {
        RUN: ("first_index", "writer_id", "first_seq", "length"),
        SEALED: ("writer_id", "seq", "h"),
        TREE: ("size", "public_key"),
    }
    others = {"writer_id": UUID(int=5), "h": bytes(32), "public_key": bytes(32)}
    for table, columns in kept.items():
        (key,) = table.primary_key.columns
        for row in [(await rows(log.database, table))[place] for place in (0, -1)]:
            for column in columns:
                changed = others.get(column, 777)
                await tamper(sa.update(table).where(key == row._mapping[key.name]).values({column: changed}))
                assert (await log.verify([])).problems, (table, column)
                now = changed if column == key.name else row._mapping[key.name]
                await tamper(sa.update(table).where(key == now).values(**row._mapping))
    assert (await log.verify()).problems == ()


async def test_a_removed_run_is_found(log: Log, tamper: Tamper) -> None:
    for run in await rows(log.database, RUN):
        await tamper(sa.delete(RUN).where(RUN.c.first_index == run.first_index))
        assert (await log.verify([])).problems
        await tamper(sa.insert(RUN).values(**run._mapping))


async def cut_management(log: Log, tamper: Tamper, last: int) -> None:
    """Cut the end of the chain of management records off, as if nothing had come after number ``last``."""
    (end,) = await rows(log.database, RECORD, sa.and_(RECORD.c.writer_id == management.WRITER, RECORD.c.seq == last))
    await tamper(sa.delete(RECORD).where(RECORD.c.writer_id == management.WRITER, RECORD.c.seq > last))
    await tamper(sa.update(WRITER).where(WRITER.c.id == management.WRITER).values(shipped_seq=last, shipped_hash=end.h))


async def test_the_end_of_the_management_chain_cannot_be_cut_off_unseen(log: Log, tamper: Tamper) -> None:
    await cut_management(log, tamper, 8)
    assert (await verify(log.database, log.directory)).ok  # the chain alone sees nothing
    assert await log.first_problem([]) == f"entry 9 of writer {management.WRITER}, seal: missing: it was sealed as leaf 610"


async def rolled_back(log: Log, tamper: Tamper, size: int) -> None:
    """Set the tree back to an earlier checkpoint, as it was then: what is left is consistent in itself, and truly signed."""
    runs = [run for run in await rows(log.database, RUN) if run.first_index < size]
    hashes = b"".join(tile.hashes for tile in sorted(await rows(log.database, TILE, TILE.c.level == 0)))[: size * 32]
    await tamper(sa.delete(RUN).where(RUN.c.first_index >= size))
    await tamper(sa.delete(NOTE).where(NOTE.c.size > size))
    await rebuilt(tamper, hashes)
    for writer in {run.writer_id for run in runs}:
        end = max(run.first_seq + run.length - 1 for run in runs if run.writer_id == writer)
        (row,) = await rows(log.database, RECORD, sa.and_(RECORD.c.writer_id == writer, RECORD.c.seq == end))
        await tamper(sa.update(SEALED).where(SEALED.c.writer_id == writer).values(seq=end, h=row.h))


async def rebuilt(tamper: Tamper, hashes: bytes) -> merkle.Tree:
    """Write a whole tree anew over other leaves."""
    tree = merkle.Tree()
    tiles = tree.append(hashes)
    await tamper(sa.delete(TILE))
    for tile, stored in tiles.items():
        await tamper(sa.insert(TILE).values(level=tile.level, number=tile.number, hashes=stored))
    await tamper(sa.update(TREE).values(size=tree.size))
    return tree


async def test_a_log_set_back_contradicts_what_was_pushed(log: Log, tamper: Tamper) -> None:
    await cut_management(log, tamper, 9)
    await rolled_back(log, tamper, 611)
    assert (await verify(log.database, log.directory)).ok
    assert (await log.verify([])).problems == ()  # nobody has kept a checkpoint
    assert await log.first_problem(log.place.notes[-1:]) == (
        "pushed: missing: a checkpoint tells of 613 records, the log has 611: leaf 611 is the first gone"
    )


async def test_a_log_rewritten_and_signed_anew_contradicts_what_was_pushed(log: Log, tamper: Tamper) -> None:
    """Whoever has the database *and* the keys writes another history; a checkpoint that somebody else kept tells."""
    (row,) = await rows(log.database, RECORD, sa.and_(RECORD.c.writer_id == management.WRITER, RECORD.c.seq == 9))
    forged_d = bytes(32)
    (before,) = await rows(log.database, RECORD, sa.and_(RECORD.c.writer_id == management.WRITER, RECORD.c.seq == 8))
    await cut_management(log, tamper, 9)
    await rolled_back(log, tamper, 611)
    h = lines.chain(before.h, forged_d)
    await tamper(sa.update(RECORD).where(RECORD.c.writer_id == management.WRITER, RECORD.c.seq == 9).values(d=forged_d, h=h))
    await tamper(sa.update(SEALED).where(SEALED.c.writer_id == management.WRITER).values(h=h))
    stored = b"".join(tile.hashes for tile in sorted(await rows(log.database, TILE, TILE.c.level == 0)))
    leaf = merkle.leaf_hash(management.WRITER.bytes + (9).to_bytes(8, "big") + forged_d)
    tree = await rebuilt(tamper, stored[:-32] + leaf)
    signer = await log.sealer._signing()
    forged = signer.sign(Checkpoint(signer.name, 611, tree.root).text)
    await tamper(sa.update(NOTE).where(NOTE.c.size == 611).values(note=forged))
    assert row.d != forged_d
    assert (await log.verify([])).problems == ()
    # Those of 4, 607 and 609 still agree: it was rewritten after these.
    assert await log.first_problem(log.place.notes[:4]) == (
        "pushed: the log is not the one that the checkpoint of 611 tells of: "
        f"changed from entry 8 of writer {management.WRITER} on"
    )


async def test_a_pushed_checkpoint_of_somebody_else_is_no_proof(log: Log) -> None:
    stranger = Signer(log.verifier.name, Ed25519PrivateKey.generate())
    forged = stranger.sign(Checkpoint(stranger.name, 4, bytes(32)).text)
    assert "pushed: the checkpoint does not verify" in await log.first_problem([forged])
    assert "pushed: the checkpoint does not verify" in await log.first_problem(["rubbish"])


async def test_records_that_were_inserted_reordered_or_deleted_are_named(log: Log, tamper: Tamper) -> None:
    (row,) = await rows(log.database, RECORD, log.record(602))
    await tamper(sa.insert(RECORD).values({**row._mapping, "seq": 603}))
    assert not (await verify(log.database, log.directory)).ok  # not sealed: the chain tells
    await tamper(sa.delete(RECORD).where(log.record(603)))
    # Two records change places, as d and h have it.
    (first,), (second,) = [await rows(log.database, RECORD, log.record(seq)) for seq in (100, 101)]
    for seq, other in ((100, second), (101, first)):
        await tamper(sa.update(RECORD).where(log.record(seq)).values(d=other.d, h=other.h))
    assert await log.first_problem([]) == f"entry 100 of writer {log.writer}, seal: changed since it was sealed as leaf 104"
    for seq, right in ((100, first), (101, second)):
        await tamper(sa.update(RECORD).where(log.record(seq)).values(d=right.d, h=right.h))
    await tamper(sa.delete(RECORD).where(log.record(77)))
    assert await log.first_problem([]) == f"entry 77 of writer {log.writer}, seal: missing: it was sealed as leaf 81"


async def test_another_process_with_the_key_reads_the_same_log(log: Log) -> None:
    other = Sealer(log.database, await keyring_of(log.database))
    assert notes.opened(log.place.notes[-1], await other.verifier()).size == 613

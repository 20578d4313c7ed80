"""Sealing: every record once, in one tree, signed by one process at a time, and pushed where it may be seen."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.audit.audit_samples import add_person, rows
from tests.audit.sealing import Place, managed, sealer_of, written
from tests.support.tamper import Tamper

from keybearer.audit import management, merkle, notes, seal, tree
from keybearer.audit.publish import CheckpointFile
from keybearer.errors import AuditBroken, Invalid, NotFound, Unavailable
from keybearer.store import schema
from keybearer.store.db import Actor, Database
from keybearer.store.queries import tree as queries
from keybearer.store.queries.audit import Record

RECORD, TREE = schema.audit_record, schema.audit_tree


async def leaves(database: Database) -> list[bytes]:
    """The hashes of all leaves, as the runs and the records tell them."""
    found: list[bytes] = []
    for run in await rows(database, schema.audit_run):
        of_run = sa.and_(RECORD.c.writer_id == run.writer_id, RECORD.c.seq.between(run.first_seq, run.first_seq + run.length - 1))
        records = sorted((Record(*row) for row in await rows(database, RECORD, of_run)), key=lambda row: row.seq)
        assert len(records) == run.length
        assert len(found) == run.first_index
        found += [tree.leaf_hash(row.writer_id, row.seq, row.d) for row in records]
    return found


async def newest(database: Database) -> queries.Note:
    async with database.read(Actor.system()) as tx:
        note = await queries.latest_note(tx)
    assert note is not None
    return note


async def test_all_that_has_arrived_is_sealed_once_and_signed(database: Database, tmp_path: Path) -> None:
    sealer = await sealer_of(database)
    assert await sealer.seal() == 0
    await written(database, tmp_path, 200)
    count = len(await rows(database, RECORD))
    assert await sealer.seal() == count
    assert await sealer.seal() == 0
    for _ in range(3):
        await managed(database, 2)
        await written(database, tmp_path, 70)
        await sealer.seal()
    hashes = await leaves(database)
    assert len(hashes) == len(await rows(database, RECORD))
    note = await newest(database)
    expected = merkle.root_of(b"".join(hashes))
    checkpoint = notes.opened(note.note, await sealer.verifier())
    assert (checkpoint.size, checkpoint.root) == (note.size, expected) == (len(hashes), expected)
    # What another process makes of it after a restart is the same log, with the same key.
    other = await sealer_of(database)
    assert await other.verifier() == await sealer.verifier()
    assert checkpoint.origin.startswith("keybearer/")


async def test_every_record_can_be_proved_and_every_size_follows_from_those_before(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "BATCH", 100)
    sealer = await sealer_of(database)
    await written(database, tmp_path, 300)
    assert await sealer.seal() > 600
    async with database.read(Actor.system()) as tx:
        kept = await queries.notes(tx, 0, 2**62)
        assert len(kept) > 6
        last = notes.opened(kept[-1].note, await sealer.verifier())
        for row in (await rows(database, RECORD))[::37]:
            proof = await tree.inclusion(tx, row.writer_id, row.seq, row.d)
            assert proof.note == kept[-1].note
            leaf = tree.leaf_hash(row.writer_id, row.seq, row.d)
            merkle.check_inclusion(leaf, proof.index, last.size, proof.hashes, last.root)
            with pytest.raises(AuditBroken, match=f"Entry {row.seq}"):
                await tree.inclusion(tx, row.writer_id, row.seq, bytes(32))
        for note in kept:
            earlier = notes.opened(note.note, await sealer.verifier())
            between = await tree.consistency(tx, earlier.size, last.size)
            merkle.check_consistency((earlier.size, earlier.root), (last.size, last.root), between)
        for sizes in ((0, 5), (5, 4), (1, last.size + 1)):
            with pytest.raises(Invalid):
                await tree.consistency(tx, *sizes)
    await managed(database)
    (row,) = await rows(database, RECORD, RECORD.c.action == "secret.update")
    async with database.read(Actor.system()) as tx:
        with pytest.raises(NotFound, match="not sealed yet"):
            await tree.inclusion(tx, row.writer_id, row.seq, row.d)


async def test_several_processes_seal_every_record_once(database: Database, tmp_path: Path) -> None:
    sealers = [await sealer_of(database) for _ in range(3)]
    who = await add_person(database)
    for _ in range(4):
        await asyncio.gather(written(database, tmp_path, 40, who), *(sealer.turn() for sealer in sealers))
    while sum([await sealer.seal() for sealer in sealers]):
        pass
    hashes = await leaves(database)
    assert len(hashes) == len(await rows(database, RECORD))
    note = await newest(database)
    assert notes.opened(note.note, await sealers[0].verifier()).root == merkle.root_of(b"".join(hashes))


async def test_whoever_slept_beyond_the_lease_signs_nothing(database: Database, tmp_path: Path, tamper: Tamper) -> None:
    sleeper, other = await sealer_of(database), await sealer_of(database)
    await written(database, tmp_path)
    found, parts = await sleeper._gather()
    fence = await sleeper._lease()
    assert fence is not None
    assert await other.seal() == 0  # the lease is the sleeper's
    await tamper(sa.update(TREE).values(leased_until=datetime.now(UTC) - timedelta(seconds=1)))
    sealed = await other.seal()
    assert sealed > 0
    assert not await sleeper._append(found, fence, parts)  # wakes up
    (row,) = await rows(database, TREE)
    assert (row.size, row.fence) == (sealed, fence + 1)
    assert len(await rows(database, schema.audit_note)) == 1
    await managed(database)
    assert await sleeper.seal() == 0  # until the other's lease is over
    await tamper(sa.update(TREE).values(leased_until=datetime.now(UTC) - timedelta(seconds=1)))
    assert await sleeper.seal() == 1


@pytest.mark.parametrize("change", ["d", "h", "missing"])
async def test_what_was_changed_before_it_was_sealed_is_not_signed(
    database: Database, tmp_path: Path, tamper: Tamper, change: str
) -> None:
    sealer = await sealer_of(database)
    writer = await written(database, tmp_path)
    at = sa.and_(RECORD.c.writer_id == writer, RECORD.c.seq == 4)
    await tamper(sa.delete(RECORD).where(at) if change == "missing" else sa.update(RECORD).where(at).values({change: bytes(32)}))
    await sealer.seal()
    assert sealer.alarms == 1
    sealed = {row.writer_id: row.seq for row in await rows(database, schema.audit_sealed)}
    assert sealed[writer] == 3
    assert await sealer.seal() == 0
    alarms = await rows(database, RECORD, RECORD.c.action == management.ALARM)
    assert len(alarms) == 1
    assert "not sealed" in alarms[0].line
    await sealer.release()
    again = await sealer_of(database)
    await managed(database)
    assert await again.seal() == 1  # the others go on, and the alarm is told once
    assert len(await rows(database, RECORD, RECORD.c.action == management.ALARM)) == 1


async def test_an_alarm_that_could_not_be_recorded_is_raised_again(
    database: Database, tmp_path: Path, tamper: Tamper, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealer = await sealer_of(database)
    writer = await written(database, tmp_path)
    await tamper(sa.update(RECORD).where(RECORD.c.writer_id == writer, RECORD.c.seq == 4).values(d=bytes(32)))

    async def away(*_: object) -> None:
        raise Unavailable("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(management, "record", away)
        with pytest.raises(Unavailable):
            await sealer.seal()
    await sealer.seal()
    assert sealer.alarms == 1
    assert len(await rows(database, RECORD, RECORD.c.action == management.ALARM)) == 1
    await tamper(sa.update(RECORD).where(RECORD.c.action == management.ALARM).values(line="changed"))
    await (await sealer_of(database)).seal()
    assert len(await rows(database, RECORD, RECORD.c.action == management.ALARM)) == 2  # the first tells nothing any more


async def test_a_key_that_somebody_put_there_signs_nothing(database: Database, tmp_path: Path, tamper: Tamper) -> None:
    await (await sealer_of(database)).seal()
    (row,) = await rows(database, TREE)
    changed = bytearray(row.key_envelope)
    changed[-1] ^= 1
    await tamper(sa.update(TREE).values(key_envelope=bytes(changed)))
    with pytest.raises(AuditBroken, match="cannot be opened"):
        await (await sealer_of(database)).seal()


async def test_a_damaged_edge_is_not_built_on(database: Database, tmp_path: Path, tamper: Tamper) -> None:
    sealer = await sealer_of(database)
    await written(database, tmp_path)
    await sealer.seal()
    await tamper(sa.update(schema.audit_tile).values(hashes=b""))
    await managed(database)
    with pytest.raises(AuditBroken, match="edge"):
        await sealer.seal()


# --- pushing


async def test_checkpoints_are_pushed_once_each(database: Database, tmp_path: Path) -> None:
    place = Place()
    sealer = await sealer_of(database, place)
    for _ in range(3):
        await managed(database)
        await sealer.turn()
        await sealer.turn()
    opened = [notes.opened(note, await sealer.verifier()) for note in place.notes]
    assert [checkpoint.size for checkpoint in opened] == [2, 3, 4]


async def test_a_failed_push_is_recorded_once_and_tried_again(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "RETRY", (0.0, 0.0))
    place = Place(is_away=True)
    sealer = await sealer_of(database, place)
    await managed(database)
    for _ in range(3):
        await sealer.turn()
    assert sealer.push_failures == 3
    (row,) = await rows(database, TREE)
    assert (row.push_error, row.pushed_size) == ("the place is away", 0)
    recorded = [(row.action, row.outcome) for row in await rows(database, RECORD, RECORD.c.action == seal.PUSHED)]
    assert recorded == [(seal.PUSHED, "unavailable")]
    place.is_away = False
    for _ in range(3):
        await sealer.turn()
    (row,) = await rows(database, TREE)
    assert (row.push_error, row.pushed_size) == ("", row.size)
    recorded = [(row.action, row.outcome) for row in await rows(database, RECORD, RECORD.c.action == seal.PUSHED)]
    assert recorded == [(seal.PUSHED, "unavailable"), (seal.PUSHED, "ok")]


async def test_a_place_that_stays_away_is_asked_less_and_less(database: Database) -> None:
    sealer = await sealer_of(database, Place(is_away=True))
    await managed(database)
    for _ in range(5):
        await sealer.turn()
    assert sealer.push_failures == 1


async def test_a_place_that_was_away_for_weeks_is_asked_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "RETRY", (0.0, 0.0))
    place = Place(is_away=True)
    sealer = await sealer_of(database, place)
    await managed(database)
    monkeypatch.setattr(sealer, "_failed", 5000)
    await sealer.turn()
    place.is_away = False
    await sealer.turn()
    assert place.notes


async def test_a_file_only_ever_grows(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    sealer = await sealer_of(database, CheckpointFile(path))
    seen = b""
    for number in range(1, 4):
        await managed(database)
        await sealer.turn()
        assert path.read_bytes().startswith(seen)
        seen = path.read_bytes()
        assert len(notes.split(seen.decode())) == number
    with pytest.raises(Unavailable, match="could not be written"):
        await CheckpointFile(tmp_path / "nowhere" / "checkpoints").push("note")

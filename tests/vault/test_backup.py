"""Backup and restore, from each kind of database to each: everything comes back and is proved, or nothing is done."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from tests.support.postgresql import Server
from tests.support.tamper import Tamper, tamper_with
from tests.support.vault import OPENAI_KEY, value, world_on
from tests.vault.backup_story import ROOT, Story, find, furnished, phrase, quiet, wrapper

from keybearer.crypto.kms import Wrapper
from keybearer.domain import (
    SecretBytes,
)
from keybearer.errors import AuditBroken, BackupError, DatabaseError, RootKeyError
from keybearer.store import whole
from keybearer.store.db import Actor, Database
from keybearer.store.schema import audit_record, metadata, secret_version
from keybearer.vault.secrets import NewSecret
from keybearer.vault.transfer import backup, container, restore, tables
from keybearer.vault.transfer.restore import Restored, Target


@pytest.fixture
async def story(database: Database) -> Story:
    return await furnished(database)


async def rows_of(url: str) -> dict[str, set[str]]:
    """Every row of every table that a backup keeps, as somebody sees them whom no policy holds; in words that both databases share."""
    engine = create_async_engine(url)
    found: dict[str, set[str]] = {}
    async with engine.connect() as connection:
        for table in tables.kept():
            listed = (await connection.execute(sa.select(table))).all()
            found[table.name] = {json.dumps(tables.written(row), sort_keys=True) for row in listed}
    await engine.dispose()
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    """An empty database of either kind, without tables."""
    if request.param == "sqlite":
        yield Target(f"sqlite+aiosqlite:///{tmp_path / 'restored.db'}", "", tmp_path / "journal", find)
        return
    server: Server = request.getfixturevalue("postgresql_server")
    name = f"kbtest_restored_{uuid4().hex[:8]}"
    url, direct = server.create(name)
    yield Target(url, direct, tmp_path / "journal", find)
    server.drop(name)


@pytest.fixture
async def sqlite_story(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[Story]:
    """For what does not depend on the database."""
    shutil.copyfile(sqlite_template, tmp_path / "keybearer.db")
    db = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'keybearer.db'}")
    yield await furnished(db)
    await db.close()


@pytest.fixture
def sqlite_tamper(tmp_path: Path) -> Tamper:
    return tamper_with(sa.make_url(f"sqlite+aiosqlite:///{tmp_path / 'keybearer.db'}"))


@pytest.fixture
def aside(tmp_path: Path) -> Target:
    return Target(f"sqlite+aiosqlite:///{tmp_path / 'aside.db'}", "", tmp_path / "journal", find)


async def made(story: Story, path: Path, by: Wrapper | None = None) -> backup.Made:
    return await backup.make(story.world.db, story.world.keyring, path, by, quiet)


async def restored(path: Path, target: Target, by: Wrapper | None = None) -> Restored:
    return await restore.restore(path, by, target, quiet)


@pytest.mark.parametrize("by", [None, "passphrase"])
async def test_everything_comes_back_in_either_kind_of_database(
    story: Story, target: Target, tmp_path: Path, by: str | None
) -> None:
    path = tmp_path / "backup.kbb"
    done = await made(story, path, phrase() if by else None)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (done.bytes, done.key_by) == (path.stat().st_size, by or "root-key")
    assert done.root_keys == ("env KEYBEARER_ROOT_KEY",)
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]  # noqa: PTH208  # what a Path gives blocks, ruff says
    proved = await restored(path, target, phrase() if by else None)
    assert (proved.id, proved.rows, proved.tables) == (done.id, done.rows, done.tables)
    assert proved.sampled >= 8
    assert (proved.unreadable, proved.audit) == (0, "ok")
    assert proved.records > 10
    db = await Database.open(target.url, target.direct_url)
    try:
        world = await world_on(db, ROOT)
        assert ("backup.restore", "ok") in await world.recorded()
        await story.check(world)
        # What is made afterwards is numbered on: the first change notes go in beside none that came along.
        assert await world.changed()
    finally:
        await db.close()
    assert ("backup.create", "ok") in await story.world.recorded()
    with pytest.raises(DatabaseError, match="not empty"):
        await restored(path, target, phrase() if by else None)


async def test_something_of_every_table_comes_back_row_by_row(
    story: Story, target: Target, tmp_path: Path, request: pytest.FixtureRequest, database_urls: tuple[str, str]
) -> None:
    """A new table is not forgotten: this story must have something in it, or ``tables.PASSING`` say why it does not come along."""

    def everything(url: str) -> str:
        parsed = sa.make_url(url)
        if parsed.drivername.startswith("sqlite"):
            return url
        admin = sa.make_url(request.getfixturevalue("postgresql_server").admin)
        found = admin.set(drivername="postgresql+psycopg", database=parsed.database)
        return found.render_as_string(hide_password=False)

    before = await rows_of(everything(database_urls[0]))
    assert [name for name, found in before.items() if not found] == []
    await made(story, tmp_path / "backup.kbb", phrase())
    await restored(tmp_path / "backup.kbb", target, phrase())
    after = await rows_of(everything(target.url))
    # Where the trail goes on, what says how far it is does, too.
    goes_on = {"audit_writer", "audit_tree", "audit_sealed", "deployment"}
    lost = {name: len(found - after[name]) for name, found in before.items() if found - after[name] and name not in goes_on}
    assert lost == {}


async def test_a_backup_holds_no_plaintext_and_no_name(sqlite_story: Story, tmp_path: Path) -> None:
    path = tmp_path / "backup.kbb"
    await made(sqlite_story, path, phrase())
    held = path.read_bytes()
    for text in (*sqlite_story.values.values(), "ada@example.com", "Workshop", "kbtest", sqlite_story.token):
        assert text.encode() not in held
    assert ROOT not in held
    header = restore.header_of(path)
    assert header.root_keys[0]["provider"] == "env"


async def test_a_snapshot_is_consistent_whatever_is_written_meanwhile(story: Story, aside: Target, tmp_path: Path) -> None:
    path, world = tmp_path / "backup.kbb", story.world
    key = SecretBytes(os.urandom(32))
    async with whole.snapshot(world.db) as tx:
        header = await backup._header(tx, world.keyring, (uuid4(), key), phrase())
        await world.secrets.create(story.ada, NewSecret("openai", value(OPENAI_KEY), name="late"))
        with path.open("xb") as file:
            await backup._write(tx, container.Writer(file, header, key), quiet)
    contents = restore.read_through(path, key, quiet)
    async with world.db.read(Actor.system()) as tx:
        now = (await tx.execute(sa.select(sa.func.count()).select_from(secret_version))).scalar_one()
    assert contents.digests["secret_version"]["rows"] == now - 1


def damaged(name: str) -> Callable[[bytes], bytes]:
    def front(data: bytes) -> int:
        return 8 + int.from_bytes(data[4:8], "big")

    return {
        "empty": lambda data: b"",
        "another file": lambda data: b"PK\x03\x04" + data,
        "only the start": lambda data: data[:6],
        "no chunks": lambda data: data[: front(data)],
        "cut in the header": lambda data: data[:40],
        "cut in a chunk": lambda data: data[: (front(data) + len(data)) // 2],
        "a byte less": lambda data: data[:-1],
        "a byte more": lambda data: data + b"\0",
        "a changed byte of the header": lambda data: data[:12] + bytes([data[12] ^ 1]) + data[13:],
        "another date in the header": lambda data: data.replace(b'"made_at":"20', b'"made_at":"21', 1),
        "a changed byte": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        "its chunk twice": lambda data: data + data[front(data) :],
    }[name]


@pytest.mark.parametrize(
    "how",
    [
        "empty", "another file", "only the start", "no chunks", "cut in the header", "cut in a chunk", "a byte less", "a byte more",
        "a changed byte of the header", "another date in the header", "a changed byte", "its chunk twice",
    ],
)  # fmt: skip
async def test_what_is_not_whole_is_refused_and_nothing_done(
    sqlite_story: Story, aside: Target, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "backup.kbb"
    await made(sqlite_story, path, phrase())
    bad = tmp_path / "bad.kbb"
    bad.write_bytes(damaged(how)(path.read_bytes()))
    with pytest.raises(BackupError) as refused:
        await restored(bad, aside, phrase())
    assert refused.value.hint
    assert not (tmp_path / "aside.db").exists()


async def test_a_cut_between_chunks_is_found(
    sqlite_story: Story, aside: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "CHUNK", 512)
    path = tmp_path / "backup.kbb"
    await made(sqlite_story, path, phrase())
    data = path.read_bytes()
    at = 8 + int.from_bytes(data[4:8], "big")
    ends = []
    while at < len(data):
        at += 4 + int.from_bytes(data[at : at + 4], "big")
        ends.append(at)
    assert len(ends) > 20
    bad = tmp_path / "bad.kbb"
    first, second, third = (data[start:end] for start, end in itertools.pairwise(ends[2:6]))
    swapped = data.replace(first + second, second + first, 1)
    for cut in (data[: ends[0]], data[: ends[-2]], swapped, data.replace(third, b"", 1)):
        bad.write_bytes(cut)
        with pytest.raises(BackupError):
            await restored(bad, aside, phrase())
    assert not (tmp_path / "aside.db").exists()
    assert (await restored(path, aside, phrase())).audit == "ok"


async def test_another_passphrase_root_key_or_version_is_told(
    sqlite_story: Story, aside: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_phrase, by_root = tmp_path / "phrase.kbb", tmp_path / "root.kbb"
    await made(sqlite_story, by_phrase, phrase())
    await made(sqlite_story, by_root)
    with pytest.raises(BackupError, match="passphrase"):
        await restored(by_phrase, aside, phrase("kbtest another battery of horses"))
    with pytest.raises(BackupError, match="passphrase"):
        await restored(by_phrase, aside)
    other = replace(aside, find=lambda _: wrapper(ROOT[::-1]))
    for path in (by_phrase, by_root):
        with pytest.raises(RootKeyError, match="Wrong root key"):
            await restored(path, other, phrase())
    monkeypatch.setattr(restore, "HEAD", "0001")
    with pytest.raises(BackupError, match="newer version"):
        await restored(by_phrase, aside, phrase())
    newer = tmp_path / "newer.kbb"
    newer.write_bytes(by_phrase.read_bytes().replace(b"KBB\x01", b"KBB\x02", 1))
    with pytest.raises(BackupError, match="newer version"):
        await restored(newer, aside, phrase())
    assert not (tmp_path / "aside.db").exists()


async def test_no_file_is_overwritten_and_no_journal_of_another_time_mixed_in(
    sqlite_story: Story, aside: Target, tmp_path: Path
) -> None:
    path = tmp_path / "backup.kbb"
    path.write_text("mine")
    with pytest.raises(BackupError, match="there already"):
        await made(sqlite_story, path)
    assert path.read_text() == "mine"
    with pytest.raises(BackupError, match="cannot be written"):
        await made(sqlite_story, tmp_path / "no" / "such" / "backup.kbb")
    (tmp_path / ".fresh.kbb.partial").write_text("of a run that was killed")
    fresh = tmp_path / "fresh.kbb"
    await made(sqlite_story, fresh)
    (aside.journal_dir / uuid4().hex).mkdir(parents=True)
    with pytest.raises(BackupError, match="journals"):
        await restored(fresh, aside)
    with pytest.raises(BackupError, match="cannot be read"):
        await restored(tmp_path / "none.kbb", aside)


async def test_a_broken_trail_is_told_before_it_is_taken_over(
    sqlite_story: Story, sqlite_tamper: Tamper, target: Target, tmp_path: Path
) -> None:
    await sqlite_tamper(sa.update(audit_record).where(audit_record.c.seq == 3).values(outcome="forged"))
    path = tmp_path / "backup.kbb"
    await made(sqlite_story, path)
    with pytest.raises(AuditBroken, match="does not verify"):
        await restored(path, target)
    with pytest.raises(DatabaseError):  # it was left without any table
        await Database.open(target.url, target.direct_url)
    done = await restored(path, replace(target, despite_broken_audit=True))
    assert "entry 3" in done.audit


async def test_a_value_that_did_not_open_before_does_not_stop_the_rest(
    sqlite_story: Story, sqlite_tamper: Tamper, target: Target, tmp_path: Path
) -> None:
    first = next(iter(sqlite_story.values))
    await sqlite_tamper(sa.update(secret_version).where(secret_version.c.secret_id == first).values(envelope=b"KB" + b"x" * 200))
    path = tmp_path / "backup.kbb"
    await made(sqlite_story, path)
    done = await restored(path, target)
    assert done.unreadable == 2
    assert done.sampled >= 4


def _columns(sync: sa.Connection, table: str) -> set[str]:
    return {column["name"] for column in sa.inspect(sync).get_columns(table)}


async def test_a_backup_of_an_earlier_schema_is_brought_up_to_date(sqlite_story: Story, target: Target, tmp_path: Path) -> None:
    """As the version before last would have made it: without the columns that came since."""
    path, older = tmp_path / "backup.kbb", tmp_path / "older.kbb"
    await made(sqlite_story, path, phrase())
    header = restore.header_of(path)
    unwrapped = await phrase().unwrap(header.key, container.wrapped_for(header.id, header.deployment))
    key = SecretBytes(unwrapped)
    async with whole.filling(f"sqlite+aiosqlite:///{tmp_path / 'older.db'}", "", "0005") as within:
        had = await within.tx.run_sync(lambda sync: {name: _columns(sync, name) for name in sa.inspect(sync).get_table_names()})
    fields = {name: getattr(header, name) for name in header.__struct_fields__} | {"revision": "0005"}
    with path.open("rb") as file, older.open("xb") as out:
        writer = container.Writer(out, container.Header(**fields), key)
        kept: list[int] = []
        name, digest, rows, count = "", tables.Digest(), 0, 0
        for line in container.Reader(file).lines(key):
            if isinstance(line, dict) and "table" in line:
                name, digest = line["table"], tables.Digest()
                kept = [place for place, column in enumerate(line["columns"]) if column in had.get(name, ())]
            if name not in had and "backup" not in line:
                continue
            if isinstance(line, list):
                row = [line[place] for place in kept]
                digest.add(row)
                writer.line(row)
            elif "table" in line:
                count += 1
                writer.line({"table": name, "columns": [line["columns"][place] for place in kept]})
            elif "end" in line:
                rows += digest.rows
                writer.line({"end": name} | digest.told())
            else:
                writer.line({"backup": "complete", "rows": rows, "tables": count})
        writer.close()
    done = await restored(older, target, phrase())
    assert done.audit == "ok"
    db = await Database.open(target.url, target.direct_url)
    try:
        world = await world_on(db, ROOT)
        for secret_id, text in sqlite_story.values.items():
            assert (await world.secrets.credential(sqlite_story.ada, secret_id)).value.reveal().decode() == text
    finally:
        await db.close()


async def test_the_owners_way_to_read_is_the_owners_alone(
    emptied_postgresql: tuple[str, str], postgresql_server: Server, postgresql_database: str, tmp_path: Path
) -> None:
    db = await Database.open(*emptied_postgresql)
    try:
        await made(await furnished(db), tmp_path / "backup.kbb")
    finally:
        await db.close()
    with postgresql_server.connect(postgresql_database) as connection:
        query = "SELECT DISTINCT roles::text, cmd FROM pg_policies WHERE policyname = %s"
        assert connection.execute(query, [whole.READS]).fetchall() == [("{kbtest_owner}", "SELECT")]
        forced = "SELECT count(*) FROM pg_class WHERE relrowsecurity AND NOT relforcerowsecurity"
        assert connection.execute(forced).fetchone() == (0,)
    without = await Database.open(emptied_postgresql[0])
    try:
        with pytest.raises(DatabaseError, match="owner's work"):
            async with whole.snapshot(without):
                pass
    finally:
        await without.close()


async def test_every_table_is_in_a_backup_or_known_to_pass(sqlite_story: Story, tmp_path: Path) -> None:
    assert set(metadata.tables) >= tables.PASSING
    path = tmp_path / "backup.kbb"
    await made(sqlite_story, path, phrase())
    header = restore.header_of(path)
    key = SecretBytes(await phrase().unwrap(header.key, container.wrapped_for(header.id, header.deployment)))
    contents = restore.read_through(path, key, quiet)
    assert contents.digests.keys() == metadata.tables.keys() - tables.PASSING


def test_a_value_reads_back_as_what_it_was() -> None:
    rows: list[Any] = [None, True, 0, -1, 2**62, 1.5, "", "ü\n", [], ["a"], {"b": [1, {"c": None}]}]
    assert json.loads(json.dumps(tables.written(rows))) == rows


@pytest.mark.parametrize("row", [None, [], {}, ["x", 1], [1], ["zz"], [["x"]]])
def test_a_row_that_does_not_fit_is_told(row: Any) -> None:
    column = metadata.tables["owner"].c.id
    with pytest.raises(BackupError):
        tables.read([column], row)

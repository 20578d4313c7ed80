"""A use is on disk before its key leaves, or it does not leave."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from tests.audit.audit_samples import outcome, person

from keybearer.audit import journal as journals
from keybearer.audit import lines, segments
from keybearer.audit.journal import Durability, Journal
from keybearer.audit.lines import Entry
from keybearer.audit.segments import Tail
from keybearer.errors import JournalFailed

WHO = person()


def begin(directory: Path, durability: Durability = "journal", *, segment_bytes: int = 1 << 20) -> Journal:
    """A journal without a database: its writer is registered nowhere."""
    writer = uuid4()
    path, lock = segments.create(directory, writer)
    journal = Journal(writer, path, lock, durability, segment_bytes=segment_bytes)
    journal.begin("host", 1)
    return journal


def read(journal: Journal) -> list[Entry]:
    tail = Tail(journal.path)
    entries: list[Entry] = []
    while found := tail.read(100):
        entries += found
    assert tail.torn == 0
    tail.close()
    return entries


def kinds(journal: Journal) -> list[str]:
    return [lines.kind_of(entry.line) for entry in read(journal)]


async def test_a_use_is_in_the_file_when_the_call_returns(tmp_path: Path) -> None:
    journal = begin(tmp_path)
    assert journal.use(WHO.use("r1")) == 2
    entry = read(journal)[-1]
    assert entry.seq == 2
    assert lines.decode_use(entry.line) == WHO.use("r1", at=lines.decode_use(entry.line).at)
    await journal.close()


class Departing:
    """Uses that hear whether they are on record."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def depart(self, seq: int) -> None:
        self.left.append(seq)

    def stay(self, error: JournalFailed) -> None:
        raise error


async def test_uses_of_two_turns_go_together_and_a_lone_one_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, uses = begin(tmp_path), Departing()
    written: list[int] = []
    write = journal._write

    def counted(data: bytes) -> None:
        written.append(data.count(b"\n"))
        write(data)

    monkeypatch.setattr(journal, "_write", counted)
    journal.depart(lines.use_line(WHO.use("r1")), uses)
    await asyncio.sleep(0)
    assert (uses.left, written) == ([2], [1])
    for name in ("r2", "r3"):
        journal.depart(lines.use_line(WHO.use(name)), uses)
    await asyncio.sleep(0)
    assert uses.left == [2]  # a next turn may bring more
    for name in ("r4", "r5", "r6"):
        journal.depart(lines.use_line(WHO.use(name)), uses)
    await asyncio.sleep(0)
    assert (uses.left, written) == ([2, 3, 4, 5, 6, 7], [1, 5])  # and those of no third one
    assert kinds(journal) == ["open", *["use"] * 6]
    await journal.close()


async def test_only_the_owner_of_the_process_may_read_the_files(tmp_path: Path) -> None:
    journal = begin(tmp_path / "journal")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "journal", *(tmp_path / "journal").rglob("*")]}
    assert set(modes.values()) == {0o700, 0o600}
    assert modes[journal.writer.hex] == 0o700
    await journal.close()


async def test_outcomes_wait_for_the_next_use_or_a_moment(tmp_path: Path) -> None:
    journal = begin(tmp_path)
    journal.use(WHO.use("r1"))
    assert journal.outcome(outcome("r1")) == 3
    assert kinds(journal) == ["open", "use"]
    assert journal.use(WHO.use("r2")) == 4
    assert kinds(journal) == ["open", "use", "outcome", "use"]
    journal.outcome(outcome("r2"))
    await asyncio.sleep(journals.FLUSH_AFTER * 3)
    assert kinds(journal) == ["open", "use", "outcome", "use", "outcome"]
    journal.outcome(outcome("r2"))
    await journal.close()
    assert kinds(journal)[5:] == ["outcome", "close"]


async def test_a_closed_journal_refuses_uses_and_drops_outcomes(tmp_path: Path) -> None:
    journal = begin(tmp_path)
    assert segments.is_held(journal.path)
    await journal.close()
    await journal.close()
    assert not segments.is_held(journal.path)
    with pytest.raises(JournalFailed):
        journal.use(WHO.use("r1"))
    assert journal.outcome(outcome("r1")) == 0
    assert journal.dropped == 1
    assert kinds(journal) == ["open", "close"]


async def test_segments_follow_each_other_without_a_gap(tmp_path: Path) -> None:
    journal = begin(tmp_path, segment_bytes=4000)
    for number in range(30):
        journal.use(WHO.use(f"r{number}"))
        journal.outcome(outcome(f"r{number}"))
    await journal.close()
    found = segments.segments(journal.path)
    assert len(found) > 5
    assert all(segment.path.stat().st_size <= 4000 for segment in found)
    assert [entry.seq for entry in read(journal)] == list(range(1, 63))


async def test_reading_goes_on_from_any_entry(tmp_path: Path) -> None:
    journal = begin(tmp_path, segment_bytes=4000)
    for number in range(30):
        journal.use(WHO.use(f"r{number}"))
    entries = read(journal)
    for known in entries:
        tail = Tail(journal.path, known.seq, known.h)
        assert tail.read(100) == entries[known.seq :]
        tail.close()
    tail = Tail(journal.path, 7, bytes(32))
    with pytest.raises(segments.Broken, match="another entry"):
        tail.read(100)
    tail.close()
    await journal.close()


async def test_a_full_disk_refuses_the_use_and_breaks_no_chain(tmp_path: Path) -> None:
    """``/dev/full`` answers every write with ENOSPC, and cannot be truncated either."""
    journal = begin(tmp_path)
    journal.use(WHO.use("r1"))
    journal.outcome(outcome("r1"))
    whole, journal._descriptor = journal._descriptor, os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(JournalFailed, match="No space left"):
        journal.use(WHO.use("r2"))
    with pytest.raises(JournalFailed, match="cannot be repaired"):
        journal.use(WHO.use("r3"))
    assert journal.failures == 2
    await asyncio.sleep(journals.FLUSH_AFTER * 2)  # the outcome cannot be written either, and waits
    os.close(journal._descriptor)
    journal._descriptor = whole
    journal.use(WHO.use("r4"))
    await journal.close()
    entries = read(journal)
    assert [lines.kind_of(entry.line) for entry in entries] == ["open", "use", "outcome", "use", "close"]
    assert lines.decode_use(entries[3].line).request_id == "r4"


FILE_LIMIT = """
import asyncio, resource, sys
from pathlib import Path
from tests.audit.audit_samples import outcome, person
from tests.audit.test_journal import begin
from keybearer.errors import JournalFailed

async def main():
    journal = begin(Path(sys.argv[1]))
    who, refused, written = person(), 0, []
    size = next(journal.path.glob("*.jsonl")).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, resource.RLIM_INFINITY))
    for number in range(40):
        journal.outcome(outcome(f"r{number - 1}"))
        try:
            journal.use(who.use(f"r{number}"))
            written.append(number)
        except JournalFailed:
            refused += 1
        if refused == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await journal.close()
    print(journal.path, refused, len(written))

asyncio.run(main())
"""


def test_a_short_write_is_cut_off_and_the_use_refused(tmp_path: Path) -> None:
    """A file-size limit lets the kernel write a part of the line, as a disk does that fills up in the middle of it."""
    done = subprocess.run(
        [sys.executable, "-c", FILE_LIMIT, str(tmp_path)], capture_output=True, text=True, check=True, env={"PYTHONPATH": "src:."}
    )
    path, refused, written = done.stdout.split()[-3:]
    assert int(refused) == 5
    assert int(written) == 35
    tail = Tail(Path(path))
    entries = tail.read(1000)
    tail.close()
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    found = [lines.kind_of(entry.line) for entry in entries]
    assert (found.count("use"), found.count("outcome"), found[-1]) == (35, 40, "close")


async def test_outcomes_of_a_journal_that_fails_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "PENDING_BYTES", 5000)
    journal = begin(tmp_path)
    whole, journal._descriptor = journal._descriptor, os.open("/dev/full", os.O_WRONLY)
    kept = [journal.outcome(outcome(f"r{number}")) for number in range(100)]
    assert 5 < sum(seq > 0 for seq in kept) < 20
    assert journal.dropped == kept.count(0)
    os.close(journal._descriptor)
    journal._descriptor = whole
    await journal.close()
    assert len(read(journal)) == 2 + sum(seq > 0 for seq in kept)


async def test_with_fsync_a_use_is_synced_before_it_counts_and_many_share_one_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(segments, "sync_directory", synced.append)
        journal = begin(tmp_path, "fsync", segment_bytes=20_000)
    assert journal.path in synced, "else the first segment's name may be lost"
    assert journal.needs_wait
    await asyncio.gather(*(journal.durable(journal.use(WHO.use(f"r{number}"))) for number in range(200)))
    assert journal._durable == 201
    assert journal._retired == []
    await journal.durable(1)
    await journal.close()
    assert len(read(journal)) == 202


async def test_a_failed_sync_ends_the_journal(tmp_path: Path) -> None:
    """What a failed fsync did not write cannot be told from what it did: the kernel tells once. A pipe cannot be synced."""
    journal = begin(tmp_path, "fsync")
    reader, writer = os.pipe()
    whole, journal._descriptor = journal._descriptor, writer
    seq = journal.use(WHO.use("r1"))
    with pytest.raises(JournalFailed, match="could not be synced"):
        await journal.durable(seq)
    with pytest.raises(JournalFailed, match="restarted"):
        journal.use(WHO.use("r2"))
    with pytest.raises(JournalFailed, match="restarted"):
        await journal.durable(seq)
    assert journal.outcome(outcome("r1")) == 0
    os.close(reader)
    os.close(writer)
    journal._descriptor = whole
    await journal.close()
    assert kinds(journal) == ["open"]


async def test_without_a_shipper_nothing_is_durable_in_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "DURABLE_WITHIN", 0.3)
    journal = begin(tmp_path, "database")
    with pytest.raises(JournalFailed, match="durable"):
        await journal.durable(journal.use(WHO.use("r1")))
    assert journal.failures == 1
    await journal.close()


async def test_a_directory_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        segments.create(tmp_path / "file", uuid4())

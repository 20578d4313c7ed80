"""Where journals lie, who holds them, and reading them back.

::

    <directory>/<writer, 32 hex>/lock                          flock'ed as long as the writer lives
    <directory>/<writer, 32 hex>/<first seq, 20 digits>.jsonl   entries, in segments

The kernel frees the lock however the process dies, so a lock that can be had means a dead writer; shippers hold it in turn while
they ship a dead writer's rest. A new journal is made under a hidden name and renamed when it is locked: none takes it for dead.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from keybearer.audit.lines import GENESIS, MAX_ENTRY_BYTES, Entry, LineError, check, entry_head, following, parse

LOCK = "lock"
SUFFIX = ".jsonl"
_CHUNK = 256 * 1024
_HIDDEN = ".new-"


class Segment(NamedTuple):
    """One file of a journal; ``first`` is the sequence number its name promises for its first entry."""

    first: int
    path: Path


class Broken(Exception):  # reads as what it says: this journal is broken at ``seq``
    """A journal does not read on: the entry that should be number ``seq`` is missing, changed or out of place."""

    def __init__(self, seq: int, what: str) -> None:
        super().__init__(f"{seq}: {what}")
        self.seq = seq
        self.what = what


def create(directory: Path, writer: UUID) -> tuple[Path, int]:
    """Make an empty journal, locked; return its path and the lock's descriptor. Raises ``OSError``."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    hidden = directory / f"{_HIDDEN}{writer.hex}"
    hidden.mkdir(mode=0o700)
    lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path = directory / writer.hex
    hidden.rename(path)
    sync_directory(directory)
    return path, lock


def seize(path: Path) -> int | None:
    """Return the lock of a dead writer's journal; ``None`` while its writer or another shipper holds it, or once it is gone."""
    try:
        lock = os.open(path / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    if not _is_same_file(lock, path / LOCK):  # its last holder has deleted the journal
        os.close(lock)
        return None
    return lock


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Whether a living process holds this journal."""
    lock = seize(path)
    if lock is None:
        return (path / LOCK).exists()
    os.close(lock)
    return False


def journals(directory: Path) -> dict[UUID, Path]:
    """Return the journals in ``directory`` by writer; other files there are none of ours."""
    found = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if len(path.name) == 32 and path.is_dir():  # noqa: PLR2004  # a UUID in hex
            try:
                found[UUID(path.name)] = path
            except ValueError:
                continue
    return found


def segments(path: Path) -> list[Segment]:
    """Return the segments of a journal in order; none if the journal is gone."""
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except FileNotFoundError:
        return []
    return [Segment(int(name[:20]), path / name) for name in names if name.endswith(SUFFIX) and name[:20].isdecimal()]


def segment_path(path: Path, first: int) -> Path:
    """Return the file whose first entry has the sequence number ``first``."""
    return path / f"{first:020d}{SUFFIX}"


def sync_directory(path: Path) -> None:
    """Make new names in a directory survive power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a journal whose lock the caller holds."""
    shutil.rmtree(path, ignore_errors=True)


class Tail:
    """Reads a journal on from a known entry, checking each; call ``read`` again when more may have been written.

    ``seq`` and ``h`` are those of the last entry known: 0 and ``GENESIS`` to read from the start.
    """

    def __init__(self, path: Path, seq: int = 0, h: bytes = GENESIS) -> None:
        self.path = path
        self.seq = seq
        self.h = h
        self._segment: Segment | None = None
        self._descriptor = -1
        self._offset = 0
        """Where in the file ``_buffer`` begins."""
        self._buffer = b""
        self._start = 0
        """Where in ``_buffer`` the next entry begins."""
        self.torn = 0
        """Bytes after the last whole entry at the last end of file: what a killed process or a power loss left of a write."""
        self._skipped: int | None = None
        """While entries up to ``seq`` are passed over: the last one seen."""
        self._skipped_h: bytes | None = None
        self._writer = UUID(path.name)
        self._head = entry_head(self._writer)

    def read(self, limit: int) -> list[Entry]:
        """Return up to ``limit`` further entries, each following the one before; none at the end.

        Raises ``Broken`` at the first that is wrong, when those before it have been returned; reading on raises it again.
        """
        found: list[Entry] = []
        try:
            for entry in self._entries():
                found.append(entry)
                if len(found) >= limit:
                    break
        except Broken:
            if not found:
                raise
        return found

    def close(self) -> None:
        """Give the file back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _entries(self) -> Iterator[Entry]:
        if self._segment is None and not self._open_first():
            return
        while True:
            end = self._buffer.find(b"\n", self._start)
            if end < 0:
                if not self._more():
                    return
                continue
            raw = self._buffer[self._start : end]
            entry = self._follow(raw) if self._skipped is None else None
            if entry is None:
                entry = self._accept(raw)
            self._start = end + 1
            if entry is not None:
                yield entry

    def _follow(self, raw: bytes) -> Entry | None:
        """Move on to the next entry if ``raw`` is it; ``None``: ``_accept`` will say why not."""
        seq = self.seq + 1
        found = following(raw, self._head, seq, self.h)
        if found is None:
            return None
        nonce, d, h, line = found
        self.seq, self.h = seq, h
        return Entry(self._writer, seq, nonce, d, h, line)

    def _accept(self, raw: bytes) -> Entry | None:
        """Check one entry and move on to it; ``None`` for one that is known already."""
        skipping = self._skipped is not None
        seq = self._last() + 1
        before = self._skipped_h if skipping else self.h
        try:
            entry = parse(raw)
            _check_place(entry, self.path.name, seq)
            check(entry, before)
        except LineError as error:
            raise Broken(seq, str(error)) from error
        if not skipping:
            self.seq, self.h = entry.seq, entry.h
            return entry
        self._skipped, self._skipped_h = entry.seq, entry.h
        if entry.seq == self.seq:
            if entry.h != self.h:
                raise Broken(entry.seq, "changed: another entry of this number is known")
            self._skipped = self._skipped_h = None
        return None

    def _open_first(self) -> bool:
        """Open the segment that holds the entry after the last known one, or the last known one itself."""
        known = segments(self.path)
        if not known:
            return False
        fitting = [segment for segment in known if segment.first <= max(self.seq, 1)]
        following = [segment for segment in known if segment.first == self.seq + 1]
        if fitting and self.seq > 0:
            self._skipped = fitting[-1].first - 1
            self._skipped_h = GENESIS if self._skipped == 0 else None
        chosen = fitting or following
        if not chosen:
            raise Broken(self.seq + 1, f"missing: the journal begins with {known[0].first}")
        self._switch(chosen[-1])
        return True

    def _more(self) -> bool:
        """Read on in this segment, or go on to the next; ``False`` at the end of the journal."""
        if self._fill():
            return True
        following = [segment for segment in segments(self.path) if self._segment and segment.first > self._segment.first]
        if not following:
            return False
        if self._fill():  # written between our end of file and the rotation
            return True
        if self.torn:
            raise Broken(self._last() + 1, "changed: not an entry")
        if following[0].first != self._last() + 1:
            raise Broken(self._last() + 1, f"missing: the next segment begins with {following[0].first}")
        self._switch(following[0])
        return True

    def _last(self) -> int:
        return self._skipped if self._skipped is not None else self.seq

    def _fill(self) -> bool:
        """Read on in this segment. A torn end is read anew each time: its writer may have cut it off meanwhile."""
        self._offset += self._start
        self._buffer = self._buffer[self._start :]
        self._start = 0
        chunk = os.pread(self._descriptor, _CHUNK, self._offset + len(self._buffer))
        self.torn = 0 if chunk else len(self._buffer)
        self._buffer = self._buffer + chunk if chunk else b""
        if len(self._buffer) > MAX_ENTRY_BYTES + _CHUNK and b"\n" not in self._buffer:
            raise Broken(self._last() + 1, "changed: not an entry")
        return bool(chunk)

    def _switch(self, segment: Segment) -> None:
        self.close()
        self._descriptor = os.open(segment.path, os.O_RDONLY)
        self._segment = segment
        self._offset = self._start = self.torn = 0
        self._buffer = b""


def _check_place(entry: Entry, writer_hex: str, seq: int) -> None:
    if entry.writer.hex != writer_hex:
        raise LineError("changed: an entry of another writer")
    if entry.seq > seq:
        raise LineError(f"missing: the next entry is {entry.seq}")
    if entry.seq < seq:
        raise LineError(f"duplicate or reordered: entry {entry.seq} stands here")

"""The journal of this process: a use is on record before its key leaves, its outcome soon after.

All uses of one turn of the event loop are written together, with the outcomes that wait, and only then do their keys leave: one
``write`` costs 13 µs, as much as all else that one use needs. Where a turn has several, those of the next one go with them: a tenth
of the time of every call, for then their keys leave, and their answers come, in larger groups too. Outcomes wait for the next use
or 50 ms. What a use survives before
``durable`` returns is the deployment's choice: ``journal`` a killed process, ``fsync`` power loss, ``database`` the loss of the machine.

What waits is numbered and chained as it is written. If a write fails or is short, the tail is cut off again and its uses are refused,
so the chain never holds a part of a line, nor a use that was not allowed; the next use tries anew. If an fsync fails, what was
written before can no longer be trusted to be on disk (the kernel reports it once and forgets), so the journal refuses everything
from then on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal, Protocol
from uuid import UUID, uuid4

import structlog

from keybearer.audit import management, segments
from keybearer.audit.gathering import Gathering
from keybearer.audit.lines import (
    GENESIS,
    NONCE_BYTES,
    Opened,
    close_line,
    entry_head,
    next_entries,
    open_line,
    outcome_line,
    use_line,
)
from keybearer.domain import OutcomeRecord, UseRecord
from keybearer.errors import JournalFailed, KeybearerError
from keybearer.store.db import Database

Durability = Literal["journal", "fsync", "database"]

FLUSH_AFTER = 0.05
"""Seconds an outcome waits at most."""
RETRY_AFTER = 1.0
"""Seconds between attempts to write outcomes to a journal that fails."""
DURABLE_WITHIN = 10.0
"""Seconds until a use that is not yet durable is refused."""
COMMIT_AGAIN = 0.1
"""Seconds between attempts to commit while somebody waits."""
SEGMENT_BYTES = 16 * 2**20
PENDING_BYTES = 8 * 2**20
"""Outcomes kept for a journal that fails; beyond, they are dropped and counted (and shown as unknown)."""
_NONCES = 256

_log = structlog.get_logger(__name__)
# macOS has no fdatasync.
_sync_data = getattr(os, "fdatasync", os.fsync)


class Departure(Protocol):
    """A use that is about to be written: who asked for it hears once, a turn of the event loop or two later, which of the two it is."""

    def depart(self, seq: int) -> None:
        """It is on record as entry ``seq``: the key may leave."""

    def stay(self, error: JournalFailed) -> None:
        """It is not: the key must not leave."""


class Journal:
    """One writer and its files. Made by ``open``; to be used from its event loop's thread alone."""

    def __init__(
        self, writer: UUID, path: Path, lock: int, durability: Durability, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.writer = writer
        self.path = path
        self.durability: Durability = durability
        self.needs_wait = durability != "journal"
        """Whether a use must be awaited with ``durable`` before the key leaves."""
        self.commit: Callable[[], Awaitable[object]] | None = None
        """Set by the shipper: moves what is written to the database."""
        self.failures = 0
        """Uses refused because they could not be written."""
        self.dropped = 0
        """Outcomes that could not be kept."""
        self._loop = asyncio.get_running_loop()
        self._lock = lock
        self._head = entry_head(writer)
        self._segment_bytes = segment_bytes
        self._descriptor = -1
        self._size = segment_bytes  # full: the first write makes the first segment
        self._seq = 0
        """The last entry in the file."""
        self._h = GENESIS
        self._pending: list[bytes] = []
        """Lines of outcomes that wait."""
        self._pending_bytes = 0
        self._uses = Gathering(self._write_uses)
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._is_torn = False
        """A part of a line may stand at the end of the file and could not be cut off yet."""
        self._ailing = False
        self._lost: str | None = None
        """Why nothing may be written any more."""
        self._nonces = b""
        self._nonce_at = 0
        self._durable = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._retired: list[int] = []
        """Descriptors of full segments, to be synced and closed."""
        self._securing: asyncio.Task[None] | None = None
        self._executor = ThreadPoolExecutor(1, "journal-sync")

    @classmethod
    async def open(cls, db: Database, directory: Path, durability: Durability, *, segment_bytes: int = SEGMENT_BYTES) -> Journal:
        """Register a new writer and begin its journal in ``directory``. Raises ``JournalFailed`` if that cannot be written."""
        writer, host, pid = uuid4(), socket.gethostname(), os.getpid()
        try:
            path, lock = segments.create(directory, writer)
        except OSError as error:
            raise JournalFailed(f"The journal cannot be made: {_reason(error)}.") from error
        with ExitStack() as stack:
            stack.callback(os.close, lock)
            await management.register_writer(db, writer, host, pid)
            journal = cls(writer, path, lock, durability, segment_bytes=segment_bytes)
            journal.begin(host, pid)
            stack.pop_all()
        return journal

    def begin(self, host: str, pid: int) -> None:
        """Write the first line, which binds the chain to this writer. Raises ``JournalFailed``."""
        self._append([open_line(Opened(self.writer, time.time(), host, pid, self.durability))])
        if self.durability == "fsync":
            segments.sync_directory(self.path)
        _log.info("audit.journal_opened", writer=str(self.writer), path=str(self.path), durability=self.durability)

    def use(self, record: UseRecord) -> int:
        """Write down that a key is about to leave; return the entry's number. Raises ``JournalFailed``: it must not leave."""
        self._append([use_line(record)])
        return self._seq

    def depart(self, line: bytes, departure: Departure) -> None:
        """Write down that a key is about to leave, together with others of this turn of the event loop and the next. Never raises.

        ``line`` is a ``use_line``; ``departure`` hears whether it is on record.
        """
        self._uses.add((line, departure))

    def outcome(self, record: OutcomeRecord) -> int:
        """Note how a call ended; return the number its entry will have if no use comes first, or 0 if it was dropped. Never raises."""
        if self._closed or self._lost is not None or self._pending_bytes > PENDING_BYTES:
            self.dropped += 1
            if self.dropped == 1:
                _log.error("audit.outcome_dropped", writer=str(self.writer))
            return 0
        line = outcome_line(record)
        self._pending.append(line)
        self._pending_bytes += len(line)
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_AFTER, self._flush_late)
        return self._seq + len(self._pending)

    @property
    def seq(self) -> int:
        """The last entry that is written."""
        return self._seq

    def flush(self) -> None:
        """Write the outcomes that wait. Raises ``JournalFailed``."""
        if self._pending:
            self._append([])

    async def durable(self, seq: int) -> None:
        """Return when entry ``seq`` is as durable as the deployment wants. Raises ``JournalFailed``: the key must not leave."""
        if not self.needs_wait or seq <= self._durable:
            return
        if self._lost is not None:
            raise JournalFailed(self._lost)
        waiter = self._loop.create_future()
        self._waiters.append((seq, waiter))
        if self._securing is None:
            self._securing = asyncio.create_task(self._secure())
        try:
            async with asyncio.timeout(DURABLE_WITHIN):
                await waiter
        except TimeoutError:
            self.failures += 1
            raise JournalFailed(
                f"The use could not be made durable within {DURABLE_WITHIN:.0f} s, so the key was not sent."
            ) from None

    def committed(self, seq: int) -> None:
        """Hear from the shipper that entries up to ``seq`` are in the database."""
        if self.durability == "database":
            self._settle(seq)

    async def close(self) -> None:
        """Write what waits and the closing line, sync, and let the journal go. What comes after is refused."""
        if self._closed:
            return
        try:
            self.flush()
            self._append([close_line(time.time())])
        except JournalFailed as error:
            _log.error("audit.journal_not_closed", writer=str(self.writer), reason=error.message)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self.durability == "database":
            self._fail_waiters(JournalFailed("The journal is closed."))
        if self._securing is not None:
            await self._securing
        retired, self._retired = [*self._retired, *([self._descriptor] if self._descriptor >= 0 else [])], []
        try:
            await self._loop.run_in_executor(self._executor, _sync, self.path, retired, None)
        except OSError as error:
            _log.error("audit.journal_not_synced", writer=str(self.writer), reason=_reason(error))
        self._descriptor = -1
        self._executor.shutdown()
        self._fail_waiters(JournalFailed("The journal is closed."))
        os.close(self._lock)

    # --- writing

    def _write_uses(self, uses: list[tuple[bytes, Departure]]) -> None:
        """All of them are on record, or none of them is; either way all who wait hear of it."""
        try:
            self._append([line for line, _ in uses])
        except JournalFailed as error:
            for _, departure in uses:
                departure.stay(error)
            return
        for seq, (_, departure) in enumerate(uses, self._seq - len(uses) + 1):
            departure.depart(seq)

    def _append(self, lines: list[bytes]) -> None:
        """All that waits, and ``lines`` after it, in one write. Raises ``JournalFailed``: then nothing has changed."""
        pending = self._pending
        lines = pending + lines
        size = NONCE_BYTES * len(lines)
        at = self._nonce_at
        if at + size > len(self._nonces):
            self._nonces = os.urandom(max(size, NONCE_BYTES * _NONCES))
            at = 0
        self._nonce_at = at + size
        h, data = next_entries(self._head, self._seq, self._nonces[at : at + size], self._h, lines)
        self._write(data)
        self._h = h
        self._seq += len(lines)
        if pending:
            self._pending = []
            self._pending_bytes = 0

    def _write(self, data: bytes) -> None:
        """All of ``data``, or nothing and ``JournalFailed``."""
        if self._closed or self._lost is not None or self._is_torn or self._size + len(data) > self._segment_bytes:
            self._prepare(len(data))
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            self._repair()
            raise self._failed(_reason(error)) from error
        if written != len(data):
            self._repair()
            raise self._failed("the disk is full or the file has reached a size limit")
        self._size += written
        if self._ailing:
            self._ailing = False
            _log.info("audit.journal_recovered", writer=str(self.writer))

    def _prepare(self, size: int) -> None:
        """Deal with what stands between a write and the file: a closed or lost journal, a torn end, a full segment."""
        if self._closed:
            raise JournalFailed("The journal is closed.")
        if self._lost is not None:
            self.failures += 1
            raise JournalFailed(self._lost)
        if self._is_torn:
            self._repair()
            if self._is_torn:
                raise self._failed("the end of the file cannot be repaired")
        if self._descriptor < 0 or (self._size and self._size + size > self._segment_bytes):
            self._rotate()

    def _rotate(self) -> None:
        """Go on in a new segment, named after the first entry it will hold."""
        path = segments.segment_path(self.path, self._seq + 1)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except OSError as error:
            raise self._failed(_reason(error)) from error
        if self._descriptor >= 0:
            self._retired.append(self._descriptor)
        if self.durability != "fsync":
            _close(self._retired)
            self._retired = []
        self._descriptor, self._size = descriptor, 0

    def _repair(self) -> None:
        """Cut off what a failed write may have left."""
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self._is_torn = True
        else:
            self._is_torn = False

    def _failed(self, reason: str) -> JournalFailed:
        self.failures += 1
        if not self._ailing:
            self._ailing = True
            _log.error("audit.journal_failed", writer=str(self.writer), reason=reason)
        return JournalFailed(f"The use could not be recorded ({reason}), so the key was not sent.")

    def _flush_late(self) -> None:
        self._timer = None
        try:
            self.flush()
        except JournalFailed:  # logged by _failed, once
            if self._lost is None and not self._closed:
                self._timer = self._loop.call_later(RETRY_AFTER, self._flush_late)

    # --- durability

    async def _secure(self) -> None:
        """Group commit: one sync for all that were written before it began, as long as somebody waits."""
        try:
            while self._waiters and self._lost is None:
                if self.durability == "fsync":
                    await self._sync()
                else:
                    await self._commit()
        finally:
            self._securing = None

    async def _sync(self) -> None:
        target, descriptor = self._seq, self._descriptor
        retired, self._retired = self._retired, []
        try:
            await self._loop.run_in_executor(self._executor, _sync, self.path, retired, descriptor)
        except OSError as error:
            self._lost = f"The journal could not be synced ({_reason(error)}); the server must be restarted."
            _log.critical("audit.journal_lost", writer=str(self.writer), reason=_reason(error))
            self._fail_waiters(JournalFailed(self._lost))
        else:
            self._settle(target)

    async def _commit(self) -> None:
        """Have the shipper commit; it says how far it came. Where it cannot, those who wait give up after their time."""
        before = self._durable
        if self.commit is not None:
            with suppress(KeybearerError, OSError):  # the job that ships all the time logs it
                await self.commit()
        self._waiters = [item for item in self._waiters if not item[1].done()]
        if self._waiters and self._durable == before:
            await asyncio.sleep(COMMIT_AGAIN)

    def _settle(self, seq: int) -> None:
        self._durable = max(self._durable, seq)
        waiting = []
        for item in self._waiters:
            if item[0] > self._durable:
                waiting.append(item)
            elif not item[1].done():
                item[1].set_result(None)
        self._waiters = waiting

    def _fail_waiters(self, error: JournalFailed) -> None:
        waiters, self._waiters = self._waiters, []
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)


def _sync(path: Path, retired: Sequence[int], descriptor: int | None) -> None:
    """In a thread: sync full segments and close them, sync the current one. Raises ``OSError``."""
    try:
        for full in retired:
            _sync_data(full)
    finally:
        _close(retired)
    if retired:
        segments.sync_directory(path)
    if descriptor is not None:
        _sync_data(descriptor)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else "unknown error"

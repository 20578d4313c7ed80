"""Proving the seal: records against the tree, the tree against its signed checkpoints, and these against what was pushed elsewhere.

All leaves are hashed anew from what the records' rows say. Where that gives the root that was signed, the records are as they
were; where it does not, the stored tiles tell which record differs. A log that was rewritten as a whole, tiles and signatures too,
contradicts every checkpoint that somebody else kept: then the range is named in which it was rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.audit import merkle, notes
from keybearer.audit.merkle import HASH, Tile
from keybearer.audit.notes import NoteError, Verifier
from keybearer.audit.tree import leaf_hashes
from keybearer.audit.verify import NOBODY, Problem
from keybearer.store.db import Actor, Database
from keybearer.store.queries import tree as queries
from keybearer.store.queries.tree import Digest, Run

CHUNK = 4096
"""Records read at once."""
AHEAD = 512
"""Records read at least, where a run is shorter: neighbouring runs are often one writer's."""
MOST_PROBLEMS = 20

Progress = Callable[[int], None]
"""Told how many records more were checked."""


@dataclass(frozen=True, slots=True)
class TreeReport:
    """What was found of the tree."""

    size: int
    """Leaves."""
    checkpoints: int
    """Signed checkpoints that verify, of the log's own."""
    pushed: int
    """Checkpoints from elsewhere that verify."""
    problems: tuple[Problem, ...]
    later: int = 0
    """Checkpoints from elsewhere that tell of a larger log than an archive is: nothing is wrong with that."""

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {"size": self.size, "checkpoints": self.checkpoints, "pushed": self.pushed}


class Claims:
    """Checkpoints to hold a tree against while it grows: each at its size."""

    def __init__(self, verifier: Verifier) -> None:
        self.problems: list[Problem] = []
        self.agreed = 0
        """The size of the largest checkpoint that the tree agrees with."""
        self.verified: dict[str, int] = {}
        """How many checkpoints agree, by where they come from."""
        self._verifier = verifier
        self._roots: dict[int, list[tuple[bytes, str]]] = {}
        self._sizes: list[int] = []
        self._is_forked = False

    def add(self, texts: Iterable[tuple[str, int | None]], where: str) -> None:
        """Take signed notes in, with the size that their rows claim; those that are none of this log's are problems."""
        for text, size in texts:
            try:
                checkpoint = notes.opened(text, self._verifier)
            except NoteError as error:
                self._blame(where, f"the checkpoint{'' if size is None else f' of {size}'} does not verify: {error}")
                continue
            if size not in {None, checkpoint.size}:
                self._blame(where, f"the checkpoint of {size} was changed: it tells of {checkpoint.size}")
            self._roots.setdefault(checkpoint.size, []).append((checkpoint.root, where))
        self._sizes = sorted(self._roots, reverse=True)

    @property
    def next_size(self) -> int | None:
        """The size at which to ``compare`` next."""
        return self._sizes[-1] if self._sizes else None

    def compare(self, tree: merkle.Tree, first: str = "") -> None:
        """Compare the tree, which has the next size now. ``first``: how its first leaf beyond the last agreed size is called."""
        size = self._sizes.pop()
        for root, where in self._roots.pop(size):
            if tree.root == root:
                self.verified[where] = self.verified.get(where, 0) + 1
                self.agreed = size
            elif not self._is_forked:
                self._is_forked = True
                self._blame(where, f"the log is not the one that the checkpoint of {size} tells of: changed from {first} on")

    def finish(self, size: int) -> None:
        """The tree has no more than ``size`` leaves: whoever tells of more has seen a log that was cut off."""
        for larger in reversed(self._sizes):
            for _, where in self._roots[larger]:
                self._blame(
                    where, f"missing: a checkpoint tells of {larger} records, the log has {size}: leaf {size} is the first gone"
                )

    def later_than(self, size: int) -> int:
        """Return how many checkpoints tell of more than ``size`` leaves."""
        return sum(len(self._roots[larger]) for larger in self._sizes if larger > size)

    def _blame(self, where: str, what: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(NOBODY, 0, where, what))


@dataclass(slots=True)
class _Walk:
    """Verification of a tree under way."""

    claims: Claims
    tree: merkle.Tree = field(default_factory=merkle.Tree)
    ends: dict[UUID, int] = field(default_factory=dict)
    """Up to where each writer's records were leaves so far."""
    last_h: dict[UUID, bytes] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    """Of the runs: what the tree says its leaves are."""
    missing: dict[int, Problem] = field(default_factory=dict)
    """Leaves whose record is gone."""
    suspects: dict[int, Problem] = field(default_factory=dict)
    """Leaves that are not what the tiles say: records or tiles were changed, and the checkpoints tell which."""
    upper: dict[Tile, bytes] = field(default_factory=dict)
    """The tiles above the leaves, as they must be."""
    first_after: str = ""
    """The first record that no checkpoint has confirmed; empty: the next one."""

    def blame(self, writer: UUID, seq: int, what: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(writer, seq, "seal", what))

    def doubt(self, found: dict[int, Problem], leaf: int, writer: UUID, seq: int) -> None:
        what = "missing: it was sealed" if found is self.missing else "changed since it was sealed"
        if len(found) < MOST_PROBLEMS:
            found[leaf] = Problem(writer, seq, "seal", f"{what} as leaf {leaf}")


async def verify_tree(
    db: Database, verifier: Verifier, pushed: Sequence[str] = (), progress: Progress | None = None
) -> TreeReport:
    """Verify the tree in the database, and the ``pushed`` notes against it. Raises ``Unavailable``, never for what it finds."""
    claims = Claims(verifier)
    claims.add(((text, None) for text in pushed), "pushed")
    walk = _Walk(claims)
    reader = _Reader(db)
    async with db.read(Actor.system()) as tx:
        row, ends, note = await queries.get(tx), await queries.ends(tx), await queries.latest_note(tx)
    size = row.size if row else 0
    if row is not None and row.public_key != verifier.key:
        walk.blame(NOBODY, 0, "changed: the tree's row has another public key")
    while walk.tree.size < size and await _check_page(db, walk, reader, size, progress):
        pass
    _check_ends(walk, ends, size)
    await _check_top(db, walk, size, note.size if note else 0)
    return TreeReport(
        walk.tree.size,
        claims.verified.get("checkpoint", 0),
        claims.verified.get("pushed", 0),
        tuple(_judged(walk, size)),
    )


async def _check_page(db: Database, walk: _Walk, reader: _Reader, size: int, progress: Progress | None) -> bool:
    """Check the next runs; ``False`` where they do not go on as they must."""
    async with db.read(Actor.system()) as tx:
        runs = await queries.runs(tx, walk.tree.size, CHUNK)
        tiles = await _tiles_for(tx, walk.tree.size, runs, size)
        known = await queries.notes(tx, walk.tree.size, _end_of(runs, size))
    walk.claims.add([(note.note, note.size) for note in known], "checkpoint")
    for run in runs:
        if walk.tree.size >= size:
            break  # what follows was sealed while we read
        if run.first_index != walk.tree.size or not await _check_run(walk, reader, run, tiles):
            walk.blame(NOBODY, 0, f"changed: nothing tells rightly what leaf {walk.tree.size} is")
            return False
        if progress is not None:
            progress(run.length)
    if not runs:
        walk.blame(NOBODY, 0, f"missing: nothing tells what leaf {walk.tree.size} is")
    return bool(runs)


def _judged(walk: _Walk, size: int) -> list[Problem]:
    """Say what is wrong, the first wrong record first: records where a checkpoint contradicts them, else the tiles."""
    claims = walk.claims
    claims.finish(walk.tree.size)
    if walk.suspects and claims.agreed < size:
        wrong = walk.suspects | walk.missing
        return [*(wrong[leaf] for leaf in sorted(wrong)), *walk.problems, *claims.problems]
    spoilt = [Problem(NOBODY, 0, "tree", f"a stored hash was changed: {suspect}") for suspect in walk.suspects.values()]
    return [*walk.missing.values(), *walk.problems, *claims.problems, *spoilt]


async def _check_run(walk: _Walk, reader: _Reader, run: Run, tiles: dict[Tile, bytes]) -> bool:
    """Append the leaves of a run as its records are; ``False`` where it cannot be one."""
    expected = walk.ends.get(run.writer_id, 0) + 1
    if run.first_seq != expected or run.length < 1:
        what = f"changed: leaf {run.first_index} is said to be entry {run.first_seq}, and should be {expected}"
        walk.blame(run.writer_id, expected, what)
        return False
    seq, end = run.first_seq, run.first_seq + run.length
    while seq < end:
        until = walk.claims.next_size
        count = min(end - seq, CHUNK if until is None else max(1, until - walk.tree.size))
        rows = await reader.read(run.writer_id, seq, min(count, CHUNK))
        hashes = await _checked(walk, run.writer_id, seq, min(count, CHUNK), rows, tiles)
        walk.upper |= {tile: stored for tile, stored in walk.tree.append(hashes).items() if tile.level}
        seq += len(hashes) // HASH
        while walk.claims.next_size is not None and walk.claims.next_size <= walk.tree.size:
            before = walk.claims.agreed
            walk.claims.compare(walk.tree, walk.first_after)
            if walk.claims.agreed != before:
                walk.first_after = ""
    walk.ends[run.writer_id] = end - 1
    return True


async def _checked(walk: _Walk, writer: UUID, first: int, count: int, rows: list[Digest], tiles: dict[Tile, bytes]) -> bytes:
    """Return the leaves of some records; for one that is missing, what the tree holds, so that those after it can be checked."""
    size = walk.tree.size
    walk.first_after = walk.first_after or f"entry {first} of writer {writer}"
    stored = _stored_leaves(tiles, size, count)
    if [row.seq for row in rows] == list(range(first, first + count)):
        hashes = await leaf_hashes(writer, rows)
        walk.last_h[writer] = rows[-1].h
    else:
        there = {row.seq: row for row in rows}
        parts = []
        for number in range(count):
            row = there.get(first + number)
            if row is None:
                walk.doubt(walk.missing, size + number, writer, first + number)
                parts.append(stored[number * HASH : (number + 1) * HASH].ljust(HASH, b"\0"))
            else:
                parts.append(await leaf_hashes(writer, [row]))
        hashes = b"".join(parts)
    if hashes != stored:
        for number in range(count):
            at = slice(number * HASH, (number + 1) * HASH)
            if hashes[at] != stored[at]:
                walk.doubt(walk.suspects, size + number, writer, first + number)
    return hashes


def _stored_leaves(tiles: dict[Tile, bytes], first: int, count: int) -> bytes:
    """Return the stored hashes of some leaves; zeros where there are none."""
    numbers = range(first // merkle.WIDTH, (first + count - 1) // merkle.WIDTH + 1)
    stored = b"".join(tiles.get(Tile(0, number), b"").ljust(merkle.FULL, b"\0") for number in numbers)
    at = (first - numbers[0] * merkle.WIDTH) * HASH
    return stored[at : at + count * HASH]


async def _tiles_for(tx: AsyncConnection, first: int, runs: Sequence[Run], size: int) -> dict[Tile, bytes]:
    """Read the stored leaves of some runs; a run whose length was changed names no more tiles than there are."""
    return await _tiles(tx, 0, first // merkle.WIDTH, _end_of(runs, size) // merkle.WIDTH)


async def _tiles(tx: AsyncConnection, level: int, first: int = 0, last: int = 2**62) -> dict[Tile, bytes]:
    return {Tile(level, number): hashes for number, hashes in (await queries.tile_range(tx, level, first, last)).items()}


def _end_of(runs: Sequence[Run], size: int) -> int:
    return max(0, min(size, runs[-1].first_index + runs[-1].length)) if runs else size


def _check_ends(walk: _Walk, ends: dict[UUID, tuple[int, bytes]], size: int) -> None:
    """Check what the sealer keeps of where it goes on."""
    for writer, (seq, h) in ends.items():
        end = walk.ends.pop(writer, 0)
        if seq < end or (seq > end and walk.tree.size == size):
            walk.blame(writer, min(seq, end) + 1, f"changed: sealed up to {end}, and said to be up to {seq}")
        elif seq == end and walk.last_h.get(writer, h) != h:
            walk.blame(writer, seq, "changed: what is kept of the last sealed record is another's")
    for writer, end in walk.ends.items():
        walk.blame(writer, end, f"missing: what is kept of its last sealed record, {end}")


async def _check_top(db: Database, walk: _Walk, size: int, signed: int) -> None:
    """Check the tiles above the leaves, and that all of the tree is signed, and no more."""
    if signed != size:
        walk.blame(NOBODY, 0, f"changed: the tree has {size} leaves, its newest checkpoint tells of {signed}")
    async with db.read(Actor.system()) as tx:
        beyond = await queries.notes(tx, walk.tree.size, signed)
        upper: dict[Tile, bytes] = {}
        for level in range(1, len(merkle.edge_of(size)) + 1):
            upper |= await _tiles(tx, level)
    walk.claims.add([(note.note, note.size) for note in beyond], "checkpoint")
    if walk.tree.size != size:
        return
    for tile, hashes in sorted(walk.upper.items()):
        if not upper.get(tile, b"").startswith(hashes) and not walk.suspects:
            walk.blame(NOBODY, 0, f"changed: tile {tile.level}/{tile.number} of the tree")


class _Reader:
    """Reads records by writer, and ahead where runs are short."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._ahead: dict[UUID, tuple[int, list[Digest]]] = {}
        """Up to which number each writer was read, and what of it was not asked for yet."""

    async def read(self, writer: UUID, first: int, count: int) -> list[Digest]:
        """Return those of ``count`` records from ``first`` on that are there."""
        last = first + count - 1
        through, rows = self._ahead.pop(writer, (first - 1, []))
        if through < last:
            upto = max(last, through + AHEAD)
            async with self._db.read(Actor.system()) as tx:
                rows += await queries.digests(tx, writer, through + 1, upto)
            through = upto
        taken = count if len(rows) >= count and rows[count - 1].seq == last else sum(row.seq <= last for row in rows)
        if len(rows) > taken:
            self._ahead[writer] = through, rows[taken:]
        return rows[:taken]

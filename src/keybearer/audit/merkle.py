"""The Merkle tree of RFC 6962 over a growing list, kept in tiles. Pure: bytes in, bytes out.

::

    leaf hash  = SHA-256(00 | leaf)           node hash = SHA-256(01 | left | right)           root of nothing = SHA-256("")

A **tile** holds up to 256 neighbouring hashes of one height, one after the other: tile ``(level, number)`` those of the complete
subtrees of 256^level leaves from ``number * 256`` on. Only the last tile of each level grows; all nodes between the levels are
hashed from a tile when they are asked for. So the tree costs 32.1 bytes a leaf, an append touches one tile a level, and a proof
reads two tiles a level at most: six for 16 million leaves.

Sources: RFC 6962, section 2.1; RFC 9162, section 2.1 (how proofs are checked); C2SP tlog-tiles (the shape of tiles).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

HASH = 32
"""Bytes of a hash."""
_HEIGHT = 8
WIDTH = 1 << _HEIGHT
"""Hashes in a full tile."""
FULL = WIDTH * HASH
"""Bytes of a full tile."""
EMPTY_ROOT = sha256(b"").digest()


class ProofError(ValueError):
    """The proof does not prove it."""


class Tile(NamedTuple):
    """The name of a tile."""

    level: int
    number: int


Span = tuple[int, int]
"""Leaves from the first to the second number, exclusive."""


# --- hashing


def leaf_hash(leaf: bytes) -> bytes:
    """Hash a leaf."""
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash an inner node."""
    return sha256(b"\x01" + left + right).digest()


def root_of(hashes: bytes) -> bytes:
    """Return the root over neighbouring subtrees of one size, of which the last alone may be incomplete."""
    while len(hashes) > HASH:
        whole = len(hashes) - len(hashes) % (2 * HASH)
        parents = [sha256(b"\x01" + hashes[at : at + 2 * HASH]).digest() for at in range(0, whole, 2 * HASH)]
        hashes = b"".join(parents) + hashes[whole:]
    return hashes or EMPTY_ROOT


class Tree:
    """A tree's right edge, to append to: its size and the last tile of each level."""

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        """``edge``: the hashes of the incomplete tile of each level, from the leaves up, as ``edge_of`` names them."""
        self.size = size
        self._edge = list(edge)
        if [len(tile) // HASH for tile in self._edge] != [tile_width(tile, size) for tile in edge_of(size)]:
            raise ValueError("the edge does not fit the size")

    def append(self, hashes: bytes) -> dict[Tile, bytes]:
        """Append leaves by their hashes; return every tile that is new or longer now."""
        written: dict[Tile, bytes] = {}
        self.size += len(hashes) // HASH
        level, below = 0, self.size
        while hashes:
            if level == len(self._edge):
                self._edge.append(b"")
            number = (below * HASH - len(hashes) - len(self._edge[level])) // FULL
            hashes = self._edge[level] + hashes
            roots = []
            for at in range(0, len(hashes), FULL):
                tile = hashes[at : at + FULL]
                written[Tile(level, number)] = tile
                number += 1
                if len(tile) == FULL:
                    roots.append(root_of(tile))
            self._edge[level] = hashes[len(roots) * FULL :]
            hashes, level, below = b"".join(roots), level + 1, below // WIDTH
        return written

    @property
    def root(self) -> bytes:
        """The root over all leaves."""
        carried = b""
        for tile in self._edge:
            hashes = tile + carried
            carried = root_of(hashes) if hashes else b""
        return carried or EMPTY_ROOT


def edge_of(size: int) -> list[Tile]:
    """Name the last tile of each level of a tree: those to append to. One that would be empty is not stored."""
    edge: list[Tile] = []
    while size:
        edge.append(Tile(len(edge), size // WIDTH))
        size //= WIDTH
    return edge


def tile_width(tile: Tile, size: int) -> int:
    """Return how many hashes ``tile`` has in a tree of ``size`` leaves."""
    return max(0, min(WIDTH, (size >> (_HEIGHT * tile.level)) - tile.number * WIDTH))


# --- proofs: which subtrees, from which tiles


def inclusion(index: int, size: int) -> list[Span]:
    """Return the subtrees whose roots prove that leaf ``index`` is in the tree of ``size`` leaves (RFC 6962, 2.1.1)."""
    if not 0 <= index < size:
        raise ValueError("no such leaf")
    first, last = 0, size
    path: list[Span] = []
    while last - first > 1:
        middle = first + _split(last - first)
        if index < middle:
            path.append((middle, last))
            last = middle
        else:
            path.append((first, middle))
            first = middle
    return path[::-1]


def consistency(old: int, new: int) -> list[Span]:
    """Return the subtrees whose roots prove that the tree of ``old`` leaves is the beginning of that of ``new`` (2.1.2)."""
    if not 0 < old <= new:
        raise ValueError("no such sizes")
    first, last = 0, new
    path: list[Span] = []
    while last != old:
        middle = first + _split(last - first)
        if old <= middle:
            path.append((middle, last))
            last = middle
        else:
            path.append((first, middle))
            first = middle
    if first:  # the old tree is no subtree of the new one: it begins to be proved from here
        path.append((first, last))
    return path[::-1]


def tiles_of(spans: Iterable[Span]) -> set[Tile]:
    """Name the tiles that ``hashes_of`` these subtrees needs."""
    return {_place(first, size)[0] for span in spans for first, size in _complete(*span)}


def hashes_of(spans: Iterable[Span], tiles: Mapping[Tile, bytes]) -> list[bytes]:
    """Return the root of each subtree, from tiles of a tree that is not smaller. Raises ``ProofError`` if one is too short."""
    return [_root_of_span(span, tiles) for span in spans]


def _root_of_span(span: Span, tiles: Mapping[Tile, bytes]) -> bytes:
    parts = []
    for first, size in _complete(*span):
        tile, at, count = _place(first, size)
        hashes = tiles.get(tile, b"")[at * HASH : (at + count) * HASH]
        if len(hashes) != count * HASH:
            raise ProofError(f"tile {tile.level}/{tile.number} is missing or too short")
        parts.append(root_of(hashes))
    root = parts.pop()
    while parts:
        root = node_hash(parts.pop(), root)
    return root


def _complete(first: int, last: int) -> list[tuple[int, int]]:
    """Return the complete subtrees that make up a span, as first leaf and size: the larger on the left."""
    found = []
    while first < last:
        size = 1 << ((last - first).bit_length() - 1)
        found.append((first, size))
        first += size
    return found


def _place(first: int, size: int) -> tuple[Tile, int, int]:
    """Return where a complete subtree is hashed from: a tile, the first of its hashes in it, and how many."""
    level, rest = divmod(size.bit_length() - 1, _HEIGHT)
    number, at = divmod(first >> (_HEIGHT * level), WIDTH)
    return Tile(level, number), at, 1 << rest


def _split(size: int) -> int:
    """Return the largest power of two below ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


# --- proofs: checking


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise ``ProofError`` unless ``proof`` shows that the leaf with hash ``leaf`` has this index under ``root`` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        raise ProofError("no such leaf")
    place, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the proof is too long")
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    if last != 0 or found != root:
        raise ProofError("the record is not in the tree")


def check_consistency(old: tuple[int, bytes], new: tuple[int, bytes], proof: Sequence[bytes]) -> None:
    """Raise ``ProofError`` unless ``proof`` shows that the old tree, by size and root, is the beginning of the new one (2.1.4.2)."""
    (old_size, old_root), (new_size, new_root) = old, new
    if not 0 < old_size <= new_size:
        raise ProofError("no such sizes")
    if old_size == new_size:
        if proof or old_root != new_root:
            raise ProofError("the trees differ")
        return
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise ProofError("the proof is too short")
    if _replayed(old_size - 1, new_size - 1, path) != (old_root, new_root):
        raise ProofError("the old tree is not the beginning of the new one")


def _replayed(place: int, last: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the roots of the old and the new tree that a consistency proof leads to."""
    while place & 1:
        place, last = place >> 1, last >> 1
    before = after = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError("the proof is too long")
        if place & 1 or place == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            after = node_hash(after, sibling)
        place, last = place >> 1, last >> 1
    if last != 0:
        raise ProofError("the proof is too short")
    return before, after

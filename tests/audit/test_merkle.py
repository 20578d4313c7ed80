"""The tree against RFC 6962's own definition, written down anew here, and against published roots."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybearer.audit import merkle
from keybearer.audit.merkle import ProofError, Tile, Tree

# The inputs and roots that the reference implementation of Certificate Transparency publishes as its test data.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


# --- RFC 6962, section 2.1, word for word and as slow as it stands there


def mth(leaves: list[bytes]) -> bytes:
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = power_below(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = power_below(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:  # noqa: FBT001  # as the RFC has it
    n = len(leaves)
    if m == n:
        return [] if whole else [mth(leaves)]
    k = power_below(n)
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def leaves_of(count: int) -> list[bytes]:
    return [b"leaf %d" % number for number in range(count)]


def grown(leaves: list[bytes], steps: list[int]) -> tuple[Tree, dict[Tile, bytes]]:
    """A tree grown in steps, and all its tiles; each step goes on from what was stored."""
    tiles: dict[Tile, bytes] = {}
    tree = Tree()
    at = 0
    for step in [*steps, len(leaves)]:
        part, at = leaves[at : at + step], min(len(leaves), at + step)
        tree = Tree(tree.size, [tiles.get(tile, b"") for tile in merkle.edge_of(tree.size)])
        tiles |= tree.append(b"".join(merkle.leaf_hash(leaf) for leaf in part))
    return tree, tiles


def test_the_published_roots() -> None:
    leaves = [bytes.fromhex(text) for text in INPUTS]
    for size, root in enumerate(ROOTS):
        assert mth(leaves[:size]).hex() == root
        assert grown(leaves[:size], [1] * size)[0].root.hex() == root


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 255, 256, 257, 511, 512, 65535, 65536, 65537, 70000])
def test_a_tree_is_the_same_however_it_grew(size: int) -> None:
    leaves = leaves_of(size)
    root = mth(leaves)
    for steps in ([], [1, 2, 253, 1, 255, 256], [300] * (size // 300)):
        tree, tiles = grown(leaves, steps)
        assert (tree.size, tree.root) == (size, root)
        widths = {tile: len(hashes) // merkle.HASH for tile, hashes in tiles.items()}
        assert widths == {tile: merkle.tile_width(tile, size) for tile in widths}
        assert sum(width for tile, width in widths.items() if tile.level == 0) == size


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 1500), st.data())
def test_proofs_are_those_of_the_rfc_and_prove(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    _, tiles = grown(leaves, data.draw(st.lists(st.integers(1, 400), max_size=4)))
    old = data.draw(st.integers(1, size))
    index = data.draw(st.integers(0, old - 1))
    spans = merkle.inclusion(index, old)
    some = {tile: tiles[tile] for tile in merkle.tiles_of(spans)}
    proof = merkle.hashes_of(spans, some)
    assert proof == path(index, leaves[:old])
    assert len(some) <= 6
    merkle.check_inclusion(merkle.leaf_hash(leaves[index]), index, old, proof, mth(leaves[:old]))
    between = merkle.consistency(old, size)
    some = {tile: tiles[tile] for tile in merkle.tiles_of(between)}
    proof = merkle.hashes_of(between, some)
    assert proof == subproof(old, leaves, True)
    merkle.check_consistency((old, mth(leaves[:old])), (size, mth(leaves)), proof)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13])
def test_whatever_else_is_no_proof(size: int) -> None:
    leaves = leaves_of(size)
    root = mth(leaves)
    for index in range(size):
        leaf, proof = merkle.leaf_hash(leaves[index]), path(index, leaves)
        wrong = [[*proof, root], proof[:-1], [root, *proof], *([*proof[:at], root, *proof[at + 1 :]] for at in range(len(proof)))]
        for other in wrong:
            if other != proof:
                with pytest.raises(ProofError):
                    merkle.check_inclusion(leaf, index, size, other, root)
        for place in {-1, index + 1, size, size + 1}:
            with pytest.raises(ProofError):
                merkle.check_inclusion(leaf, place, size, proof, root)
        with pytest.raises(ProofError):
            merkle.check_inclusion(merkle.leaf_hash(b"another"), index, size, proof, root)
        with pytest.raises(ProofError):
            merkle.check_inclusion(leaf, index, size, proof, bytes(32))


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13])
def test_a_fork_has_no_consistency_proof(size: int) -> None:
    leaves = leaves_of(size)
    forked = [b"another", *leaves[1:]]
    for old in range(1, size + 1):
        proof = subproof(old, leaves, True)
        merkle.check_consistency((old, mth(leaves[:old])), (size, mth(leaves)), proof)
        for before, after, given_proof in (
            ((old, mth(forked[:old])), (size, mth(leaves)), proof),
            ((old, mth(leaves[:old])), (size, mth(forked)), proof),
            ((old, mth(leaves[:old])), (size, mth(forked)), subproof(old, forked, True)),
            ((old, mth(leaves[:old])), (size, mth(leaves)), [*proof, bytes(32)]),
            ((0, mth([])), (size, mth(leaves)), []),
            ((size + 1, mth(leaves)), (size, mth(leaves)), proof),
        ):
            with pytest.raises(ProofError):
                merkle.check_consistency(before, after, given_proof)
        if proof:
            with pytest.raises(ProofError):
                merkle.check_consistency((old, mth(leaves[:old])), (size, mth(leaves)), proof[:-1])


def test_what_cannot_be_proved_is_not_asked_for() -> None:
    for index, size in ((0, 0), (1, 1), (-1, 3)):
        with pytest.raises(ValueError, match="no such leaf"):
            merkle.inclusion(index, size)
    for old, new in ((0, 1), (2, 1), (-1, 1)):
        with pytest.raises(ValueError, match="no such sizes"):
            merkle.consistency(old, new)
    with pytest.raises(ProofError, match="too short"):
        merkle.hashes_of([(0, 4)], {Tile(0, 0): bytes(3 * 32)})
    with pytest.raises(ValueError, match="does not fit"):
        Tree(3, [bytes(32)])

"""`keybearer run` masks the token wherever it falls in a child's output."""

from __future__ import annotations

import io
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from keybearer.cli.run import MASK, mask_stream

TOKEN = b"kb_kbtestmasked_0123456789abcdefghijklmnopqrstuv"


class Slow(io.RawIOBase):
    """A stream that gives what it has in given pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = list(pieces)

    def read1(self, _: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


@given(before=st.binary(max_size=60), after=st.binary(max_size=60), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_no_cut_lets_the_token_through(before: bytes, after: bytes, cuts: list[int]) -> None:
    text = before + TOKEN + after + TOKEN
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(bounds)]
    sink = io.BytesIO()
    mask_stream(Slow(pieces), sink, TOKEN)  # type: ignore[arg-type]
    assert sink.getvalue() == before + MASK + after + MASK

"""Keys are masked in what providers say, wherever the chunks are cut."""

from __future__ import annotations

import time
from itertools import pairwise
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybearer.domain import SecretBytes
from keybearer.gateway.scrubber import Scrubber

KEY = b"sk-kbtest/a+b=aaaab"


def scrub(*pieces: bytes, key: bytes = KEY) -> bytes:
    scrubber = Scrubber(SecretBytes(key))
    return b"".join(scrubber.feed(piece) for piece in pieces) + scrubber.finish()


def test_the_length_stays() -> None:
    assert scrub(b'{"error": "bad key ' + KEY + b'!"}') == b'{"error": "bad key ' + b"*" * len(KEY) + b'!"}'


@pytest.mark.parametrize("form", [KEY, quote(KEY, safe="").encode(), KEY.replace(b"/", b"\\/")])
def test_written_forms(form: bytes) -> None:
    assert scrub(b"x" + form + b"y" + form) == b"x" + b"*" * len(form) + b"y" + b"*" * len(form)


def test_a_key_that_json_escapes() -> None:
    assert b"kbtest" not in scrub(b'{"error": "bad key kbtest\\"\\\\x"}', key=b'kbtest"\\x')


def test_a_text_without_the_key_is_passed_on_at_once() -> None:
    scrubber = Scrubber(SecretBytes(KEY))
    assert scrubber.feed(b"nothing to see") == b"nothing to see"
    assert scrubber.finish() == b""


def test_only_what_may_begin_the_key_is_held_back() -> None:
    scrubber = Scrubber(SecretBytes(KEY))
    assert scrubber.feed(b"your key sk-kb") == b"your key "
    assert scrubber.feed(b"oard") == b"sk-kboard"
    assert scrubber.feed(b"s") == b""
    assert scrubber.finish() == b"s"


def test_what_is_too_short_to_be_a_secret_shreds_no_text() -> None:
    assert scrub(b"abcabc", key=b"a") == b"abcabc"
    assert scrub(b"abc", key=b"") == b"abc"


def test_a_long_key_that_repeats_itself_takes_no_squared_time() -> None:
    """A key has up to 64 kB, and a provider of its owner's answers what it likes: half a second a piece, with nobody else served."""
    key = b"a" * 60_000 + b"b"
    began = time.thread_time()
    assert scrub(*[b"a" * 59_999 + b"c"] * 20, key=key) == (b"a" * 59_999 + b"c") * 20
    assert time.thread_time() - began < 2
    assert b"b" not in scrub(key[:40_000], key[40_000:], b"c", key=key)


def test_it_does_not_show_the_key() -> None:
    assert "kbtest" not in repr(Scrubber(SecretBytes(KEY)))


ALPHABET = st.sampled_from([KEY, KEY[:5], KEY[5:], KEY[:-1], KEY[1:], b"a", b"sk-", b"/", b"\\/", b"%2F", b"words "])


@settings(deadline=None)  # the machine may be busy
@given(st.lists(ALPHABET, max_size=8).map(b"".join), st.lists(st.integers(0, 200), max_size=8))
def test_no_cut_lets_the_key_through_or_changes_the_rest(text: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    scrubber, out = Scrubber(SecretBytes(KEY)), b""
    for start, end in pairwise(edges):
        out += scrubber.feed(text[start:end])
        assert len(scrubber._held) < 2 * len(KEY)
    out += scrubber.finish()
    assert KEY not in out
    assert len(out) == len(text)
    assert all(new in (old, ord("*")) for old, new in zip(text, out, strict=True))
    if KEY not in text and b"\\/" not in text:
        assert out == text

"""What an access token looks like, to the character."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybearer.access.tokens import checksum, generate, parse
from keybearer.errors import TokenInvalid

# Frozen: secret scanners rely on it.
FROZEN = "kb_AAAAAAAAAAAA_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"


def reference_checksum(body: str) -> str:
    """CRC-32 (IEEE 802.3, reflected, 0xEDB88320), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in body.encode():
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    number = crc ^ 0xFFFFFFFF
    alphabet = string.digits + string.ascii_uppercase + string.ascii_lowercase
    digits = []
    while number:
        number, digit = divmod(number, 62)
        digits.append(alphabet[digit])
    return "".join(reversed(digits)).rjust(6, "0")


def test_a_token_has_its_form_and_its_checksum() -> None:
    token = generate()
    assert re.fullmatch(r"kb_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}", token)
    assert token[-6:] == reference_checksum(token[:-6])
    assert parse(token.encode()) == token[3:15]
    assert len({generate() for _ in range(100)}) == 100


@given(st.text(alphabet=string.printable, max_size=80))
def test_the_checksum_is_the_standard_one_in_base62(body: str) -> None:
    assert checksum(body.encode()) == reference_checksum(body)


def test_the_checksum_is_frozen() -> None:
    assert checksum(FROZEN.encode()) == reference_checksum(FROZEN) == "4HrdYX"


@given(position=st.integers(0, 53), character=st.sampled_from(string.ascii_letters + string.digits + "_- "))
def test_one_mistyped_character_is_noticed(position: int, character: str) -> None:
    token = FROZEN + checksum(FROZEN.encode())
    typed = token[:position] + character + token[position + 1 :]
    if typed == token:
        assert parse(typed.encode()) == "AAAAAAAAAAAA"
        return
    with pytest.raises(TokenInvalid):
        parse(typed.encode())


@given(st.binary(max_size=200))
def test_anything_else_is_refused_and_nothing_but_that(junk: bytes) -> None:
    with pytest.raises(TokenInvalid):
        parse(junk)

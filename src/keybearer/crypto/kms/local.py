"""Wrapping by a key that this process holds: from a file, from the environment, or derived from a passphrase.

The wrapped root key is an envelope (purpose ``root-key``, the AAD as hex in the field ``field``, all ids nil) whose key id is
computed from the wrapping key: so a wrong key is told apart from damaged bytes, by name.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from itertools import pairwise
from uuid import UUID

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keybearer.crypto.envelope import KEY_BYTES, Context, key_id_of, open_sealed, seal
from keybearer.crypto.kms.wrapped import damaged
from keybearer.domain import SecretBytes
from keybearer.errors import EnvelopeError, RootKeyError

_NIL = UUID(int=0)
_LEAST_DISTINCT_BYTES = 20
"""32 random bytes have 30 distinct ones on average; fewer than 20 in less than one of 10⁹ keys."""
_HOW_TO_MAKE = "Make one with: openssl rand -base64 32"


class LocalWrapper:
    """A ``Wrapper`` around a wrapping key of 32 bytes."""

    def __init__(self, provider: str, reference: str, key: SecretBytes) -> None:
        self.provider = provider
        self.reference = reference
        self._key = key
        self.key_id = _key_id(key)
        """Computed from the key and one-way; its first digits name the key to people."""

    def __repr__(self) -> str:
        return f"<wrapping key {short(self.key_id)} from {self.provider} {self.reference}>"

    async def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Wrap ``key``, bound to ``aad``."""
        return seal(self._key.reveal(), self.key_id, _context(aad), key)

    async def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """Unwrap; raises ``RootKeyError``: another key wrapped it, or the bytes are damaged or of another deployment."""
        try:
            wrapped_by = key_id_of(wrapped)
            if wrapped_by == self.key_id:
                return open_sealed(self._key.reveal(), _context(aad), wrapped)
        except EnvelopeError:
            raise damaged() from None
        raise RootKeyError(
            f"Wrong root key: the database was set up with key {short(wrapped_by)}, "
            f"but {self.provider} {self.reference} holds key {short(self.key_id)}."
        )


def parse_key(text: str, source: str) -> SecretBytes:
    """32 bytes from base64, base64url (padded or not) or hex; white space around them is ignored.

    ``source`` names where the text came from. Raises ``RootKeyError`` for anything else and for what nobody drew at random;
    the message never holds any of it.
    """
    text = text.strip(" \t\r\n")
    if not text:
        raise RootKeyError(f"{source} is empty.", hint=_HOW_TO_MAKE)
    key = _decode(text)
    if key is None:
        problem = f"{source} is not 32 bytes as base64, base64url or hex."
    elif _is_weak(text, key):
        problem = f"{source} is too weak: it was typed or counted, not drawn at random."
    else:
        return SecretBytes(key)
    del text, key  # a traceback that shows local variables shows neither
    raise RootKeyError(problem, hint=_HOW_TO_MAKE)


def encode_key(key: SecretBytes) -> str:
    """Write a key as the text that ``parse_key`` reads: base64, 44 characters."""
    return b64encode(key.reveal()).decode("ascii")


def short(key_id: UUID) -> str:
    """How a key is named to people: the first 8 hex digits of its id."""
    return key_id.hex[:8]


def _decode(text: str) -> bytes | None:
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text, re.ASCII):
        return bytes.fromhex(text)
    unpadded = text[:-1] if len(text) == 44 and text.endswith("=") else text  # noqa: PLR2004  # 32 bytes in base64
    padded = unpadded + "="
    for alphabet, decode, encode in (
        (r"[A-Za-z0-9+/]{43}", b64decode, b64encode),
        (r"[A-Za-z0-9_-]{43}", urlsafe_b64decode, urlsafe_b64encode),
    ):
        if re.fullmatch(alphabet, unpadded, re.ASCII):
            try:
                key = decode(padded)
            except Base64Error:
                return None
            # Two spare bits: another last character would decode to the same key, so it is a typing error.
            return key if encode(key) == padded.encode("ascii") else None
    return None


def _is_weak(text: str, key: bytes) -> bool:
    """Tell typed or counted keys: few distinct bytes, a row, text, base64 or hex of one case. Random ones: one in 10⁹."""
    steps = {(after - before) % 256 for before, after in pairwise(key)}
    is_text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in key)  # noqa: PLR2004  # printable ASCII
    is_typed = text.isdigit() if len(text) == 2 * KEY_BYTES else text in (text.lower(), text.upper())
    return len(set(key)) < _LEAST_DISTINCT_BYTES or len(steps) < 2 or is_text or is_typed  # noqa: PLR2004


def _key_id(key: SecretBytes) -> UUID:
    return UUID(bytes=HKDF(hashes.SHA512(), 16, None, b"keybearer/v1/wrapping-key-id").derive(key.reveal()))


def _context(aad: bytes) -> Context:
    return Context("root-key", _NIL, _NIL, _NIL, 0, aad.hex())

"""Envelope v1: one sealed value, bound to its context and committed to its key. Pure: bytes in, bytes out.

::

    envelope = "KB" 2 | format 1 | suite 1 | key id 16 | salt 32 | commitment 32 | ciphertext n | tag 16
    header   = the first 20 bytes; format is 1, suite is 1
    context  = purpose, deployment, owner id, record id, version, field, egress digest, fetchable: in this order, each as
               its length (u32, big-endian) and its bytes; text is UTF-8, ids are raw (16 bytes), the version is u64
               big-endian (8 bytes), the egress digest is raw (32 bytes), fetchable is one byte, 01 or 00
    egress digest = SHA-256("keybearer/v1/egress" | each origin as u32 big-endian length and ASCII bytes), where the origins
               are distinct, in ascending byte order, and canonical: ``scheme://host:port`` in lower case, the port always there
    okm      = HKDF-SHA512(key, salt, info = "keybearer/v1/seal" | header | SHA-256(context)), 76 bytes
             = AES-256 key 32 | commitment 32 | nonce 12
    AAD      = header | salt | commitment | SHA-256(context)
    ciphertext, tag = AES-256-GCM(AES key, nonce, plaintext, AAD)

Key and nonce come from a fresh 256-bit salt, so neither repeats however much is sealed. GCM alone lets one ciphertext open
under two keys; the commitment, a second output of the same HKDF, does not (see Albertini et al., "How to Abuse and Fix
Authenticated Encryption Without Key Commitment", 2020). HKDF is RFC 5869, GCM NIST SP 800-38D.

``tests/crypto/vectors`` freezes the format, invalid cases included. A change is a new format or suite number.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import lru_cache
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keybearer.errors import EnvelopeError

KEY_BYTES = 32
OVERHEAD = 2 + 1 + 1 + 16 + 32 + 32 + 16
"""An envelope is this many bytes longer than its plaintext."""

_MAGIC = b"KB\x01\x01"
_INFO = b"keybearer/v1/seal"
_HEADER_END = 20
_SALT_END = 52
_COMMITMENT_END = 84
_OKM_BYTES = 76
_MAX_VERSION = 2**63 - 1
"""What a database's signed 64-bit column holds."""
_MAX_PORT = 65535
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]):([1-9][0-9]{0,4})", re.ASCII)
_IDS_AND_VERSION = struct.Struct(">I16sI16sI16sIQ")
_EGRESS_AND_FETCHABLE = struct.Struct(">I32sI?")
# Made once: pyca builds these per call otherwise, a quarter of the time of an opening.
_SHA256 = hashes.SHA256()
_SHA512 = hashes.SHA512()


@dataclass(frozen=True, slots=True)
class Context:
    """Where an envelope belongs. It opens with exactly the context it was sealed with; none of this is stored in it.

    ``version`` is 0 to 2⁶³-1; ``egress`` are canonical origins in any order. Raises ``ValueError`` for values that cannot be
    encoded: here, and so never in a frame that holds a key.
    """

    purpose: str
    """What kind of thing is sealed: ``secret``, ``owner-key``, …"""
    deployment: UUID
    owner: UUID
    record: UUID
    version: int
    field: str
    egress: tuple[str, ...] = ()
    fetchable: bool = False
    digest: bytes = dataclass_field(init=False, repr=False, compare=False)
    """SHA-256 of the encoded context."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _sha256(self.encode()))

    def encode(self) -> bytes:
        """Return the bytes of the context, as the module's docstring lays them out."""
        if not 0 <= self.version <= _MAX_VERSION:
            raise ValueError("version is out of range")
        purpose = self.purpose.encode()
        field_name = self.field.encode()
        return b"".join(
            (
                len(purpose).to_bytes(4, "big"),
                purpose,
                _IDS_AND_VERSION.pack(16, self.deployment.bytes, 16, self.owner.bytes, 16, self.record.bytes, 8, self.version),
                len(field_name).to_bytes(4, "big"),
                field_name,
                _EGRESS_AND_FETCHABLE.pack(32, egress_digest(self.egress), 1, self.fetchable),
            )
        )


@lru_cache(maxsize=1024)
def egress_digest(egress: tuple[str, ...]) -> bytes:
    """32 bytes over the set of origins a secret may be sent to; order and repetition do not matter.

    Raises ``ValueError`` for an origin that is not canonical: two spellings of one host must not be two sets.
    """
    for origin in egress:
        found = _ORIGIN.fullmatch(origin)
        if found is None or int(found[1]) > _MAX_PORT:
            raise ValueError(f"not a canonical origin (scheme://host:port): {origin[:100]!r}")
    return _sha256(b"keybearer/v1/egress" + b"".join(_prefixed(sorted(origin.encode("ascii") for origin in set(egress)))))


def seal(key: bytes, key_id: UUID, context: Context, plaintext: bytes) -> bytes:
    """Seal ``plaintext`` under ``key`` (32 bytes), known as ``key_id``, for ``context``. Draws the salt itself."""
    if len(key) != KEY_BYTES:
        del key, plaintext  # a traceback that shows local variables shows neither
        raise ValueError("a key is 32 bytes")
    header = _MAGIC + key_id.bytes
    salt = os.urandom(32)
    okm = _derive(key, header, salt, context.digest)
    front = header + salt + okm[32:64]
    return front + AESGCM(okm[:32]).encrypt(okm[64:], plaintext, front + context.digest)


def open_sealed(key: bytes, context: Context, envelope: bytes) -> bytes:
    """Return the plaintext of ``envelope``.

    Raises ``EnvelopeError``, always the same one, whatever is wrong with envelope, key or context.
    """
    plaintext = _open(key, context.digest, envelope)
    if plaintext is None:
        del key  # a traceback that shows local variables does not show it
        raise EnvelopeError
    return plaintext


def key_id_of(envelope: bytes) -> UUID:
    """Return the id of the key that opens ``envelope``. Raises ``EnvelopeError`` if its format or suite is unknown."""
    if not _is_known(envelope):
        raise EnvelopeError
    return UUID(bytes=envelope[4:_HEADER_END])


def _open(key: bytes, digest: bytes, envelope: bytes) -> bytes | None:
    """``None`` instead of an exception: no frame with key material in it ends up in a traceback."""
    if len(key) != KEY_BYTES or not _is_known(envelope):
        return None
    okm = _derive(key, envelope[:_HEADER_END], envelope[_HEADER_END:_SALT_END], digest)
    if not bytes_eq(okm[32:64], envelope[_SALT_END:_COMMITMENT_END]):
        return None
    try:
        return AESGCM(okm[:32]).decrypt(okm[64:], envelope[_COMMITMENT_END:], envelope[:_COMMITMENT_END] + digest)
    except InvalidTag:
        return None


def _derive(key: bytes, header: bytes, salt: bytes, digest: bytes) -> bytes:
    return HKDF(_SHA512, _OKM_BYTES, salt, _INFO + header + digest).derive(key)


def _is_known(envelope: bytes) -> bool:
    return len(envelope) >= OVERHEAD and envelope[:4] == _MAGIC


def _sha256(data: bytes) -> bytes:
    state = hashes.Hash(_SHA256)
    state.update(data)
    return state.finalize()


def _prefixed(parts: Iterable[bytes]) -> Iterable[bytes]:
    for part in parts:
        yield len(part).to_bytes(4, "big")
        yield part

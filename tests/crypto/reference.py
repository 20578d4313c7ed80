"""Envelope v1 written a second time, from the design's text alone: it shares no code with ``keybearer.crypto``.

HKDF comes from the standard library's HMAC here, GHASH is computed by hand, and ``seal`` takes the salt, so that vectors are
fixed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def u32(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def hkdf_sha512(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869: extract, then expand."""
    prk = hmac.new(salt or bytes(64), key, hashlib.sha512).digest()
    okm, block, counter = b"", b"", 1
    while len(okm) < length:
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha512).digest()
        okm += block
        counter += 1
    return okm[:length]


def egress_digest(origins: list[str]) -> bytes:
    unique = sorted({origin.encode("ascii") for origin in origins})
    return hashlib.sha256(b"keybearer/v1/egress" + b"".join(map(u32, unique))).digest()


def encode_context(context: Mapping[str, Any]) -> bytes:
    return b"".join(
        (
            u32(context["purpose"].encode("utf-8")),
            u32(UUID(context["deployment"]).bytes),
            u32(UUID(context["owner"]).bytes),
            u32(UUID(context["record"]).bytes),
            u32(context["version"].to_bytes(8, "big")),
            u32(context["field"].encode("utf-8")),
            u32(egress_digest(context["egress"])),
            u32(b"\x01" if context["fetchable"] else b"\x00"),
        )
    )


def header(key_id: str, form: int = 1, suite: int = 1) -> bytes:
    return b"KB" + bytes([form, suite]) + UUID(key_id).bytes


def derive(key: bytes, head: bytes, salt: bytes, context_hash: bytes) -> tuple[bytes, bytes, bytes]:
    okm = hkdf_sha512(key, salt, b"keybearer/v1/seal" + head + context_hash, 76)
    return okm[:32], okm[32:64], okm[64:76]


def seal(key: bytes, key_id: str, context: Mapping[str, Any], plaintext: bytes, salt: bytes) -> bytes:
    head = header(key_id)
    return seal_under(key, head, context, plaintext, salt)


def seal_under(key: bytes, head: bytes, context: Mapping[str, Any], plaintext: bytes, salt: bytes) -> bytes:
    context_hash = hashlib.sha256(encode_context(context)).digest()
    aes_key, commitment, nonce = derive(key, head, salt, context_hash)
    aad = head + salt + commitment + context_hash
    return head + salt + commitment + AESGCM(aes_key).encrypt(nonce, plaintext, aad)


def open_without_commitment(key: bytes, context: Mapping[str, Any], envelope: bytes) -> bytes:
    """What an implementation would do that forgot the commitment. Raises ``InvalidTag``."""
    context_hash = hashlib.sha256(encode_context(context)).digest()
    aes_key, _, nonce = derive(key, envelope[:20], envelope[20:52], context_hash)
    return AESGCM(aes_key).decrypt(nonce, envelope[84:], envelope[:84] + context_hash)


def two_key_envelope(keys: tuple[bytes, bytes], key_id: str, context: Mapping[str, Any], salt: bytes) -> bytes:
    """An envelope, committed to the first key, whose ciphertext and tag GCM accepts under both.

    The tag is linear in the ciphertext's blocks: two blocks are given, the second is chosen so that both tags are the same.
    """
    head = header(key_id)
    context_hash = hashlib.sha256(encode_context(context)).digest()
    derived = [derive(key, head, salt, context_hash) for key in keys]
    aad = head + salt + derived[0][1] + context_hash
    first = hashlib.sha256(b"first ciphertext block").digest()[:16]
    hash_keys = [int.from_bytes(_aes(aes_key, bytes(16)), "big") for aes_key, _, _ in derived]
    masks = [int.from_bytes(_aes(aes_key, nonce + b"\x00\x00\x00\x01"), "big") for aes_key, _, nonce in derived]
    partial = [_ghash(hash_key, aad, first + bytes(16)) ^ mask for hash_key, mask in zip(hash_keys, masks, strict=True)]
    squares = [_multiply(hash_key, hash_key) for hash_key in hash_keys]
    second = _multiply(partial[0] ^ partial[1], _inverse(squares[0] ^ squares[1])).to_bytes(16, "big")
    tag = (_ghash(hash_keys[0], aad, first + second) ^ masks[0]).to_bytes(16, "big")
    return head + salt + derived[0][1] + first + second + tag


def _aes(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(block)


def _multiply(left: int, right: int) -> int:
    """In GF(2^128) as GCM writes it: the most significant bit is the coefficient of x^0 (NIST SP 800-38D, 6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (0xE1 << 120 if right & 1 else 0)
    return product


def _inverse(value: int) -> int:
    """By Fermat: value^(2^128 - 2)."""
    result, power = 1 << 127, value
    for _ in range(127):
        power = _multiply(power, power)
        result = _multiply(result, power)
    return result


def _ghash(hash_key: int, aad: bytes, ciphertext: bytes) -> int:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 16)

    lengths = (8 * len(aad)).to_bytes(8, "big") + (8 * len(ciphertext)).to_bytes(8, "big")
    data, state = padded(aad) + padded(ciphertext) + lengths, 0
    for start in range(0, len(data), 16):
        state = _multiply(state ^ int.from_bytes(data[start : start + 16], "big"), hash_key)
    return state


def wrap(key: bytes, aad: bytes, root_key: bytes, salt: bytes) -> bytes:
    """A root key as a wrapping key of file or environment wraps it."""
    nil = str(UUID(int=0))
    context = {
        "purpose": "root-key",
        "deployment": nil,
        "owner": nil,
        "record": nil,
        "version": 0,
        "field": aad.hex(),
        "egress": [],
        "fetchable": False,
    }
    return seal(key, wrapping_key_id(key), context, root_key, salt)


def wrapping_key_id(key: bytes) -> str:
    return str(UUID(bytes=hkdf_sha512(key, b"", b"keybearer/v1/wrapping-key-id", 16)))


def encode_row(table: str, fields: list[list[Any]]) -> bytes:
    """Fields as pairs of tag and value, as the vectors' JSON has them."""
    return b"keybearer/v1/row-mac" + b"s" + u32(table.encode()) + b"".join(_row_field(tag, value) for tag, value in fields)


def _row_field(tag: str, value: Any) -> bytes:
    encode: dict[str, Callable[[], bytes]] = {
        "n": lambda: b"",
        "s": lambda: bytes(value, "utf-8"),
        "y": lambda: bytes.fromhex(value),
        "i": lambda: bytes(str(value), "ascii"),
        "b": lambda: b"\x01" if value else b"\x00",
        "u": lambda: UUID(value).bytes,
        "t": lambda: bytes(value, "ascii"),
        "l": lambda: b"".join(b"s" + u32(item.encode("utf-8")) for item in value),
    }
    return tag.encode("ascii") + u32(encode[tag]())

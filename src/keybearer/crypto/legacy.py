"""Readers of the formats in which other programs keep keys encrypted; nothing is ever written in them. Pure: text in, bytes out.

Fernet       the token format of that specification (AES-128-CBC, HMAC-SHA256), under one of the keys given
AesGcm       AES-256-GCM under a key that PBKDF2 (RFC 8018) derives from a passphrase; IV (128 bits mostly), tag and ciphertext lie
             beside each other in an order that is given, as a JSON object, as separated parts, or joined
UserFernet   Fernet under a key that PBKDF2 derives for each user: the user's id is a part of the salt

Derived keys are remembered for one import, and what deriving them costs is counted: who imports must not be able to keep a server
busy for hours. One opaque error for everything that does not open.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

from cryptography import fernet
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from keybearer.domain import SecretBytes
from keybearer.errors import Invalid, TooLarge

Encoding = Literal["base64", "hex", "utf8"]
Digest = Literal["sha256", "sha512", "sha1"]
Part = Literal["salt", "iv", "tag", "ciphertext"]

MOST_ITERATIONS = 10_000_000
BUDGET = 30_000_000
"""Iterations of one import together: some ten seconds of one core."""
KEY_BYTES, TAG_BYTES = 32, 16
LEAST_IV, MOST_IV = 8, 128

_DIGESTS: dict[str, hashes.HashAlgorithm] = {"sha256": hashes.SHA256(), "sha512": hashes.SHA512(), "sha1": hashes.SHA1()}  # noqa: S303  # in PBKDF2 it still holds, and old programs use it
_PARTS = ("salt", "iv", "tag", "ciphertext")
_SEPARATED = re.compile(r"[:.$|]")


class NotOpened(Exception):
    """The ciphertext does not open with what was given."""


class Reader(Protocol):
    """One format with its keys; remembers what it derived."""

    def open(self, text: str, facts: Mapping[str, str]) -> SecretBytes:
        """Return what ``text`` seals. ``facts`` are the item's own (``user_id``, ``salt``). Raises ``NotOpened``, ``TooLarge``."""


@dataclass(frozen=True, slots=True)
class Derivation:
    """How a key comes from a passphrase."""

    passphrase: SecretBytes
    salt: str = ""
    """As ``salt_encoding`` says; ``{user_id}`` in it stands for the item's user. Empty: each item brings its own."""
    salt_encoding: Encoding = "utf8"
    iterations: int = 100_000
    digest: Digest = "sha256"

    def check(self) -> None:
        """Raise ``Invalid`` for what cannot be meant."""
        if not 1 <= self.iterations <= MOST_ITERATIONS:
            raise Invalid.of("encryption.iterations", f"is not between 1 and {MOST_ITERATIONS}")
        if "{user_id}" in self.salt and self.salt_encoding != "utf8":
            raise Invalid.of("encryption.salt", "with {user_id} in it is text: its encoding is utf8")
        if not self.passphrase.reveal():
            raise Invalid.of("encryption.passphrase", "is required")


class _Derived:
    """The keys of one import."""

    def __init__(self, how: Derivation) -> None:
        how.check()
        self._how = how
        self._keys: dict[bytes, SecretBytes] = {}
        self._spent = 0

    def key(self, salt: bytes) -> bytes:
        found = self._keys.get(salt)
        if found is None:
            self._spent += self._how.iterations
            if self._spent > BUDGET:
                raise TooLarge(
                    f"Deriving these keys takes more than {BUDGET} iterations; that is too much for one import.",
                    hint="Split the file, for example by user.",
                )
            kdf = PBKDF2HMAC(_DIGESTS[self._how.digest], KEY_BYTES, salt, self._how.iterations)
            found = self._keys[salt] = SecretBytes(kdf.derive(self._how.passphrase.reveal()))
        return found.reveal()

    def salt(self, facts: Mapping[str, str]) -> bytes:
        text = self._how.salt or facts.get("salt", "")
        if "{user_id}" in text:
            text = text.replace("{user_id}", _required(facts, "user_id"))
        if not text:
            raise NotOpened
        return _bytes(text, self._how.salt_encoding)


class Fernet:
    """Tokens under keys of 32 bytes as base64url; ``keys``: any of them may be the one."""

    def __init__(self, keys: Sequence[SecretBytes]) -> None:
        self._keys = []
        for number, key in enumerate(keys):
            try:
                self._keys.append(fernet.Fernet(key.reveal().strip()))
            except (ValueError, Base64Error):
                raise Invalid.of(f"encryption.keys.{number}", "is no Fernet key: 32 bytes as base64url") from None
        if not self._keys:
            raise Invalid.of("encryption.keys", "are required")

    def open(self, text: str, facts: Mapping[str, str]) -> SecretBytes:
        """See ``Reader``."""
        del facts
        return _open_fernet(self._keys, text)


class UserFernet:
    """Tokens under a key of each user's own."""

    def __init__(self, how: Derivation) -> None:
        self._derived = _Derived(how)

    def open(self, text: str, facts: Mapping[str, str]) -> SecretBytes:
        """See ``Reader``."""
        key = urlsafe_b64encode(self._derived.key(self._derived.salt(facts)))
        return _open_fernet([fernet.Fernet(key)], text)


class AesGcm:
    """AES-256-GCM. ``layout``: the order of the parts; ``encoding``: how they, or all of them joined, are written.

    ``iv_bytes`` and ``salt_bytes``: lengths where the parts are joined. ``aad``: text, in which ``{user_id}`` stands for the item's user.
    """

    def __init__(
        self,
        how: Derivation,
        *,
        layout: Sequence[Part] = ("iv", "tag", "ciphertext"),
        encoding: Literal["base64", "hex"] = "base64",
        aad: str = "",
        iv_bytes: int = 16,
        salt_bytes: int = 16,
    ) -> None:
        if not {"iv", "tag", "ciphertext"} <= set(layout) <= set(_PARTS) or len(set(layout)) != len(layout):
            raise Invalid.of("encryption.layout", "names iv, tag and ciphertext once each, and salt if it lies beside them")
        if not LEAST_IV <= iv_bytes <= MOST_IV or not 1 <= salt_bytes <= MOST_IV:
            raise Invalid.of("encryption.iv_bytes", f"is not between {LEAST_IV} and {MOST_IV}")
        self._derived = _Derived(how)
        self._layout = tuple(layout)
        self._encoding: Encoding = encoding
        self._aad = aad
        self._lengths = {"iv": iv_bytes, "tag": TAG_BYTES, "salt": salt_bytes}

    def open(self, text: str, facts: Mapping[str, str]) -> SecretBytes:
        """See ``Reader``."""
        parts = self._split(text.strip())
        salt = parts["salt"] if "salt" in parts else self._derived.salt(facts)
        aad = self._aad.replace("{user_id}", _required(facts, "user_id")) if "{user_id}" in self._aad else self._aad
        if len(parts["tag"]) != TAG_BYTES or not LEAST_IV <= len(parts["iv"]) <= MOST_IV:
            raise NotOpened
        cipher = AESGCM(self._derived.key(salt))
        try:
            return SecretBytes(cipher.decrypt(parts["iv"], parts["ciphertext"] + parts["tag"], aad.encode() or None))
        except (InvalidTag, ValueError):
            raise NotOpened from None

    def _split(self, text: str) -> dict[str, bytes]:
        if text.startswith("{"):
            return self._from_object(text)
        pieces = _SEPARATED.split(text)
        if len(pieces) == len(self._layout):
            return {name: _bytes(piece, self._encoding) for name, piece in zip(self._layout, pieces, strict=True)}
        if len(pieces) != 1:
            raise NotOpened
        joined = _bytes(text, self._encoding)
        rest = len(joined) - sum(self._lengths[name] for name in self._layout if name != "ciphertext")
        if rest < 0:
            raise NotOpened
        lengths = [self._lengths.get(name, rest) for name in self._layout]
        ends = list(accumulate(lengths))
        return {name: joined[end - length : end] for name, length, end in zip(self._layout, lengths, ends, strict=True)}

    def _from_object(self, text: str) -> dict[str, bytes]:
        try:
            found = json.loads(text)
            if not isinstance(found, dict) or not {"iv", "tag", "ciphertext"} <= found.keys():
                raise NotOpened
            return {name: _bytes(found[name], self._encoding) for name in _PARTS if name in found}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise NotOpened from None


def _open_fernet(keys: Sequence[fernet.Fernet], text: str) -> SecretBytes:
    try:
        return SecretBytes(fernet.MultiFernet(keys).decrypt(text.strip().encode("ascii")))
    except (fernet.InvalidToken, UnicodeEncodeError, ValueError, TypeError):
        raise NotOpened from None


def _bytes(text: str, encoding: Encoding) -> bytes:
    """Decode strictly, but for base64 in either alphabet, padded or not. Raises ``NotOpened``."""
    try:
        if encoding == "utf8":
            return text.encode()
        if encoding == "hex":
            return bytes.fromhex(text) if re.fullmatch(r"(?:[0-9A-Fa-f]{2})*", text) else _never()
        unpadded = text.rstrip("=")
        padded = unpadded + "=" * (-len(unpadded) % 4)
        decoded = urlsafe_b64decode(padded) if set(padded) & set("-_") else b64decode(padded, validate=True)
        # Two spellings of one value are one too many: a damaged last letter is damage.
        canonical = b64encode(decoded).rstrip(b"=").decode()
        return decoded if canonical == unpadded.translate(str.maketrans("-_", "+/")) else _never()
    except (ValueError, UnicodeEncodeError, Base64Error):
        raise NotOpened from None


def _never() -> bytes:
    raise NotOpened


def _required(facts: Mapping[str, str], name: str) -> str:
    found = facts.get(name, "")
    if not found:
        raise NotOpened
    return found

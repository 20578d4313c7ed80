"""Signed notes and checkpoints, as C2SP writes them. Pure but for the signature's arithmetic: text in, text out.

::

    <origin>                                    the log's name: keybearer/<deployment>
    <size>                                      leaves in the tree, decimal
    <root>                                      base64
                                                (an empty line)
    — <key name> <base64: key id 4 | signature 64>

A public key is written as ``<key name>+<key id, 8 hex>+<base64: 01 | key 32>``; the key id is the first four bytes of
SHA-256(key name | 0A | 01 | key). The one algorithm here is Ed25519 (01), over the text up to and with the line feed before the
empty line. Any tool that reads C2SP notes can check ours.

Sources: C2SP signed-note and tlog-checkpoint; RFC 8032 (Ed25519).
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"
_KEY_BYTES, _KEY_ID_BYTES = 32, 4
_MOST_SIGNATURES = 16
MAX_NOTE_BYTES = 8 * 1024
_SIGNATURE = re.compile(r"— (?P<name>[^\s+]+) (?P<signature>[A-Za-z0-9+/]+={0,2})")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


class NoteError(ValueError):
    """The note is malformed, or not signed with the key: the message says which."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key and its name."""

    name: str
    key: bytes

    @property
    def id(self) -> bytes:
        """The key's short id: a hint, nothing is proved by it."""
        return _key_id(self.name, self.key)

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64encode(_ED25519 + self.key).decode()}"

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read what ``str`` writes. Raises ``NoteError``."""
        name, plus, rest = text.strip().partition("+")
        key_id, second_plus, encoded = rest.partition("+")
        raw = _decoded(encoded)
        if not (name and plus and second_plus) or raw[:1] != _ED25519 or len(raw) != 1 + _KEY_BYTES:
            raise NoteError("not an Ed25519 public key of the form name+id+base64")
        verifier = cls(name, raw[1:])
        if key_id != verifier.id.hex():
            raise NoteError("the public key's id does not fit it: it is mistyped")
        return verifier

    def check(self, note: str) -> str:
        """Return the text that ``note`` signs. Raises ``NoteError`` unless it is signed with this key."""
        text, signatures = _parted(note)
        for name, signature in signatures:
            if name == self.name and signature[:_KEY_ID_BYTES] == self.id:
                try:
                    Ed25519PublicKey.from_public_bytes(self.key).verify(signature[_KEY_ID_BYTES:], text.encode())
                except InvalidSignature:
                    raise NoteError("the signature is wrong: the checkpoint was changed") from None
                return text
        raise NoteError("it is not signed with this key")


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key and its name."""

    name: str
    key: Ed25519PrivateKey

    @property
    def verifier(self) -> Verifier:
        """The public half."""
        return Verifier(self.name, self.key.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """Return the note that signs ``text``, which ends with a line feed and holds no other control characters."""
        if not text.endswith("\n") or any(character < " " and character != "\n" for character in text):
            raise ValueError("a note's text is lines")
        signature = b64encode(self.verifier.id + self.key.sign(text.encode())).decode()
        return f"{text}\n— {self.name} {signature}\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log says of itself: this many leaves, under this root."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text to sign."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a signed text; further lines are others' and are ignored. Raises ``NoteError``."""
        lines = text.split("\n")
        if len(lines) < 4 or not lines[0] or not _SIZE.fullmatch(lines[1]):  # noqa: PLR2004  # three lines, and the end
            raise NoteError("not a checkpoint")
        root = _decoded(lines[2])
        if len(root) != sha256().digest_size:
            raise NoteError("not a checkpoint: its root is no hash")
        return cls(lines[0], int(lines[1]), root)


def opened(note: str, verifier: Verifier) -> Checkpoint:
    """Return the checkpoint in ``note``. Raises ``NoteError`` unless it is signed with the key, and by the log of its name."""
    checkpoint = Checkpoint.parse(verifier.check(note))
    if checkpoint.origin != verifier.name:
        raise NoteError("it is a checkpoint of another log")
    return checkpoint


def split(text: str) -> list[str]:
    """Return the notes in a text that holds several, one after the other, with or without empty lines between.

    What is no note comes out as a part that does not open.
    """
    found: list[str] = []
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if lines and lines[-1].startswith("— ") and not line.startswith("— "):
            found.append("".join(lines))
            lines = []
        if lines or line.strip():
            lines.append(line)
    return found + (["".join(lines)] if lines else [])


def _parted(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Return a note's text and its signatures by key name. Raises ``NoteError``."""
    if len(note) > MAX_NOTE_BYTES:
        raise NoteError("not a signed note: it is too long")
    text, separator, rest = note.rpartition("\n\n")
    lines = rest.split("\n")
    if not separator or lines.pop() or not 1 <= len(lines) <= _MOST_SIGNATURES:
        raise NoteError("not a signed note")
    signatures = []
    for line in lines:
        found = _SIGNATURE.fullmatch(line)
        if found is None:
            raise NoteError("not a signed note: a signature is malformed")
        signature = _decoded(found["signature"])
        if len(signature) <= _KEY_ID_BYTES:
            raise NoteError("not a signed note: a signature is too short")
        signatures.append((found["name"], signature))
    return text + "\n", signatures


def _key_id(name: str, key: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + key).digest()[:_KEY_ID_BYTES]


def _decoded(text: str) -> bytes:
    """Return what base64 means, in its one spelling: spare bits in the last character are none."""
    try:
        raw = b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        raise NoteError("not base64") from None
    if b64encode(raw).decode() != text:
        raise NoteError("not base64 as it is written")
    return raw

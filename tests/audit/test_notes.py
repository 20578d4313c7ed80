"""Signed notes against a published one, and checkpoints that are not what they claim."""

from __future__ import annotations

import os
from base64 import b64encode
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keybearer.audit import notes
from keybearer.audit.notes import Checkpoint, NoteError, Signer, Verifier

# From the documentation of the Go module golang.org/x/mod/sumdb/note, on whose format C2SP's rests.
PUBLISHED_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PUBLISHED = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
LOG = "keybearer/11111111-2222-3333-4444-555555555555"


@pytest.fixture
def signer() -> Signer:
    return Signer(LOG, Ed25519PrivateKey.generate())


def test_a_published_note_verifies() -> None:
    verifier = Verifier.parse(PUBLISHED_KEY)
    assert str(verifier) == PUBLISHED_KEY
    assert verifier.check(PUBLISHED) == PUBLISHED.partition("\n\n")[0] + "\n"


def test_a_checkpoint_reads_as_the_specification_has_it() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = key.public_key().public_bytes_raw()
    root = sha256(b"kbtest").digest()
    note = Signer(LOG, key).sign(Checkpoint(LOG, 42, root).text)
    # Written out by hand, from the specification.
    text = f"{LOG}\n42\n{b64encode(root).decode()}\n"
    key_id = sha256(LOG.encode() + b"\n\x01" + public).digest()[:4]
    assert note == f"{text}\n— {LOG} {b64encode(key_id + key.sign(text.encode())).decode()}\n"
    encoded = b64encode(b"\x01" + public).decode()
    verifier = Verifier.parse(f"{LOG}+{key_id.hex()}+{encoded}")
    assert notes.opened(note, verifier) == Checkpoint(LOG, 42, root)


def test_any_flipped_bit_is_found(signer: Signer) -> None:
    note = signer.sign(Checkpoint(LOG, 7, os.urandom(32)).text)
    raw = note.encode()
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        try:
            text = changed.decode()
        except UnicodeDecodeError:
            continue
        with pytest.raises(NoteError):
            notes.opened(text, signer.verifier)


def test_a_signature_has_one_spelling(signer: Signer) -> None:
    note = signer.sign(Checkpoint(LOG, 7, bytes(32)).text)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = note[-3]
    assert note.endswith("=\n")
    for spare in range(1, 4):
        with pytest.raises(NoteError):
            notes.opened(f"{note[:-3]}{alphabet[alphabet.index(last) ^ spare]}=\n", signer.verifier)


def test_another_key_and_another_log_are_told_apart(signer: Signer) -> None:
    note = signer.sign(Checkpoint(LOG, 7, bytes(32)).text)
    with pytest.raises(NoteError, match="not signed with this key"):
        notes.opened(note, Signer(LOG, Ed25519PrivateKey.generate()).verifier)
    other = signer.sign(Checkpoint("keybearer/other", 7, bytes(32)).text)
    with pytest.raises(NoteError, match="another log"):
        notes.opened(other, signer.verifier)


def test_others_may_sign_too(signer: Signer) -> None:
    """A witness adds its line; ours still counts, and lines of a further kind are ignored."""
    witness = Signer("witness.example", Ed25519PrivateKey.generate())
    text = Checkpoint(LOG, 7, bytes(32)).text
    both = signer.sign(text) + witness.sign(text).partition("\n\n")[2]
    assert notes.opened(both, signer.verifier).size == 7
    assert witness.verifier.check(both) == text


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        "text",
        "text\n\n",
        "text\n\n— name\n",
        "text\n\n— name x\n",
        "text\n\n— name AAAA\n",
        "text\n\nname AAAAAAAA\n",
        "x" * 9000,
    ],
)
def test_what_is_no_note(note: str, signer: Signer) -> None:
    with pytest.raises(NoteError):
        signer.verifier.check(note)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "log\n",
        "log\n1\n",
        "\n1\nAAAA\n",
        "log\n01\n{root}\n",
        "log\n-1\n{root}\n",
        "log\n1e3\n{root}\n",
        "log\n1\nAAAA\n",
        "log\n1\n{root}",
    ],
)
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text.replace("{root}", b64encode(bytes(32)).decode()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+c74f20a3",
        PUBLISHED_KEY[:-1],
        PUBLISHED_KEY.replace("c74f20a3", "c74f20a4"),
        "name+00000000+AQ==",
        "+c74f20a3+é",
    ],
)
def test_what_is_no_public_key(text: str) -> None:
    with pytest.raises(NoteError):
        Verifier.parse(text)


def test_a_text_with_control_characters_is_not_signed(signer: Signer) -> None:
    for text in ("no end", "a\tb\n", "a\rb\n"):
        with pytest.raises(ValueError, match="lines"):
            signer.sign(text)


def test_several_notes_in_one_file_are_told_apart(signer: Signer) -> None:
    some = [signer.sign(Checkpoint(LOG, size, bytes(32)).text) for size in (1, 2, 3)]
    for between in ("", "\n", "\n\n"):
        assert [notes.opened(note, signer.verifier).size for note in notes.split(between.join(some))] == [1, 2, 3]
    assert notes.split("") == []
    assert len(notes.split(some[0] + "rubbish\n")) == 2

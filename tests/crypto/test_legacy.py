"""Formats of other programs: made here from pyca's own parts, as those programs make them, and opened by the readers."""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64encode, urlsafe_b64encode
from typing import Any

import pytest
from cryptography.fernet import Fernet as Pyca
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from keybearer.crypto.legacy import AesGcm, Derivation, Fernet, NotOpened, Reader, UserFernet
from keybearer.domain import SecretBytes
from keybearer.errors import Invalid, TooLarge

VALUE = b"sk-proj-kbtest-legacy-0123456789abcdef"
MASTER = "kbtest-master-passphrase"
ROUNDS = 1000


def secret(text: str | bytes) -> SecretBytes:
    return SecretBytes(text.encode() if isinstance(text, str) else text)


def how(**more: Any) -> Derivation:
    given: dict[str, Any] = {"salt": "kbtest-salt", "iterations": ROUNDS} | more
    return Derivation(secret(MASTER), **given)


def pbkdf2(salt: bytes, digest: str = "sha256", rounds: int = ROUNDS) -> bytes:
    """The standard library's, not the reader's own."""
    return hashlib.pbkdf2_hmac(digest, MASTER.encode(), salt, rounds, 32)


def gcm(key: bytes, aad: bytes = b"", iv: bytes = b"") -> dict[str, bytes]:
    """What Node's createCipheriv('aes-256-gcm', key, randomBytes(16)) gives, by the low-level interface."""
    iv = iv or os.urandom(16)
    encryptor = Cipher(algorithms.AES(key), modes.GCM(iv)).encryptor()
    encryptor.authenticate_additional_data(aad)
    ciphertext = encryptor.update(VALUE) + encryptor.finalize()
    return {"iv": iv, "tag": encryptor.tag, "ciphertext": ciphertext}


def opened(reader: Reader, text: str, **facts: str) -> bytes:
    return reader.open(text, facts).reveal()


def test_fernet_under_one_of_several_keys() -> None:
    old, new = Pyca.generate_key(), Pyca.generate_key()
    token = Pyca(old).encrypt(VALUE).decode()
    assert opened(Fernet([secret(new), secret(old + b"\n")]), f" {token}\n") == VALUE
    with pytest.raises(NotOpened):
        opened(Fernet([secret(new)]), token)


def test_the_specifications_own_fernet_vector() -> None:
    # github.com/fernet/spec, generate.json: published values, not made here.
    key = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="
    token = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="
    assert opened(Fernet([secret(key)]), token) == b"hello"


@pytest.mark.parametrize("digest", ["sha256", "sha512", "sha1"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_aes_gcm_with_a_random_iv_tag_and_aad(digest: Any, encoding: Any) -> None:
    parts = gcm(pbkdf2(b"kbtest-salt", digest), b"user:7")
    written = {name: part.hex() if encoding == "hex" else b64encode(part).decode() for name, part in parts.items()}
    reader = AesGcm(how(digest=digest), encoding=encoding, aad="user:{user_id}")
    assert opened(reader, ":".join(written.values()), user_id="7") == VALUE
    assert opened(reader, json.dumps(written), user_id="7") == VALUE
    for facts in ({"user_id": "8"}, {}):
        with pytest.raises(NotOpened):
            opened(reader, json.dumps(written), **facts)


def test_aes_gcm_in_other_orders_joined_or_apart() -> None:
    salt = os.urandom(32)
    parts = {"salt": salt, **gcm(pbkdf2(salt))}
    layout: Any = ("salt", "iv", "ciphertext", "tag")
    joined = b64encode(b"".join(parts[name] for name in layout)).decode()
    reader = AesGcm(how(salt=""), layout=layout, salt_bytes=32)
    assert opened(reader, joined) == VALUE
    assert opened(reader, joined.rstrip("=").replace("+", "-").replace("/", "_")) == VALUE
    assert opened(reader, ".".join(b64encode(parts[name]).decode() for name in layout)) == VALUE
    key = pbkdf2(b"kbtest-salt")
    short = gcm(key, iv=os.urandom(12))
    assert (
        opened(AesGcm(how(), iv_bytes=12, encoding="hex"), b"".join(short.values()).hex()[:56] + short["ciphertext"].hex())
        == VALUE
    )


def test_fernet_under_a_key_of_each_users_own() -> None:
    reader = UserFernet(how(salt="user-{user_id}-kbtest"))
    tokens = {
        user: Pyca(urlsafe_b64encode(pbkdf2(f"user-{user}-kbtest".encode()))).encrypt(VALUE).decode() for user in ("ada", "bob")
    }
    assert opened(reader, tokens["ada"], user_id="ada") == VALUE
    assert opened(reader, tokens["bob"], user_id="bob") == VALUE
    for facts in ({"user_id": "bob"}, {}):
        with pytest.raises(NotOpened):
            opened(reader, tokens["ada"], **facts)
    by_item = UserFernet(how(salt="", salt_encoding="hex"))
    token = Pyca(urlsafe_b64encode(pbkdf2(bytes.fromhex("00ff10")))).encrypt(VALUE).decode()
    assert opened(by_item, token, salt="00ff10") == VALUE


def test_each_changed_letter_is_found() -> None:
    parts = gcm(pbkdf2(b"kbtest-salt"), b"x")
    text = ":".join(part.hex() for part in parts.values())
    reader = AesGcm(how(), encoding="hex", aad="x")
    for place, letter in enumerate(text):
        if letter != ":":
            with pytest.raises(NotOpened):
                opened(reader, text[:place] + ("0" if letter != "0" else "1") + text[place + 1 :])
    token = Pyca(urlsafe_b64encode(pbkdf2(b"kbtest-salt"))).encrypt(VALUE).decode().rstrip("=")
    for place in range(len(token)):
        with pytest.raises(NotOpened):
            opened(UserFernet(how()), token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :])


@given(st.text())
def test_no_text_makes_a_reader_fail_otherwise(text: str) -> None:
    cheap = Derivation(secret(MASTER), "s", iterations=1)
    for reader in (Fernet([secret(Pyca.generate_key())]), AesGcm(cheap), AesGcm(cheap, encoding="hex"), UserFernet(cheap)):
        with pytest.raises(NotOpened):
            opened(reader, text)
        with pytest.raises(NotOpened):
            opened(reader, json.dumps({"iv": text, "tag": text, "ciphertext": text}))


def test_what_it_costs_is_bounded() -> None:
    reader = UserFernet(how(salt="{user_id}", iterations=9_000_000))
    reader._derived._spent = 25_000_000
    with pytest.raises(TooLarge):
        opened(reader, "x", user_id="ada")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fernet([]),
        lambda: Fernet([secret("kbtest-short")]),
        lambda: UserFernet(how(iterations=0)),
        lambda: UserFernet(how(iterations=10**9)),
        lambda: UserFernet(Derivation(secret(""), "salt")),
        lambda: UserFernet(how(salt="{user_id}", salt_encoding="hex")),
        lambda: AesGcm(how(), layout=("iv", "tag")),
        lambda: AesGcm(how(), layout=("iv", "iv", "tag", "ciphertext")),
        lambda: AesGcm(how(), iv_bytes=4),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused(make: Any) -> None:
    with pytest.raises(Invalid) as refused:
        make()
    assert "kbtest" not in str(refused.value)

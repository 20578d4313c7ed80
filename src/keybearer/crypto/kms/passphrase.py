"""The wrapping key from a passphrase: Argon2id (RFC 9106) with a salt and costs that lie beside the wrapped root key.

::

    wrapped = "KBP" 3 | format 1 | memory in KiB u32-BE | passes u32-BE | lanes u32-BE | salt 32 | envelope of ``local``

Salt and costs are part of what the envelope is bound to. Who can write to the database can thus neither lower the costs of what is
wrapped nor have another's derivation accepted; bounds keep them from making a start eat all memory.
"""

from __future__ import annotations

import asyncio
import os
import struct
import unicodedata
from dataclasses import dataclass

from argon2.low_level import Type, hash_secret_raw

from keybearer.crypto.envelope import KEY_BYTES
from keybearer.crypto.kms.local import LocalWrapper
from keybearer.crypto.kms.wrapped import damaged
from keybearer.domain import SecretBytes
from keybearer.errors import RootKeyError

PROVIDER = "passphrase"
VARIABLE = "KEYBEARER_ROOT_KEY_PASSPHRASE"
SHORTEST = 20
"""Characters: whoever has the database may guess for years. Five words drawn at random have more."""
_FEWEST_DIFFERENT = 8
_MAGIC = b"KBP\x01"
_COSTS = struct.Struct(">III")
_SALT_BYTES = 32
_HEAD = len(_MAGIC) + _COSTS.size + _SALT_BYTES


@dataclass(frozen=True, slots=True)
class Costs:
    """What one derivation takes: memory in KiB, passes over it, lanes."""

    memory: int = 256 * 1024
    passes: int = 3
    lanes: int = 4

    def is_sane(self) -> bool:
        """Whether Argon2 can be run with these without harm to the machine."""
        return 1 <= self.lanes <= 16 and 1 <= self.passes <= 64 and 8 * self.lanes <= self.memory <= 1024 * 1024  # noqa: PLR2004  # bounds


class PassphraseWrapper:
    """A ``Wrapper`` that derives its key anew each time; it takes about a second, at the start and in a rotation."""

    provider = PROVIDER
    reference = VARIABLE

    def __init__(self, passphrase: SecretBytes, costs: Costs) -> None:
        self._passphrase = passphrase
        self._costs = costs

    def __repr__(self) -> str:
        return f"<wrapping key from {self.provider}>"

    async def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Wrap ``key``, bound to ``aad``, with a fresh salt and this version's costs."""
        head = _MAGIC + _COSTS.pack(self._costs.memory, self._costs.passes, self._costs.lanes) + os.urandom(_SALT_BYTES)
        derived = await self._derive(head)
        return head + await derived.wrap(key, head + aad)

    async def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """Unwrap; raises ``RootKeyError``: another passphrase wrapped it, or the bytes are damaged or of another deployment."""
        head = wrapped[:_HEAD]
        if len(head) < _HEAD or head[: len(_MAGIC)] != _MAGIC:
            raise damaged()
        derived = await self._derive(head)
        return await derived.unwrap(wrapped[_HEAD:], head + aad)

    async def _derive(self, head: bytes) -> LocalWrapper:
        costs = Costs(*_COSTS.unpack_from(head, len(_MAGIC)))
        if not costs.is_sane():
            raise damaged()
        salt = head[-_SALT_BYTES:]
        return LocalWrapper(PROVIDER, VARIABLE, await asyncio.to_thread(_argon2, self._passphrase, salt, costs))


def parse(text: str, costs: Costs | None = None, *, named: str = VARIABLE) -> PassphraseWrapper:
    """Return the wrapper for a passphrase. Raises ``RootKeyError`` where it is missing or surely weak; never repeats it.

    ``named``: how messages call it.
    """
    # The same text typed on another keyboard gives the same bytes.
    normal = unicodedata.normalize("NFC", text.strip())
    if not normal:
        problem = f"{named} is empty."
    elif len(normal) < SHORTEST or len(set(normal)) < _FEWEST_DIFFERENT:
        problem = f"{named} is too weak: it needs at least {SHORTEST} characters, {_FEWEST_DIFFERENT} of them different."
    else:
        return PassphraseWrapper(SecretBytes(normal.encode()), costs or Costs())
    del text, normal  # a traceback that shows local variables shows neither
    raise RootKeyError(problem, hint="Draw it at random: six words of a word list, or 'openssl rand -base64 24'.")


def _argon2(passphrase: SecretBytes, salt: bytes, costs: Costs) -> SecretBytes:
    return SecretBytes(
        hash_secret_raw(passphrase.reveal(), salt, costs.passes, costs.memory, costs.lanes, KEY_BYTES, Type.ID),
    )

"""Passwords: what one must be, and how it is kept.

Kept is Argon2id (RFC 9106, second recommended option: 64 MiB, 3 passes, 4 lanes) of an HMAC over the account's id and the
password under the deployment's sealed row-MAC key. So a stolen database cannot be guessed at without the root key, and a hash
written into another account's row opens nothing.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from uuid import UUID

from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, InvalidHashError

from keybearer.access.fields import Fields, has_control
from keybearer.crypto.keyring import Keyring
from keybearer.errors import Overloaded, SignInFailed

SHORTEST, LONGEST = 12, 256
"""Characters. Longer ones are refused: normalising takes time by length."""
_FEWEST_DIFFERENT = 4
_HASH_BYTES, _SALT_BYTES = 32, 16
_NOBODY = UUID(int=0)

Result = TypeVar("Result")


def normalised(password: str) -> str:
    """The form that is hashed: the same text typed on another keyboard gives the same bytes (RFC 8265 uses NFC likewise)."""
    return unicodedata.normalize("NFC", password)


def check_policy(fields: Fields, field: str, password: str, email: str) -> None:
    """Note in ``fields`` what is wrong with a new password: its length, the account's own address, one character repeated."""
    if len(password) > LONGEST:
        fields.wrong(field, f"is too long; at most {LONGEST} characters are allowed")
        return
    text = normalised(password)
    if len(text) < SHORTEST:
        fields.wrong(field, f"needs at least {SHORTEST} characters")
    elif has_control(text):
        fields.wrong(field, "has control or other invisible characters")
    elif text.casefold().strip() in {email.casefold(), email.partition("@")[0].casefold()}:
        fields.wrong(field, "must not be your e-mail address")
    elif len(set(text)) < _FEWEST_DIFFERENT:
        fields.wrong(field, "has too few different characters")


class Passwords:
    """Hashes and checks passwords in threads, a few at once, so that sign-ins cost neither the event loop nor all memory."""

    def __init__(
        self, keyring: Keyring, *, memory_kib: int = 65536, passes: int = 3, lanes: int = 4, at_once: int = 2, waiting: int = 64
    ) -> None:
        """At most ``at_once`` times ``memory_kib`` KiB are in use; more than ``waiting`` attempts in line are turned away."""
        self._keyring = keyring
        self._argon2 = PasswordHasher(passes, memory_kib, lanes, _HASH_BYTES, _SALT_BYTES, type=Type.ID)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="argon2")
        self._most = at_once + waiting
        self._pending = 0
        # Looks like a hash and takes the same time to check, but no password has it.
        salt, tail = (base64.b64encode(os.urandom(size)).decode().rstrip("=") for size in (_SALT_BYTES, _HASH_BYTES))
        self._nobodys = f"$argon2id$v=19$m={memory_kib},t={passes},p={lanes}${salt}${tail}"

    async def hash(self, user_id: UUID, password: str) -> str:
        """The text to keep for this account's password."""
        peppered = self._pepper(user_id, password)
        return await self._in_thread(lambda: self._argon2.hash(peppered))

    async def check(self, user_id: UUID | None, kept: str | None, password: str) -> None:
        """Raise ``SignInFailed`` unless ``password`` is the one kept; without an account (``None``) it takes as long."""
        too_long = len(password) > LONGEST
        peppered = self._pepper(user_id or _NOBODY, "" if too_long else password)
        usable = kept if kept is not None and re.match(r"\$argon2id\$", kept) else None
        right = await self._in_thread(lambda: _matches(self._argon2, usable or self._nobodys, peppered))
        if not right or too_long or user_id is None or usable is None:
            raise SignInFailed

    def is_outdated(self, kept: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._argon2.check_needs_rehash(kept)

    def _pepper(self, user_id: UUID, password: str) -> bytes:
        text = normalised(password).encode("utf-8", "surrogatepass")
        return self._keyring.row_mac("password", user_id, text)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        if self._pending >= self._most:
            raise Overloaded("Too many people sign in at this moment.", retry_after=5.0)
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._pending -= 1


def _matches(argon2: PasswordHasher, kept: str, peppered: bytes) -> bool:
    try:
        return argon2.verify(kept, peppered)
    except (Argon2Error, InvalidHashError):
        return False

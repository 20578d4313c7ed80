"""Root key providers: what wraps the root key so that it can lie in the database.

wrapper    one provider, ready to wrap and unwrap: ``Wrapper``
reference  which key of the provider: a path, a KMS key's name, a variable's name; stored beside the wrapped key, never secret
AAD        bytes that name deployment and root key; the same must be given to unwrap (AWS: a value of the encryption context;
           Google Cloud: additional authenticated data; Transit: associated data; a local key: the envelope's context)

``file``, ``env`` and ``passphrase`` hold or derive a wrapping key of 32 bytes themselves and share ``local``. ``aws``, ``gcp`` and
``openbao`` call a service and share ``wrapped``, the form in which its answer is kept. Whatever a provider must find again (a salt, a
key's name) it puts into the wrapped bytes. ``providers`` makes them from the settings.
"""

from __future__ import annotations

from typing import Protocol


class Wrapper(Protocol):
    """A root key provider. Used at the start and in root key rotation, never per request."""

    @property
    def provider(self) -> str:
        """The provider's name as in ``KEYBEARER_ROOT_KEY_PROVIDER``."""

    @property
    def reference(self) -> str:
        """Which key of the provider; shown to operators."""

    async def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Wrap ``key`` (32 bytes). Raises ``RootKeyError`` if the provider refuses, ``Unavailable`` if it cannot be reached."""

    async def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """Return the key that ``wrap`` was given with the same ``aad``.

        Raises ``RootKeyError`` with a message that says whether the provider's key is another one or the wrapped bytes are
        damaged, as far as that can be told; ``Unavailable`` if the provider cannot be reached.
        """

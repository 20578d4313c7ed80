"""The wrapped root key of a provider that is a service: which key wrapped it, and what the service returned.

::

    frame = "KBW" 3 | format 1 | length of the reference u16-BE | reference, UTF-8 | what the service returned

The name stands in front so that "another key" and "damaged bytes" can be told apart: services answer both alike. It is not
trusted: it chooses among the keys that the settings name, and a service proves the rest.
"""

from __future__ import annotations

from keybearer.errors import RootKeyError

_MAGIC = b"KBW\x01"
_HEAD = len(_MAGIC) + 2


def frame(reference: str, blob: bytes) -> bytes:
    """Return the bytes to keep of ``blob``, which ``reference`` wrapped."""
    name = reference.encode()
    return _MAGIC + len(name).to_bytes(2, "big") + name + blob


def unframe(wrapped: bytes) -> tuple[str, bytes]:
    """Return reference and blob. Raises ``RootKeyError`` for what no service wrapped, or was cut short."""
    end = _HEAD + int.from_bytes(wrapped[len(_MAGIC) : _HEAD], "big")
    if wrapped[: len(_MAGIC)] != _MAGIC or len(wrapped) <= end:
        raise damaged()
    try:
        return wrapped[_HEAD:end].decode(), wrapped[end:]
    except UnicodeDecodeError:
        raise damaged() from None


def chosen(reference: str, keys: tuple[str, ...]) -> str:
    """Return which of the configured keys is to unwrap: the one that wrapped, or the first: a key may have got another name."""
    return reference if reference in keys else keys[0]


def refused(provider: str, reference: str, keys: tuple[str, ...]) -> RootKeyError:
    """Say what it means that the service unwraps nothing: another key, or damage."""
    if reference in keys:
        return damaged()
    return RootKeyError(
        f"Wrong root key: the database was set up with {provider} key {reference[:300]!r}, but the settings name {', '.join(keys)}.",
        hint="Name that key in the settings too, after the one that is to wrap; docs/keys.md tells how.",
    )


def damaged() -> RootKeyError:
    """Say that no key opens it."""
    return RootKeyError(
        "The wrapped root key in the database is damaged, or belongs to another deployment.",
        hint="Restore the database from your backup; see docs/troubleshooting.md.",
    )

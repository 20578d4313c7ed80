"""The wrapping key in the environment: ``KEYBEARER_ROOT_KEY``, 32 bytes as base64, base64url or hex."""

from __future__ import annotations

from keybearer.crypto.kms.local import LocalWrapper, parse_key

PROVIDER = "env"
VARIABLE = "KEYBEARER_ROOT_KEY"


def parse(text: str) -> LocalWrapper:
    """Return the wrapper for the variable's value. Raises ``RootKeyError`` where it is empty, malformed or weak."""
    return LocalWrapper(PROVIDER, VARIABLE, parse_key(text, VARIABLE))

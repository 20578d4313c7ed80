"""The stores that references point into, each behind one method; what goes wrong there is told in our own words.

``Store``      gives the text, or the fields, of what a reference names      ``aws``, ``openbao``   the two services
``Environment`` the server's own variables, as the settings handed them over

A store translates its service's exceptions at one seam, by their codes alone: messages of others may repeat what was asked or found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol

from keybearer.domain import SecretBytes
from keybearer.errors import ReferenceMissing, ReferenceWrong
from keybearer.vault.references import Reference

MOST_BYTES = 256 * 1024
"""Of what is fetched: AWS takes 64 kB, OpenBao 1 MB; a value here has 64 kB at most."""


class Store(Protocol):
    """See the module."""

    async def read(self, reference: Reference) -> SecretBytes:
        """The value, as it is there.

        Raises ``ReferenceUnreachable``, ``ReferenceDenied``, ``ReferenceMissing``, ``ReferenceWrong``, ``OperatorError``.
        """
        ...


class Environment:
    """A ``Store`` of the server's environment variables, read once when it started."""

    def __init__(self, variables: Mapping[str, SecretBytes]) -> None:
        self._variables = variables

    async def read(self, reference: Reference) -> SecretBytes:
        """The variable's text; see ``Store``."""
        found = self._variables.get(reference.name)
        if found is None:
            raise ReferenceMissing(
                f"The server has no environment variable {reference.name}.", hint="Set it where the server is started."
            )
        return found


def picked(text: str | bytes, reference: Reference) -> SecretBytes:
    """The text, or of a JSON object the text that the reference's key names. Raises ``ReferenceWrong``."""
    if not reference.key:
        return SecretBytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ReferenceWrong(
            f"{reference} is not JSON, so it has no keys.", hint="Leave the key out to take all of the text."
        ) from None
    return named(found, reference)


def named(found: object, reference: Reference) -> SecretBytes:
    """The text that the reference's key names. Raises ``ReferenceWrong``."""
    value = found.get(reference.key) if isinstance(found, Mapping) else None
    if not isinstance(value, str):
        problem = "is not a text" if isinstance(found, Mapping) and reference.key in found else "is not there"
        raise ReferenceWrong(f"The key {reference.key!r} of {reference} {problem}.")
    return SecretBytes(value.encode("utf-8", "surrogatepass"))

"""OpenBao's (or HashiCorp Vault's) KV engine, version 2, over its HTTP API, with the server's token or AppRole.

The policy needs ``read`` on ``<mount>/data/<path>`` of what may be pointed to. Source: OpenBao API, KV version 2, *Read secret version*.
"""

from __future__ import annotations

import json

import httpx2

from keybearer.crypto.kms.openbao import Access, client_of, sign_in
from keybearer.domain import SecretBytes
from keybearer.errors import (
    KmsDenied,
    KmsUnreachable,
    ReferenceDenied,
    ReferenceMissing,
    ReferenceUnreachable,
    ReferenceWrong,
    RootKeyError,
)
from keybearer.vault.references import Reference
from keybearer.vault.stores import MOST_BYTES, named


class KeyValue:
    """A ``Store``. ``timeout``: seconds for one call."""

    def __init__(self, access: Access, *, timeout: float = 5.0) -> None:
        self._access = access
        self._timeout = timeout

    async def read(self, reference: Reference) -> SecretBytes:
        """The version in force; see ``Store``."""
        try:
            async with client_of(self._access, self._timeout) as http:
                http.headers["x-vault-token"] = await sign_in(http, self._access)
                async with http.stream("GET", f"/v1/{reference.place}/data/{reference.name}") as answer:
                    body = await _bounded(answer, reference)
        except (KmsUnreachable, httpx2.TransportError, httpx2.InvalidURL) as error:
            raise ReferenceUnreachable(f"OpenBao does not answer for {reference}: {type(error).__name__}.") from None
        except (KmsDenied, RootKeyError):
            hint = "Check KEYBEARER_OPENBAO_TOKEN, or the AppRole's ids, and KEYBEARER_OPENBAO_CA_FILE."
            raise ReferenceDenied("OpenBao does not let the server in.", hint=hint) from None
        return _value(answer.status_code, body, reference)


async def _bounded(answer: httpx2.Response, reference: Reference) -> bytes:
    body = b""
    async for chunk in answer.aiter_bytes():
        body += chunk
        if len(body) > MOST_BYTES:
            raise ReferenceWrong(f"{reference} holds more than {MOST_BYTES} bytes.")
    return body


def _value(status: int, body: bytes, reference: Reference) -> SecretBytes:
    """What was asked for; errors are told by status alone."""
    if status == httpx2.codes.NOT_FOUND:
        raise ReferenceMissing(f"OpenBao has nothing at {reference}.", hint="Is the mount a KV engine of version 2?")
    if status in {httpx2.codes.BAD_REQUEST, httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}:
        hint = "The server's token or AppRole needs 'read' on <mount>/data/<path>."
        raise ReferenceDenied(f"OpenBao refuses to give {reference}: status {status}.", hint=hint)
    if status != httpx2.codes.OK:
        hint = "Is it sealed? Run 'bao status'."
        raise ReferenceUnreachable(f"OpenBao cannot give {reference} at the moment: status {status}.", hint=hint)
    try:
        found = json.loads(body)["data"]["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ReferenceWrong(f"OpenBao's answer for {reference} is none of a KV engine of version 2.") from None
    if not reference.key and isinstance(found, dict) and len(found) == 1:
        (only,) = found.values()
        if isinstance(only, str):
            return SecretBytes(only.encode("utf-8", "surrogatepass"))
    if not reference.key:
        raise ReferenceWrong(f"{reference} holds several keys.", hint="Name the one that is meant: 'key'.")
    return named(found, reference)

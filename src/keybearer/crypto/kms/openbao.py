"""The wrapping key in OpenBao's (or HashiCorp Vault's) Transit engine, over its HTTP API.

A token, or an AppRole's role id and secret id, opens the way. The policy needs ``update`` on ``<mount>/encrypt/<key>`` and
``<mount>/decrypt/<key>`` and nothing else; without ``create`` a mistyped name makes no new key.
"""

from __future__ import annotations

import ssl
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from keybearer.crypto.kms.wrapped import chosen, frame, refused, unframe
from keybearer.domain import SecretBytes
from keybearer.errors import KmsDenied, KmsUnreachable, RootKeyError

PROVIDER = "openbao"

_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Access:
    """Where OpenBao is, and who we are there: a token, or an AppRole's two ids."""

    address: str
    """``https://…``; plain HTTP is for this machine alone (an agent)."""
    token: SecretBytes | None = None
    role_id: str = ""
    secret_id: SecretBytes | None = None
    namespace: str = ""
    ca_file: Path | None = None


class Transit:
    """A ``Wrapper``. ``keys``: names in the Transit engine at ``mount``; the first wraps, all unwrap. ``timeout``: seconds."""

    provider = PROVIDER

    def __init__(self, access: Access, keys: tuple[str, ...], *, mount: str = "transit", timeout: float = 10.0) -> None:
        self._access = access
        self._mount = mount.strip("/")
        self._keys = tuple(f"{self._mount}/keys/{key}" for key in keys)
        self.reference = self._keys[0]
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<wrapping key {self.reference} at {self.provider}>"

    async def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Wrap by ``reference``. Raises ``KmsDenied``, ``KmsUnreachable``."""
        answer = await self._call("encrypt", self.reference, {"plaintext": _text(key), "associated_data": _text(aad)})
        blob = answer.get("ciphertext")
        if not isinstance(blob, str) or not blob:
            raise _no_answer()
        return frame(self.reference, blob.encode())

    async def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """Unwrap; see ``Wrapper``."""
        reference, blob = unframe(wrapped)
        key = chosen(reference, self._keys)
        asked = {"ciphertext": blob.decode("ascii", "replace"), "associated_data": _text(aad)}
        try:
            answer = await self._call("decrypt", key, asked)
        except _NotOpened:
            raise refused(PROVIDER, reference, self._keys) from None
        try:
            return b64decode(answer.get("plaintext") or "", validate=True)
        except (Base64Error, ValueError, TypeError):
            raise _no_answer() from None

    async def _call(self, operation: str, key: str, body: dict[str, str]) -> dict[str, Any]:
        name = key.removeprefix(f"{self._mount}/keys/")
        with _translated():
            async with client_of(self._access, self._timeout) as http:
                http.headers["x-vault-token"] = await sign_in(http, self._access)
                answer = await http.post(f"/v1/{self._mount}/{operation}/{name}", json=body)
        return _data(answer, key, "data", asks_to_open=operation == "decrypt")


async def sign_in(http: httpx2.AsyncClient, access: Access) -> str:
    """Return a token: the one that was given, or one for the AppRole. Raises ``KmsDenied``, ``KmsUnreachable``."""
    if access.token is not None:
        return access.token.reveal().decode()
    secret_id = access.secret_id.reveal().decode() if access.secret_id else ""
    body = {"role_id": access.role_id, "secret_id": secret_id}
    token = _data(await http.post("/v1/auth/approle/login", json=body), "auth/approle", "auth").get("client_token")
    if not isinstance(token, str) or not token:
        raise _no_answer()
    return token


def client_of(access: Access, timeout: float) -> httpx2.AsyncClient:
    """Make a client that talks to OpenBao and nobody else. Raises ``RootKeyError`` for authorities that cannot be read."""
    try:
        context = ssl.create_default_context(cafile=access.ca_file)
    except (OSError, ssl.SSLError) as error:
        message = f"The certificate authorities in {access.ca_file} cannot be read: {type(error).__name__}."
        raise RootKeyError(message, hint="See KEYBEARER_OPENBAO_CA_FILE.") from None
    return httpx2.AsyncClient(
        base_url=access.address,
        headers={"x-vault-request": "true"} | ({"x-vault-namespace": access.namespace} if access.namespace else {}),
        timeout=timeout,
        verify=context,
        # A redirect or a proxy from the environment would be handed the token and what it opens.
        follow_redirects=False,
        trust_env=False,
    )


class _NotOpened(Exception):
    """The service says that the ciphertext does not open under this key and associated data."""


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the HTTP client's exceptions into ours: the one seam."""
    try:
        yield
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        raise KmsUnreachable(f"OpenBao does not answer: {type(error).__name__}.") from None


def _data(answer: httpx2.Response, key: str, part: str, *, asks_to_open: bool = False) -> dict[str, Any]:
    """Return what was asked for; errors are told by status alone: the words are another's and may repeat what was sent."""
    status = answer.status_code
    if status == httpx2.codes.OK and len(answer.content) <= _MOST_BYTES:
        try:
            found = answer.json()[part]
        except (ValueError, KeyError, TypeError):
            raise _no_answer() from None
        if isinstance(found, dict):
            return found
        raise _no_answer()
    if status == httpx2.codes.BAD_REQUEST and asks_to_open and b"key not found" not in answer.content:
        raise _NotOpened
    if status in {httpx2.codes.BAD_REQUEST, httpx2.codes.FORBIDDEN, httpx2.codes.NOT_FOUND}:
        raise KmsDenied(
            f"OpenBao refuses to use {key}: status {status}.",
            hint="Check that the Transit key exists and that the token or AppRole may update its encrypt and decrypt paths.",
        )
    raise KmsUnreachable(f"OpenBao cannot use {key} at the moment: status {status}.", hint="Is it sealed? Run 'bao status'.")


def _no_answer() -> KmsUnreachable:
    return KmsUnreachable("OpenBao gave an answer that is none of its API's.", hint="Check KEYBEARER_OPENBAO_ADDRESS.")


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")

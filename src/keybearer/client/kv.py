"""Reading a KV engine (version 2) of OpenBao or HashiCorp Vault over HTTP, to import what is in it.

The token needs ``read`` on ``<mount>/data/<path>/*`` and ``list`` on ``<mount>/metadata/<path>/*``. This runs where the command runs, with
the operator's own token: a server never fetches from an address that somebody else names.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from keybearer.client.http import is_sendable
from keybearer.errors import FieldError, Forbidden, Invalid, NotFound, TooLarge, Unavailable

MOST_PATHS = 2_000
MOST_BYTES = 1024 * 1024
"""Of one answer."""
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class Kv:
    """``Kv(address, token)``; ``mount``: where the engine is; ``namespace``: of Vault Enterprise or OpenBao."""

    def __init__(self, address: str, token: str, *, mount: str = "secret", namespace: str = "", timeout: float = 30.0) -> None:
        if not _is_address(address):
            raise Invalid(
                "The address is not https://host:port.",
                hint="http:// is for this machine alone.",
                fields=(FieldError("address", "is not https://host:port"),),
            )
        if not is_sendable(token):
            raise Forbidden("The token has characters that no token has.", hint="Copy it again: BAO_TOKEN or VAULT_TOKEN.")
        headers = {"x-vault-token": token, "x-vault-request": "true"} | ({"x-vault-namespace": namespace} if namespace else {})
        self._mount = mount.strip("/")
        self._http = httpx2.Client(base_url=address.rstrip("/"), headers=headers, timeout=timeout, follow_redirects=False)

    def close(self) -> None:
        self._http.close()

    def read_all(self, path: str = "") -> list[dict[str, str]]:
        """All secrets under ``path`` (or the one there): ``variable`` is path and field, ``value`` the text.

        Raises ``Forbidden``, ``NotFound``, ``Unavailable``, ``TooLarge``.
        """
        path = path.strip("/")
        entries: list[dict[str, str]] = []
        waiting, seen = [path], 0
        while waiting:
            place = waiting.pop(0)
            below = self._get("metadata", place, "?list=true")
            names = [] if below is None else below.get("keys", [])
            # What is both a secret and a folder stands in a list twice.
            waiting += [f"{place}/{name}".strip("/") for name in names if name.endswith("/")]
            leaves = [f"{place}/{name}".strip("/") for name in names if not name.endswith("/")]
            if place == path and path:
                leaves.insert(0, path)
            seen += len(leaves) + 1
            if seen > MOST_PATHS:
                raise TooLarge(f"There are more than {MOST_PATHS} paths.", hint="Import a part of them: name a path.")
            for leaf in leaves:
                entries += self._fields(leaf)
        if not entries:
            raise NotFound("There are no secrets at that path.", hint="Check mount and path; the token needs list and read.")
        return entries

    def _fields(self, path: str) -> list[dict[str, str]]:
        found = self._get("data", path)
        data = (found or {}).get("data") or {}  # the newest version was deleted: it has none
        return [
            {"path": f"{path}/{name}", "value": value} for name, value in data.items() if isinstance(value, str) and value.strip()
        ]

    def _get(self, kind: str, path: str, query: str = "") -> dict[str, Any] | None:
        try:
            answer = self._http.get(f"/v1/{self._mount}/{kind}/{quote(path)}{query}")
        except httpx2.RequestError as error:
            raise Unavailable(f"OpenBao does not answer: {type(error).__name__}.", hint="Check its address.") from None
        if answer.status_code == 404:  # noqa: PLR2004  # HTTP's own number
            return None
        if answer.status_code in {401, 403}:
            raise Forbidden("OpenBao refuses this token.", hint=f"It needs list and read under {self._mount}/.")
        if answer.status_code != 200 or len(answer.content) > MOST_BYTES:  # noqa: PLR2004  # likewise
            raise Unavailable(f"OpenBao answered {answer.status_code}.", hint="Is the mount a KV engine of version 2?")
        try:
            data = answer.json()["data"]
        except (ValueError, KeyError, TypeError):
            data = None
        if not isinstance(data, dict):
            raise Unavailable("What answers there is no KV engine of version 2.", hint="Check address and mount.")
        return data


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK))

"""One HTTP client for the REST API: problem details become ``KeybearerError`` again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httpx2

from keybearer.errors import FieldError, KeybearerError, SettingsInvalid, TokenInvalid, Unavailable

_ELSEWHERE = "Does KEYBEARER_URL name a Keybearer server?"
_SENDABLE = re.compile(r"[!-~]+")


class ApiError(KeybearerError):
    """The server refused the request."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        """``problem`` is the decoded RFC 9457 document, or empty if the answer was none."""
        super().__init__(
            str(problem.get("detail") or problem.get("title") or f"The server answered {status}."),
            hint=str(problem.get("hint") or ("" if problem else _ELSEWHERE)),
            fields=tuple(FieldError(str(item["field"]), str(item["message"])) for item in problem.get("fields", ())),
        )


def is_sendable(token: str) -> bool:
    """Whether a header can carry a token. Libraries repeat what none can in their errors, so it is asked before."""
    return _SENDABLE.fullmatch(token) is not None


class Client:
    """``Client(url, token)``: ``url`` as in ``KEYBEARER_URL`` (without ``/api``), ``token`` a ``kb_…`` access token."""

    def __init__(self, url: str, token: str, *, timeout: float = 30.0) -> None:
        """``timeout`` in seconds for each request. Raises ``SettingsInvalid`` for what is no URL, ``TokenInvalid``."""
        if not is_sendable(token):
            raise TokenInvalid(
                "The access token has characters that no token has.", hint="Copy it again: kb_, then 51 characters."
            )
        headers = {"accept": "application/json", "authorization": f"Bearer {token}"}
        self._http = httpx2.Client(base_url=_base_url(url), headers=headers, timeout=timeout, follow_redirects=False)

    def request(self, method: str, path: str, *, json: object = None, query: dict[str, Any] | None = None) -> Any:
        """Send one request to ``/api/v1`` + ``path``; return the decoded answer, ``None`` for an empty one.

        Raises ``ApiError``, and ``Unavailable`` where nobody answers, or something else does.
        """
        params = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            response = self._http.request(method, f"/api/v1{path}", json=json, params=params)
        except httpx2.RequestError as error:
            message = f"The server at {self._http.base_url} cannot be reached: {error}"
            raise Unavailable(message, hint="Is it running? KEYBEARER_URL names it.") from None
        is_problem = response.headers.get("content-type") == "application/problem+json"
        if response.status_code >= 300 and not is_problem:  # noqa: PLR2004  # HTTP's own boundary
            raise ApiError(response.status_code, {})
        try:
            body = response.json() if response.content else None
        except ValueError:
            raise Unavailable(f"What answers at {self._http.base_url} does not speak JSON.", hint=_ELSEWHERE) from None
        if is_problem:
            raise ApiError(response.status_code, body if isinstance(body, dict) else {})
        return body

    def fetch_secret(
        self,
        secret_id: str | None = None,
        *,
        provider: str | None = None,
        secret_type: str | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Fetch a secret with its ``value``: one by its id, or the first of a provider, type and name.

        The secret must be ``fetchable``, and the token have the scope ``secrets:read``. Raises as ``request`` does.
        """
        wanted = {"id": secret_id, "provider": provider, "secret_type": secret_type, "name": name}
        given = {field: value for field, value in wanted.items() if value is not None}
        return dict(self.request("POST", "/secrets/resolve", json=given))

    def pages(self, path: str, *, query: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the items of all pages of a list."""
        cursor: str | None = None
        while True:
            page = self.request("GET", path, query={**(query or {}), "cursor": cursor})
            yield from page["items"]
            cursor = page["next_cursor"]
            if not cursor:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()


def _base_url(text: str) -> httpx2.URL:
    try:
        url = httpx2.URL(text.rstrip("/"))
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in {"https", "http"} or not url.host or url.userinfo:  # which would be sent instead of the token
        raise SettingsInvalid(
            "KEYBEARER_URL is not https://host:port.", hint="For example http://127.0.0.1:8787, without a user's name."
        )
    return url

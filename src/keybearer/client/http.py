"""One HTTP client for the REST API: problem details become ``KeybearerError`` again."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httpx2

from keybearer.errors import FieldError, KeybearerError, Unavailable


class ApiError(KeybearerError):
    """The server refused the request."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        """``problem`` is the decoded RFC 9457 document, or empty if the answer was none."""
        super().__init__(
            str(problem.get("detail") or problem.get("title") or f"The server answered {status}."),
            hint=str(problem.get("hint") or ""),
            fields=tuple(FieldError(str(item["field"]), str(item["message"])) for item in problem.get("fields", ())),
        )
        self.http_status = status
        self.problem_code = str(problem.get("code") or "")


class Client:
    """``Client(url, token)``: ``url`` as in ``KEYBEARER_URL`` (without ``/api``), ``token`` a ``kb_…`` access token."""

    def __init__(self, url: str, token: str, *, timeout: float = 30.0) -> None:
        """``timeout`` in seconds for each request."""
        headers = {"accept": "application/json", "authorization": f"Bearer {token}"}
        self._http = httpx2.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout, follow_redirects=False)

    def request(self, method: str, path: str, *, json: object = None, query: dict[str, Any] | None = None) -> Any:
        """Send one request to ``/api/v1`` + ``path``; return the decoded answer. Raises ``ApiError`` or ``Unavailable``."""
        params = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            response = self._http.request(method, f"/api/v1{path}", json=json, params=params)
        except httpx2.TransportError as error:
            message = f"The server at {self._http.base_url} cannot be reached: {error}"
            raise Unavailable(message, hint="Is it running? KEYBEARER_URL names it.") from None
        body: Any = None
        if response.content and "json" in response.headers.get("content-type", ""):
            body = response.json()
        if response.status_code >= 300:  # noqa: PLR2004  # HTTP's own boundary
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

"""Asking an OAuth token endpoint: over ``Upstream``, held to the egress policy like any key on its way."""

from __future__ import annotations

from urllib.parse import urlsplit
from uuid import UUID

from keybearer import __version__
from keybearer.domain import SecretBytes
from keybearer.gateway.asking import ask
from keybearer.gateway.egress import origin_of
from keybearer.gateway.upstream import Target, Upstream, build_request

SECONDS = 20.0
MOST_BYTES = 128 * 1024


class TokenEndpoint:
    """One per process. No redirect is followed; nothing of the answer but status and body is looked at."""

    def __init__(self, upstream: Upstream, *, seconds: float = SECONDS) -> None:
        self._upstream = upstream
        self._seconds = seconds

    async def post(
        self, url: str, form: SecretBytes, authorization: SecretBytes | None, owner_id: UUID | None
    ) -> tuple[int, bytes]:
        """Status and body. ``owner_id``: who named the address; ``None``: an administrator.

        Raises ``Invalid`` for what is no URL, ``EgressRefused``, ``UpstreamError`` and its kinds.
        """
        parts = urlsplit(url)
        origin = origin_of(f"{parts.scheme}://{parts.netloc}")
        headers = [(b"content-type", b"application/x-www-form-urlencoded"), (b"accept", b"application/json")]
        headers += [(b"accept-encoding", b"identity"), (b"user-agent", f"keybearer/{__version__}".encode())]
        if authorization is not None:
            headers.append((b"authorization", authorization.reveal()))
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = build_request(b"POST", path.encode("ascii"), origin.authority, headers, form.reveal())
        answer = await ask(self._upstream, Target.of_owner(origin, owner_id), request, self._seconds, most=MOST_BYTES)
        return answer.whole().status, bytes(answer.body)

"""Posting signed messages to people's own addresses: over ``Upstream``, held to what users' addresses may be. No redirect is followed."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from keybearer import __version__
from keybearer.domain import SecretBytes
from keybearer.errors import UpstreamError, UpstreamGone
from keybearer.gateway.asking import ask
from keybearer.gateway.probe_webhook import address_of
from keybearer.gateway.standard_webhook import signed_headers
from keybearer.gateway.upstream import Target, Upstream, build_request

SECONDS = 15.0
"""As Standard Webhooks has it: 15 to 30."""
_GONE = 410


class HookPoster:
    """One per process. ``upstream`` holds to what users' addresses may be."""

    def __init__(self, upstream: Upstream, *, seconds: float = SECONDS) -> None:
        self._upstream = upstream
        self._seconds = seconds

    async def post(self, url: str, key: SecretBytes, message_id: str, body: bytes, owner_id: UUID) -> None:
        """Post one message; any answer of the 200s takes it. No error repeats a word of the answer, or the address's path.

        Raises ``UpstreamGone`` (410), ``UpstreamError`` and its kinds, ``EgressRefused``, ``Invalid`` for what is no address.
        """
        origin, path = address_of(url)
        headers = [(b"content-type", b"application/json"), (b"accept", b"*/*"), (b"accept-encoding", b"identity")]
        headers += [
            (b"user-agent", f"keybearer/{__version__}".encode()),
            *signed_headers(key, message_id, datetime.now(UTC), body),
        ]
        request = build_request(b"POST", path, origin.authority, headers, body)
        # Whether this is a private host that may be reached is this upstream's policy; nobody else shares the connection.
        answer = await ask(self._upstream, Target(origin, owner_id, admin_defined=True), request, self._seconds)
        if answer.whole().status == _GONE:
            raise UpstreamGone
        if not 200 <= answer.status < 300:  # noqa: PLR2004  # the class of success
            raise UpstreamError(f"{origin.host} answered with status {answer.status}.", hint="")

"""Asking an OAuth token endpoint: over ``Upstream``, held to the egress policy like any key on its way."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit
from uuid import UUID

from keybearer import __version__
from keybearer.domain import SecretBytes
from keybearer.errors import KeybearerError, UpstreamMalformed, UpstreamTimeout
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
        answer = _Answer(asyncio.get_running_loop().create_future())
        call = self._upstream.send(Target.of_owner(origin, owner_id), request, answer)
        try:
            async with asyncio.timeout(self._seconds):
                await answer.done
        except TimeoutError:
            raise UpstreamTimeout(f"{origin.host} did not answer within {self._seconds:g} seconds.") from None
        finally:
            call.abort()
        return answer.status, bytes(answer.body)


class _Answer:
    """The sink of such a call: keeps the body, up to a bound."""

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done
        self.status = 0
        self.body = bytearray()

    def may_send(self) -> None:
        """The lease was just taken, from a row that is not revoked."""

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:  # noqa: ARG002  # the seam's shape
        self.status = status

    def on_wait(self) -> None: ...

    def on_data(self, data: bytes, ended: bool) -> None:  # noqa: ARG002, FBT001  # the seam's shape
        if self.done.done():
            return
        self.body += data
        if len(self.body) > MOST_BYTES:
            self.done.set_exception(UpstreamMalformed(f"The token endpoint's answer is longer than {MOST_BYTES} bytes."))

    def on_complete(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def on_failure(self, error: KeybearerError, sent: bool) -> None:  # noqa: ARG002, FBT001  # the seam's shape
        if not self.done.done():
            self.done.set_exception(error)

"""Sending something of the deployment's own to a URL that its operator set: over ``Upstream``, held to the same egress policy."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from keybearer import __version__
from keybearer.errors import KeybearerError, UpstreamError, UpstreamTimeout
from keybearer.gateway.egress import origin_of
from keybearer.gateway.upstream import Target, Upstream, build_request

POST_SECONDS = 20.0
_HEADERS = ((b"content-type", b"text/plain; charset=utf-8"), (b"user-agent", f"keybearer/{__version__}".encode()))


class PostTarget:
    """A URL that texts are posted to. Raises ``Invalid`` for one that is none.

    Its path may be what gives the right to post, so no message repeats it.
    """

    def __init__(self, upstream: Upstream, url: str) -> None:
        self._upstream = upstream
        self._origin = origin_of(url)
        self._target = Target(self._origin, admin_defined=True)
        self._path = (urlsplit(url).path or "/").encode("ascii")

    async def push(self, note: str) -> None:
        """Post ``note``; any answer of the 200s takes it. Raises ``KeybearerError``."""
        request = build_request(b"POST", self._path, self._origin.authority, _HEADERS, note.encode())
        answer = _Status(asyncio.get_running_loop().create_future())
        call = self._upstream.send(self._target, request, answer)
        try:
            async with asyncio.timeout(POST_SECONDS):
                await answer.done
        except TimeoutError:
            raise UpstreamTimeout(f"{self._origin.host} did not answer within {POST_SECONDS:g} seconds.") from None
        finally:
            call.abort()
        if not 200 <= answer.status < 300:  # noqa: PLR2004  # the class of success
            raise UpstreamError(f"{self._origin.host} answered with status {answer.status}.")


class _Status:
    """The sink of such a call: its status is all that counts."""

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done
        self.status = 0

    def may_send(self) -> None:
        """Nobody's key leaves."""

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:  # noqa: ARG002  # the seam's shape
        self.status = status

    def on_wait(self) -> None: ...

    def on_data(self, data: bytes, ended: bool) -> None:  # noqa: FBT001  # the seam's shape
        """Ignore what it says."""

    def on_complete(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def on_failure(self, error: KeybearerError, sent: bool) -> None:  # noqa: ARG002, FBT001  # the seam's shape
        if not self.done.done():
            self.done.set_exception(error)

"""Sending something of the deployment's own to a URL that its operator set: over ``Upstream``, held to the same egress policy."""

from __future__ import annotations

from urllib.parse import urlsplit

from keybearer import __version__
from keybearer.errors import UpstreamError
from keybearer.gateway.asking import ask
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
        answer = await ask(self._upstream, self._target, request, POST_SECONDS)
        if not 200 <= answer.whole().status < 300:  # noqa: PLR2004  # the class of success
            raise UpstreamError(f"{self._origin.host} answered with status {answer.status}.")

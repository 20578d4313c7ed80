"""Who calls is asked before a body is read: what nobody may send is neither waited for, nor decoded.

FastAPI decodes a body before it asks a route's dependencies, so a stranger's half a megabyte would be parsed only to be refused.
Closed unless said otherwise: a route that takes bodies from strangers is named in ``OPEN``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from keybearer.api.authentication import SAFE_METHODS

OPEN = frozenset({"/api/v1/auth/setup", "/api/v1/auth/sign-in"})
"""What strangers may send bodies to: how they stop being strangers."""


class Gate:
    """Before a request that may bring a body to a path that ``covers`` says: ``ask``; what it raises is answered, the body unread.

    ``refusals`` are the exceptions by which ``ask`` refuses, ``answer`` turns one into a response.
    """

    def __init__(
        self,
        app: ASGIApp,
        covers: Callable[[str], bool],
        ask: Callable[[Request], Awaitable[object]],
        refusals: tuple[type[Exception], ...],
        answer: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        self.app = app
        self._covers = covers
        self._ask = ask
        self._refusals = refusals
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS and self._covers(scope["path"]):
            request = Request(scope)  # without ``receive``: whoever asks cannot read the body by mistake
            try:
                await self._ask(request)
            except self._refusals as refused:
                response = await self._answer(request, refused)
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def needs_caller(path: str) -> bool:
    """Whether a path is the API's, and not open to strangers."""
    return path.startswith("/api/") and path not in OPEN

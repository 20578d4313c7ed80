"""One request of Keybearer's own and its whole answer, over ``Upstream``: tests, token endpoints, webhooks, checkpoints.

What is a caller's is relayed instead (``exchange``). No redirect is followed; nothing of an answer but its status and body is looked at.
"""

from __future__ import annotations

import asyncio
from time import monotonic

from keybearer.errors import KeybearerError, UpstreamMalformed, UpstreamTimeout
from keybearer.gateway.upstream import Request, Target, Upstream


class Answer:
    """The sink of such a request. ``most``: bytes of its body that are kept; more are a failure, 0: none are."""

    def __init__(self, done: asyncio.Future[None], most: int) -> None:
        self.done = done
        self.status = 0
        self.body = bytearray()
        self.failure: KeybearerError | None = None
        """What kept the answer from coming."""
        self.latency_ms = 0.0
        self._most = most

    def whole(self) -> Answer:
        """The answer, if it came. Raises its failure."""
        if self.failure is not None:
            raise self.failure
        return self

    def may_send(self) -> None:
        """The key, if there is one, was opened for this very request."""

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:  # noqa: ARG002  # the seam's shape
        self.status = status

    def on_wait(self) -> None: ...

    def on_data(self, data: bytes, ended: bool) -> None:  # noqa: ARG002, FBT001  # the seam's shape
        if not self._most or self.done.done():
            return
        self.body += data
        if len(self.body) > self._most:
            self.done.set_exception(UpstreamMalformed(f"The answer is longer than {self._most} bytes."))

    def on_complete(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def on_failure(self, error: KeybearerError, sent: bool) -> None:  # noqa: ARG002, FBT001  # the seam's shape
        if not self.done.done():
            self.done.set_exception(error)


async def ask(
    upstream: Upstream, target: Target, request: Request, seconds: float, *, most: int = 0, is_head: bool = False
) -> Answer:
    """Send a request and take its answer in, or what kept it from coming within ``seconds``. ``most``: see ``Answer``."""
    answer = Answer(asyncio.get_running_loop().create_future(), most)
    started = monotonic()
    call = upstream.send(target, request, answer, head_only=is_head)
    try:
        async with asyncio.timeout(seconds):
            await answer.done
    except TimeoutError:
        answer.failure = UpstreamTimeout(f"{target.origin.host} did not answer within {seconds:g} seconds.")
    except KeybearerError as error:
        answer.failure = error
    finally:
        call.abort()
    answer.latency_ms = (monotonic() - started) * 1000
    return answer

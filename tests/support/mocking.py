"""A mock provider for tests: fixture ``mock_provider`` in the test's own event loop, or one in a thread for blocking tests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import pytest

from keybearer.mock import MockProvider, Options, start


@pytest.fixture
async def mock_provider() -> AsyncIterator[MockProvider]:
    """A mock provider that accepts any ``kbtest-`` key and records what it is sent."""
    provider = await start()
    yield provider
    await provider.close()


@contextmanager
def mock_provider_in_thread(options: Options | None = None) -> Iterator[MockProvider]:
    """A mock provider with an event loop of its own, for tests that block: browsers, subprocesses, synchronous SDKs."""
    started: list[MockProvider] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        provider = await start(options=options)
        started.append(provider)
        ready.set()
        await stop.wait()
        await provider.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="mock-provider")
    thread.start()
    try:
        assert ready.wait(10), "the mock provider did not start"
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for what happens soon, without a fixed sleep. Fails the test if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(0.005)

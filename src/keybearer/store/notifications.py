"""PostgreSQL's LISTEN, on a connection of its own that does not go through a pooler."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import psycopg

from keybearer.store import engine as engines


async def listen(direct_url: str, channel: str, heard: Callable[[], None]) -> None:
    """Call ``heard`` at every notification on ``channel``; return when the connection cannot be made, or is lost."""
    _, url = engines.parse(direct_url)
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with suppress(psycopg.Error, OSError):
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=5) as connection:
            await connection.execute(f"LISTEN {channel}")
            async for _ in connection.notifies():
                heard()

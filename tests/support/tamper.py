"""Whoever has the whole database in their hands: no roles, no policies, no code of ours between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

Tamper = Callable[[sa.Executable], Awaitable[None]]


def tamper_with(url: sa.URL) -> Tamper:
    """Execute a statement in the database of ``url`` and commit."""

    async def execute(statement: sa.Executable) -> None:
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.execute(statement)
        await engine.dispose()

    return execute

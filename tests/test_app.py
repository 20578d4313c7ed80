"""One worker process from its start to its end, without a socket."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from keybearer import app, config
from keybearer.gateway.protocol import PLANE


async def test_what_waits_at_the_end_is_cancelled_while_the_services_still_work(tmp_path: Path) -> None:
    settings = config.load(data_dir=tmp_path / "data", port=0)
    start = await app.prepare(settings)
    start.listener.close()
    application = app.create(start.settings)
    ended: list[str] = []
    begun = asyncio.Event()
    async with application.router.lifespan_context(application) as state:
        assert state is not None
        services, plane = state["services"], state[PLANE]

        async def waits() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await services.db.ping()
                ended.append("with the database open")

        plane.spawn(asyncio.get_running_loop(), waits())
        await begun.wait()
    assert ended == ["with the database open"]


def test_a_server_does_not_hold_in_memory_what_few_need() -> None:
    few_need = ("alembic", "boto3", "botocore", "google.cloud", "grpc", "psycopg", "redis")
    ask = f"import sys, keybearer.app; print([name for name in {few_need} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""One worker process from its start to its end, without a socket."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from keybearer import app, config
from keybearer.catalog import custom
from keybearer.domain import SecretBytes
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


async def test_names_that_users_choose_leave_threads_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop has four that look names up: slow name servers of connection strings, webhooks and providers occupied them all."""
    asked: list[str] = []
    answer = asyncio.Event()

    async def slow(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        await answer.wait()
        raise socket.gaierror

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", slow)
    start = await app.prepare(config.load(data_dir=tmp_path / "data", port=0))
    start.listener.close()
    async with app.open_services(start.settings) as services:
        providers, owner = services.catalog.providers, uuid4()
        mine = custom("mine", "Mine", "https://mine.example", "bearer", "", [], owner)
        tests = [
            services.prober.test(providers["postgresql"], SecretBytes(b"postgres://u:kbtest@a.example/d"), (), owner),
            services.prober.test(providers["mysql"], SecretBytes(b"mysql://u:kbtest@b.example/d"), (), owner),
            services.prober.test(providers["webhook"], SecretBytes(b"https://c.example/kbtest"), (), owner),
            services.prober.test(providers["webhook"], SecretBytes(b"https://d.example/kbtest"), (), owner),
            services.prober.test(mine, SecretBytes(b"kbtest-key"), ("https://mine.example:443",), owner),
        ]
        running = [asyncio.create_task(test) for test in tests]
        await asyncio.sleep(0.2)
        assert len(asked) == 2
        answer.set()
        assert {result.status for result in await asyncio.gather(*running)} == {"dns"}
        assert len(asked) == len(tests)


def test_a_server_does_not_hold_in_memory_what_few_need() -> None:
    few_need = ("alembic", "boto3", "botocore", "google.cloud", "grpc", "psycopg", "redis")
    ask = f"import sys, keybearer.app; print([name for name in {few_need} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

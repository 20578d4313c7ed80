"""What calls had reserved when their process was killed counts in full, and what was settled is what it was."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from tests.limits.conftest import SCOPES, World, settled
from tests.support import server as servers
from tests.support.provider import Provider

SLOW = "anthropic/claude-sonnet-4-5-mock-slow-30s"


def test_the_count_survives_kill_9(provider: Provider, tmp_path: Path, database_urls: tuple[str, str]) -> None:
    settings = {"egress_allow": "127.0.0.1", "database_url": database_urls[0], "database_direct_url": database_urls[1]}
    with servers.running(tmp_path / "data", **settings) as server:
        world = World(server, provider, servers.set_up(server))
        world.admin.call("PUT", "/providers/anthropic", json={"base_url": provider.base_url("anthropic")})
        ada = world.person()
        token = ada.token(scopes=SCOPES)
        made = ada.call("POST", "/budgets", json={"subject": "user", "kind": "usd_month", "amount": 5})
        servers.heard(ada)
        assert world.ask(token, "anthropic/claude-sonnet-4-5").status_code == 200
        used = settled(ada, made)["used"]
        assert used > 0

        def call() -> None:
            with contextlib.suppress(httpx2.TransportError):
                world.ask(token, SLOW, max_tokens=1000)

        with ThreadPoolExecutor() as pool:
            before = world.heard()
            calls = [pool.submit(call) for _ in range(3)]
            world.until_heard(before + 3)
            held = ada.call("GET", f"/budgets/{made['id']}")["reserved"]
            assert held > 0
            server.kill()
            for each in calls:
                each.result()
    with servers.running(tmp_path / "data", **settings) as server:
        shown = servers.program(server, token).call("GET", f"/budgets/{made['id']}")
        assert shown["used"] == pytest.approx(used)
        assert shown["reserved"] == pytest.approx(held)
        assert shown["remaining"] == pytest.approx(5 - used - held)

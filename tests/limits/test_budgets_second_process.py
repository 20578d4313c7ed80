"""Without Valkey one process counts: a second on the same database refuses what is limited, until the first is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.limits.conftest import SCOPES, World
from tests.support import server as servers
from tests.support.postgresql import Server as PostgreSQL
from tests.support.provider import Provider
from tests.support.server import until


def test_one_process_counts_and_the_next_goes_on_where_it_ended(
    provider: Provider, postgresql_server: PostgreSQL, tmp_path: Path
) -> None:
    url, direct = postgresql_server.create("kbtest_budget_second")
    settings = {"egress_allow": "127.0.0.1", "database_url": url, "database_direct_url": direct}
    with servers.running(tmp_path / "one", **settings) as first:
        world = World(first, provider, servers.set_up(first))
        world.admin.call("PUT", "/providers/openai", json={"base_url": provider.base_url("openai")})
        ada, bob = world.person(), world.person()
        token, free = ada.token(scopes=SCOPES), bob.token(scopes=SCOPES)
        made = ada.call("POST", "/budgets", json={"subject": "user", "kind": "usd_month", "amount": 5})
        until(lambda: world.ask(token), lambda answer: answer.status_code == 200)
        (tmp_path / "two").mkdir(mode=0o700)
        shutil.copy2(tmp_path / "one" / "root.key", tmp_path / "two" / "root.key")
        with servers.running(tmp_path / "two", **settings) as second:
            there = World(second, provider, servers.sign_in(second, "ada@example.com"))
            # The first goes on; the second serves what has no limit, and says what to do about the rest.
            assert world.ask(token).status_code == 200
            assert until(lambda: there.ask(free), lambda answer: answer.status_code == 200)
            refused = there.ask(token)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "limits_unshared")
            assert "KEYBEARER_REDIS_URL" in refused.json()["error"]["hint"]
            assert there.admin.call("POST", "/budgets", json={"subject": "user", "kind": "usd_day", "amount": 1}, status=409)
            assert "another process" in second.log.read_text()
            used = ada.call("GET", f"/budgets/{made['id']}")["used"]
            assert used > 0
            first.stop()
            # It takes over, with what the first has counted.
            until(lambda: there.ask(token), lambda answer: answer.status_code == 200)
            shown = servers.program(second, token).call("GET", f"/budgets/{made['id']}")
            assert shown["used"] + shown["reserved"] > used
    postgresql_server.drop("kbtest_budget_second")

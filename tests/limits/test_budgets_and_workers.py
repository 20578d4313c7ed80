"""Several workers would each count for themselves: said where a limit is set, and at a start with limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import server as servers
from tests.support.postgresql import Server as PostgreSQL

LIMIT = {"subject": "user", "kind": "usd_day", "amount": 1}


def test_limits_and_several_workers_exclude_each_other(postgresql_server: PostgreSQL, tmp_path: Path) -> None:
    url, direct = postgresql_server.create("kbtest_budget_workers")
    settings = {"database_url": url, "database_direct_url": direct}
    with servers.running(tmp_path / "data", "--workers", "2", **settings) as server:
        ada = servers.set_up(server)
        refused = ada.call("POST", "/budgets", json=LIMIT, status=409)
        assert "worker" in refused["hint"]
        assert ada.call("GET", "/budgets")["items"] == []
    with servers.running(tmp_path / "data", **settings) as server:
        ada = servers.sign_in(server, "ada@example.com")
        made = ada.call("POST", "/budgets", json=LIMIT)
        environment = server.environment
    command = [sys.executable, "-m", "keybearer", "serve", "--port", "0", "--workers", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "error: Budgets and limits are set" in done.stderr
    assert "hint: " in done.stderr
    with servers.running(tmp_path / "data", **settings) as server:
        ada = servers.sign_in(server, "ada@example.com")
        assert ada.call("GET", f"/budgets/{made['id']}")["remaining"] == 1
    postgresql_server.drop("kbtest_budget_workers")

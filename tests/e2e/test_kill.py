"""`kill -9` under load, twenty times: each answered call has its journal line and its database row, once."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from pathlib import Path

from tests.e2e.conftest import settle
from tests.support import server as servers
from tests.support.load import CALLERS, Load, journal_lines
from tests.support.provider import Provider
from tests.support.server import Server

ROUNDS = 20


def database_rows(data_dir: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each request id stands among the audit's uses, and among the usage records."""
    with sqlite3.connect(f"file:{data_dir / 'keybearer.db'}?mode=ro", uri=True) as db:
        uses = Counter(row[0] for row in db.execute("select request_id from audit_record where kind = 'use'"))
        usage = Counter(row[0] for row in db.execute("select request_id from usage_record"))
    return uses, usage


def wait_until_shipped(server: Server, expected: set[str]) -> None:
    deadline = time.monotonic() + 30
    while not expected <= set(database_rows(server.data_dir)[1]):
        assert time.monotonic() < deadline, f"{len(expected - set(database_rows(server.data_dir)[1]))} rows are missing"
        time.sleep(0.1)


def test_nothing_answered_is_lost_to_kill_9(provider: Provider, data_dir: Path) -> None:
    answered: list[str] = []
    token = ""
    for number in range(ROUNDS):
        with servers.running(data_dir, egress_allow="127.0.0.1") as server:
            token = token or settle(server, provider).token
            load = Load(server.url, token)
            load.start()
            time.sleep(0.25 + 0.05 * (number % 5))
            server.kill()
            load.end()
            answered += load.answered
    assert len(answered) > ROUNDS * CALLERS
    with servers.running(data_dir, egress_allow="127.0.0.1") as server:
        wait_until_shipped(server, set(answered))
        uses, usage = database_rows(data_dir)
        lines = journal_lines(data_dir)
        for request_id in answered:
            assert lines[request_id] == 1
            assert uses[request_id] == 1
            assert usage[request_id] == 1
        assert max(uses.values()) == 1
        assert '"ok": true' in server.cli("audit", "verify", "--json").stdout

"""`kill -9` under load with two workers on PostgreSQL: one worker, the one that watches them, and all of them."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import sqlalchemy as sa
from tests.e2e.conftest import settle
from tests.support import server as servers
from tests.support.load import CALLERS, Load, journal_lines
from tests.support.postgresql import Server as PostgreSQL
from tests.support.provider import Provider
from tests.support.server import Server


def workers(server: Server) -> set[int]:
    """The processes that answer: the children of the one that was started, but for multiprocessing's own helper."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if entry.name.isdigit() else 0
            if parent == server.process.pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def two_workers(server: Server, begun: int = 2) -> set[int]:
    """Wait until two are at work; ``begun``: how many have begun a journal, counting those that were killed."""
    deadline = time.monotonic() + 20
    while len(found := workers(server)) < 2 or server.log.read_text().count("journal_opened") < begun:
        assert time.monotonic() < deadline, f"{found}: {server.log.read_text()}"
        time.sleep(0.05)
    return found


def has_ended(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def database_rows(postgresql: PostgreSQL, url: str) -> tuple[Counter[str], Counter[str]]:
    """How often each request id stands among the audit's uses, and among the usage records."""
    with postgresql.connect(sa.make_url(url).database) as db:
        uses = Counter(row[0] for row in db.execute("select request_id from audit_record where kind = 'use'"))
        usage = Counter(row[0] for row in db.execute("select request_id from usage_record"))
    return uses, usage


def kill_all(server: Server) -> None:
    """End a server's processes at once, as the kernel would: it has no time to say anything to anybody."""
    doomed = workers(server)
    server.process.send_signal(signal.SIGSTOP)  # or it would start another worker in the meantime
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    server.kill()


def test_nothing_answered_is_lost_when_workers_or_all_are_killed(
    provider: Provider, data_dir: Path, postgresql_urls: tuple[str, str], postgresql_server: PostgreSQL
) -> None:
    url, direct = postgresql_urls
    settings = {"egress_allow": "127.0.0.1", "database_url": url, "database_direct_url": direct}
    answered: list[str] = []
    with servers.running(data_dir, "--workers", "2", **settings) as server:
        token = settle(server, provider).token
        for begun in (2, 3):  # one worker under load: the other goes on, and a new one comes
            victim = min(two_workers(server, begun))
            load = Load(server.url, token, persistent=True)
            load.start()
            time.sleep(0.4)
            os.kill(victim, signal.SIGKILL)
            before = len(load.answered)
            two_workers(server, begun + 1)
            load.end()
            assert len(load.answered) > before, "nobody answered while a worker was missing"
            answered += load.answered
        load = Load(server.url, token)
        load.start()
        time.sleep(0.4)
        kill_all(server)
        load.end()
        answered += load.answered
    with servers.running(data_dir, "--workers", "2", **settings) as server:
        left = two_workers(server, 6)
        load = Load(server.url, token)
        load.start()
        time.sleep(0.4)
        server.kill()  # the one that watches the workers: they end with it, and do not hold the port
        deadline = time.monotonic() + 20
        while lingering := {pid for pid in left if not has_ended(pid)}:
            if time.monotonic() > deadline:
                for pid in lingering:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(server.log.read_text())
            time.sleep(0.05)
        load.end()
        answered += load.answered
    assert len(answered) > 4 * CALLERS
    with servers.running(data_dir, "--workers", "2", **settings) as server:
        deadline = time.monotonic() + 30
        while missing := set(answered) - set(database_rows(postgresql_server, url)[1]):
            assert time.monotonic() < deadline, f"{len(missing)} rows are missing"
            time.sleep(0.1)
        lines = journal_lines(data_dir)
        uses, usage = database_rows(postgresql_server, url)
        for request_id in answered:
            assert (lines[request_id], uses[request_id], usage[request_id]) == (1, 1, 1)
        assert max(uses.values()) == max(usage.values()) == 1
        assert '"ok": true' in server.cli("audit", "verify", "--json").stdout

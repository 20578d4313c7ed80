"""List and search one owner's 1,000 secrets among a million, on a PostgreSQL of its own: ``python -m bench.listing [owners]``.

Rows are made in bulk and hold no value that opens: listings never open one. Prints the 50th and 95th percentile of each query, row
MACs and row-level security included.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

import psycopg
import sqlalchemy as sa
from tests.support.postgresql import OWNER, RUNTIME, shared_server
from tests.support.vault import world_on

from keybearer.access.policy import scopes_of
from keybearer.domain import Caller, Role, SecretType
from keybearer.store.db import Database, migrate
from keybearer.vault.secrets import SecretFilter

EACH = 1000
ROUNDS = 60

ROWS = """
INSERT INTO owner SELECT lpad(to_hex(o), 32, '0')::uuid, 'user', now() FROM generate_series(1, %(owners)s) o;
INSERT INTO secret (id, owner_id, owner_kind, provider, secret_type, name, preview, description, tags, is_active, priority,
    fetchable, egress, expires_at, state, state_reason, version, created_by, created_at, updated_at, usage_count, mac, deleted_at)
SELECT ('01a1fdb5-0000-7' || lpad(to_hex(o %% 4096), 3, '0') || '-8000-' || lpad(to_hex(o * 100000 + n), 12, '0'))::uuid,
    lpad(to_hex(o), 32, '0')::uuid, 'user', (ARRAY['openai', 'anthropic', 'gemini', 'xai', 'mistral'])[1 + n %% 5], 'api_key',
    'key ' || n, 'sk-p…mnop', 'of project ' || n %% 40, jsonb_build_array('tag' || n %% 20), n %% 10 <> 0, 100, false,
    '["https://api.openai.com:443"]', CASE WHEN n %% 7 = 0 THEN now() + interval '3 days' END, 'ok', '', 1,
    lpad(to_hex(o), 32, '0')::uuid, now(), now(), 0, '\\x00', NULL
FROM generate_series(1, %(owners)s) o, generate_series(1, %(each)s) n;
"""

SEARCHES = {
    "first page of 50": SecretFilter(),
    "by provider": SecretFilter(provider="xai"),
    "by name": SecretFilter(name="key 777"),
    "by tag": SecretFilter(tag="tag7"),
    "by text, rare": SecretFilter(text="KEY 999"),
    "by text, none": SecretFilter(text="no such thing"),
    "by type": SecretFilter(secret_type=SecretType.CUSTOM),
    "expiring": SecretFilter(state="expiring"),
    "inactive": SecretFilter(state="inactive"),
    "deleted": SecretFilter(state="deleted"),
}


async def measure(urls: tuple[str, str], owners: int) -> None:
    """Time each search for owners all over the table, and a walk over all pages of one."""
    db = await Database.open(*urls)
    secrets = (await world_on(db)).secrets
    print(f"{owners * EACH:,} secrets of {owners:,} owners")
    for name, wanted in SEARCHES.items():
        times = []
        for number in range(ROUNDS):
            caller = _caller(1 + number * 37 % owners)
            began = time.perf_counter()
            page = await secrets.list(caller, wanted)
            times.append((time.perf_counter() - began) * 1000)
        print(f"{name:20} {len(page.items):3} rows  p50 {statistics.median(times):6.2f} ms  p95 {_p95(times):6.2f} ms")
    cursor, times = None, []
    while True:
        began = time.perf_counter()
        page = await secrets.list(_caller(owners // 2), None, cursor, 100)
        times.append((time.perf_counter() - began) * 1000)
        cursor = page.next_cursor
        if cursor is None:
            break
    print(f"{'pages of 100':20} {len(times):3} pages p50 {statistics.median(times):6.2f} ms  p95 {_p95(times):6.2f} ms")
    await db.close()


def _caller(number: int) -> Caller:
    return Caller(UUID(int=number), Role.MEMBER, scopes_of(Role.MEMBER))


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def main() -> None:
    """Make the database, fill it, measure."""
    owners = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as directory:
        server = shared_server(Path(directory), os.getpid())
        server.create("bench_listing")
        urls = (server.url("bench_listing", RUNTIME), server.url("bench_listing", OWNER))
        asyncio.run(migrate(*urls))
        dsn = sa.make_url(server.admin).set(database="bench_listing", drivername="postgresql")
        with psycopg.connect(dsn.render_as_string(hide_password=False), autocommit=True) as admin:
            statements = ROWS % {"owners": owners, "each": EACH}
            admin.execute(statements.encode())
            admin.execute("VACUUM ANALYZE secret, owner")
        asyncio.run(measure(urls, owners))


if __name__ == "__main__":
    main()

"""Sealing and verifying the audit trail: as many records as a busy day brings, written, shipped, sealed, verified and archived.

No peer has anything like it, so the figures stand alone. ``python -m bench.seal`` measures another database than SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from keybearer.audit import archive, verify
from keybearer.audit.journal import Journal
from keybearer.audit.seal import Sealer
from keybearer.audit.sealed import verify_tree
from keybearer.audit.ship import Shipper
from keybearer.crypto.keyring import Keyring
from keybearer.crypto.kms import env
from keybearer.domain import Client, KeySource, OutcomeRecord, Owner, OwnerKind, Usage, UseRecord
from keybearer.store.db import Database, migrate

if TYPE_CHECKING:
    from bench.peers import Peer
    from bench.scenarios import Effort, Metric

RECORDS = 1_000_000
_AT_ONCE = 20_000
"""Calls written before they are shipped."""


def seal_trail(peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """Records a second sealed and signed, and verified, on SQLite."""
    from bench.scenarios import Metric  # noqa: PLC0415  # which lists this scenario

    if not any(peer.name == "keybearer" for peer in peers):
        return []
    count = RECORDS if effort.rounds >= 5 else RECORDS // 20
    with tempfile.TemporaryDirectory(prefix="keybearer-bench-seal-") as directory:
        url = f"sqlite+aiosqlite:///{directory}/keybearer.db"
        seconds = asyncio.run(measure((url, ""), Path(directory), count))
    metrics = []
    for what, took in seconds.items():
        metric = Metric(f"{what}, {count:,} audit records, SQLite", "s", False)
        metric.add("keybearer", took)
        metrics.append(metric)
    return metrics


async def measure(urls: tuple[str, str], directory: Path, count: int) -> dict[str, float]:
    """Return how many seconds each step took."""
    await migrate(*urls)
    db = await Database.open(*urls)
    keyring = await Keyring.open(db, env.parse(base64.b64encode(os.urandom(32)).decode()))
    await _write(db, directory / "journal", count // 2)
    sealer = Sealer(db, keyring)
    seconds = {}
    began = time.perf_counter()
    sealed = await sealer.seal(rests=False)
    seconds["seal and sign"] = time.perf_counter() - began
    assert sealed >= count
    began = time.perf_counter()
    report = await verify_tree(db, await sealer.verifier())
    seconds["verify the sealed tree"] = time.perf_counter() - began
    assert not report.problems
    began = time.perf_counter()
    (await verify.verify(db, directory / "journal")).require()
    seconds["verify chains, columns, usage and journals"] = time.perf_counter() - began
    began = time.perf_counter()
    with (directory / "archive").open("wb") as file:
        async for chunk in archive.write(db, await sealer.verifier()):
            file.write(chunk)
    seconds["write an archive"] = time.perf_counter() - began
    began = time.perf_counter()
    with (directory / "archive").open("rb") as file:
        assert not archive.verify(file, await sealer.verifier())[0].problems
    seconds["verify an archive"] = time.perf_counter() - began
    await db.close()
    return seconds


async def _write(db: Database, directory: Path, calls: int) -> None:
    """A journal of so many calls, shipped to the database: what there is to seal."""
    journal = await Journal.open(db, directory, "journal")
    shipper = Shipper(db, directory, journal, keep=None)
    user, secrets = uuid4(), [uuid4() for _ in range(100)]
    for number in range(calls):
        request_id = f"kbtest{number:026x}"
        secret = secrets[number % len(secrets)]
        owner, client = Owner(OwnerKind.USER, user), Client("198.51.100.7", "openai-python/2.0")
        at = time.time()
        use = UseRecord(
            request_id=request_id,
            at=at,
            user_id=user,
            token_id="kbtest123456",
            secret_id=secret,
            secret_version=1,
            owner=owner,
            source=KeySource.USER,
            provider="openai",
            model="gpt-5-mini",
            operation="chat.completions",
            streamed=True,
            workflow="nightly",
            node="summary",
            client=client,
        )
        journal.use(use)
        journal.outcome(OutcomeRecord(request_id, at, 200, "ok", 12.5, 3.25, Usage(100, 20, 10, None, 5), 1234))
        if number % _AT_ONCE == _AT_ONCE - 1:
            journal.flush()
            await shipper.ship_own()
    await journal.close()
    while await shipper.ship_once():
        pass


def main() -> None:
    """Measure a database of one's own, which should be empty."""
    parser = argparse.ArgumentParser(prog="python -m bench.seal", description="Seal and verify audit records.")
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--url", default="", help="the runtime role's; default: SQLite in a temporary directory")
    parser.add_argument("--direct-url", default="", help="the owner's")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keybearer-bench-seal-") as directory:
        urls = (given.url or f"sqlite+aiosqlite:///{directory}/keybearer.db", given.direct_url)
        for what, took in asyncio.run(measure(urls, Path(directory), given.records)).items():
            print(f"{what}: {took:.1f} s for {given.records:,} records ({given.records / took:,.0f}/s)")


if __name__ == "__main__":
    main()

"""A process that starts writers to be killed: it imports once, and forks for each line on its standard input.

Lines: ``write`` or ``ship``. Answers with the new process's id. A writer appends the id of each request to ``acknowledged`` after
``use`` has returned for it, and ships all the while; a shipper ships once and ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from uuid import UUID

from tests.audit.audit_samples import Person, outcome

from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.store.db import Database


async def write(urls: list[str], directory: Path, who: Person) -> None:
    database = await Database.open(*urls)
    journal = await Journal.open(database, directory / "journal", "journal", segment_bytes=50_000)
    shipper = Shipper(database, directory / "journal", journal)
    acknowledged = os.open(directory / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def ship() -> None:
        while True:
            await shipper.ship_once()
            await asyncio.sleep(0.01)

    shipping = asyncio.create_task(ship())
    for number in range(1_000_000):
        request_id = f"{os.getpid()}-{number}"
        journal.use(who.use(request_id))
        os.write(acknowledged, request_id.encode() + b"\n")
        if number % 3:
            journal.outcome(outcome(request_id))
        if number % 5 == 0:
            await asyncio.sleep(0.001)
    await shipping


async def ship(urls: list[str], directory: Path) -> None:
    database = await Database.open(*urls)
    await Shipper(database, directory / "journal", None).ship_once()
    await database.close()


def main() -> None:
    given = json.loads(sys.argv[1])
    directory = Path(given["directory"])
    who = Person(UUID(given["user_id"]), UUID(given["secret_id"]), given["token_id"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    os.write(1, b"ready\n")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # logs are no answers
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            work = write(given["urls"], directory, who) if line == "write\n" else ship(given["urls"], directory)
            asyncio.run(work)
            os._exit(0)
        os.write(1, b"%d\n" % child)


if __name__ == "__main__":
    main()

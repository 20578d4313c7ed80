"""A process of its own for the stories of rotation: it works on one and dies at a step, or seals when it is told to.

``rotate URL DIRECT_URL KIND STEP WHEN``  begin or go on with a rotation, and die by SIGKILL at STEP: ``within`` its transaction,
                                          after everything was written, or ``after`` it; ``WHEN`` may say in which turn of the step
``seal URL DIRECT_URL OWNER``             open the keyring, say ``ready``, seal for OWNER at each line of standard input
``hold URL DIRECT_URL OWNER``             likewise, but say ``locked`` inside the transaction and wait for another line there
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from tests.crypto import make_vectors

from keybearer.crypto.keyring import Binding, Keyring
from keybearer.crypto.kms import Wrapper, env
from keybearer.errors import KeybearerError
from keybearer.store.db import Actor, Database
from keybearer.store.queries import rotations as rows
from keybearer.vault import rotate
from keybearer.vault.rotate import Rotations

ROOT = make_vectors.draw("wrapping key of rotation's tests")


def find(_provider: str) -> Wrapper:
    return env.parse(ROOT.hex())


async def opened(url: str, direct_url: str) -> tuple[Database, Keyring]:
    db = await Database.open(url, direct_url)
    return db, await Keyring.open(db, find("env"), find)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def work(url: str, direct_url: str, kind: str, step: str, when: str) -> None:
    db, keyring = await opened(url, direct_url)
    rotate.LEASE = timedelta(0)  # whoever comes next need not wait
    rotations = Rotations(db, keyring, find, batch=3)
    begun = await rotations.under_way()
    if begun is None:
        begun = await (rotations.begin_root(None) if kind == "root" else rotations.begin_owners(None))
    original, turns = rotations._steps[step], 0
    at, _, turn = when.partition(":")

    async def dying(row: Any) -> bool:
        nonlocal turns
        turns += 1
        if turns < int(turn or 1):
            return await original(row)
        if at == "within":
            update = rows.update

            async def last_word(*arguments: Any) -> None:
                await update(*arguments)
                die()

            rows.update = last_word  # type: ignore[assignment]  # this process dies of it
        await original(row)
        die()
        return False

    rotations._steps[step] = dying
    await rotations.finish(begun)


async def seal(url: str, direct_url: str, owner: UUID, *, hold: bool) -> None:
    db, keyring = await opened(url, direct_url)
    async with db.read(Actor.user(owner)) as tx:  # the owner's key is in memory, if there is one
        await keyring.open_keys(tx, [], owner)
    say("ready")
    lines = asyncio.Queue[str]()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, lambda: lines.put_nowait(sys.stdin.readline()))
    while await lines.get() != "end\n":
        try:
            async with db.write(Actor.user(owner)) as tx:
                key = await keyring.sealing_key(tx, owner)
                keyring.seal(key, Binding(uuid4(), 1, "value"), b"kbtest")
                if hold:
                    say("locked")
                    await lines.get()
            say(f"sealed {key.id}")
        except KeybearerError as error:
            say(f"refused {error.code}")
    await db.close()


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "rotate":
        asyncio.run(work(*given))
    else:
        asyncio.run(seal(given[0], given[1], UUID(given[2]), hold=what == "hold"))

"""Opening a sealed value: derive its key, check the commitment, decrypt. One thread, 100 bytes, a thousand different secrets in turn.

No peer does the same, so the figure stands alone.
"""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from bench.peers import Peer
from bench.scenarios import Effort, Metric
from keybearer.crypto.keyring import Binding, Keyring
from keybearer.crypto.kms import env
from keybearer.domain import SYSTEM_OWNER_ID
from keybearer.store.db import Actor, Database, migrate

SUBJECT = "keybearer"
SECRETS = 1_000
VALUE = b"sk-proj-kbtest-" + b"0" * 85


def opening(_peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """Secrets opened a CPU second."""
    metric = Metric("a 100-byte secret opened (secrets per CPU second)", "secrets/s", True)
    with tempfile.TemporaryDirectory(prefix="keybearer-bench-open-") as directory:
        asyncio.run(_measure(Path(directory), effort, metric))
    return [metric]


async def _measure(directory: Path, effort: Effort, metric: Metric) -> None:
    url = f"sqlite+aiosqlite:///{directory}/keybearer.db"
    await migrate(url, "")
    db = await Database.open(url)
    try:
        keyring = await Keyring.open(db, env.parse(base64.b64encode(os.urandom(32)).decode()))
        async with db.write(Actor.system()) as tx:
            key = await keyring.sealing_key(tx, SYSTEM_OWNER_ID)
        bindings = [Binding(uuid4(), 1, "value", ("https://api.openai.com:443",)) for _ in range(SECRETS)]
        sealed = [(binding, keyring.seal(key, binding, VALUE)) for binding in bindings]
        for _ in range(effort.rounds):
            opened, began, until = 0, time.process_time(), time.monotonic() + effort.seconds
            while time.monotonic() < until:
                for binding, envelope in sealed:
                    keyring.unseal(key, binding, envelope)
                opened += SECRETS
            metric.add(SUBJECT, opened / (time.process_time() - began))
    finally:
        await db.close()

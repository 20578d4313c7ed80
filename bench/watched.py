"""``python -m bench.watched FILE serve …``: the server itself, which writes into FILE what it holds whenever it gets SIGUSR1.

For ``bench.soak``: nothing of the server is changed but that its plane, once made, is remembered here. Works for one worker.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from keybearer import app, cli
from keybearer.gateway.plane import Plane
from keybearer.services import Services
from keybearer.store.db import Actor
from keybearer.store.queries import audit


class Watched(Plane):
    """The process's plane, which says what is there when asked."""

    figures = Path(os.devnull)
    _asked: set[asyncio.Task[None]]

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._asked = set()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._on_signal)

    def _on_signal(self) -> None:
        task = asyncio.get_running_loop().create_task(self._write(), name="figures")
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _write(self) -> None:
        journal = self.services.journal
        async with self.services.db.read(Actor.system()) as tx:
            writer = await audit.writer(tx, journal.writer)
        cycles = gc.collect()
        objects = Counter(type(found).__name__ for found in gc.get_objects())
        tasks = [task for task in asyncio.all_tasks() if task not in self._asked]
        kinds = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in tasks)
        found = {
            "tasks": len(tasks),
            "task_kinds": dict(kinds),
            "waiting": len(self._tasks),
            "held_bytes": self.budget.held,
            "upstream_open": self.upstream.open_connections,
            "upstream_idle": self.upstream.idle_connections,
            "written": journal.seq,
            "shipped": 0 if writer is None else writer.shipped_seq,
            "cycles": cycles,
            "objects": sum(objects.values()),
            "most": dict(objects.most_common(12)),
        }
        partial = self.figures.with_suffix(".partial")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(self.figures)


def main() -> None:
    """Serve as the command line says."""
    Watched.figures = Path(sys.argv.pop(1))
    setattr(app, "Plane", Watched)  # noqa: B010  # mypy: a name of another module
    cli.main()


if __name__ == "__main__":
    main()

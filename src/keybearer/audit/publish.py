"""Checkpoints in a file of their own: appended, never rewritten, so that it may lie where nothing can be taken back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from keybearer.errors import Unavailable


class CheckpointFile:
    """A file that grows by one note for each checkpoint, with an empty line after it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def push(self, note: str) -> None:
        """Append ``note`` and have it on disk. Raises ``Unavailable``."""
        try:
            await asyncio.to_thread(_append, self._path, note.encode() + b"\n")
        except OSError as error:
            raise Unavailable(f"The checkpoint could not be written to {self._path}: {error.strerror}.") from error


def _append(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(None, "the disk is full")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Core dumps, in a process of its own: what it switches off stays off."""

from __future__ import annotations

import subprocess
import sys

PR_GET_DUMPABLE = 3

SCRIPT = f"""
import ctypes, resource, sys
from keybearer.crypto.memory import forbid_core_dumps

def dumpable():
    return ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}, 0, 0, 0, 0) if sys.platform == "linux" else "unknown"

print(dumpable())
forbid_core_dumps()
print(dumpable(), resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_core_dumps_are_off() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, env={"PYTHONPATH": "src"})
    before, after = ("1", "0") if sys.platform == "linux" else ("unknown", "unknown")
    assert done.stdout.splitlines() == [before, f"{after} (0, 0)"]

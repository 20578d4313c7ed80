"""Print the Python to install with: ``python3``, or another on the path that is more than a tenth faster.

A Python that was built without profile-guided optimisation, as pyenv builds it unless asked, takes up to 1.4 times as long for a call.
Whether one was is not written where all of them have it, so their time is taken: a tenth of a second each. Runs on Python 3.7 and newer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
FASTER = 1.1
"""How many times as fast another must be to be taken instead."""
TRIES = 4
_PROBE = """
import ensurepip, json, sys, time, venv
class Call:
    def __init__(self, size):
        self.size = size
    def weigh(self, fields):
        return sum(len(value) for name, value in fields.items() if name != "size") + self.size
def work():
    for size in range(3000):
        Call(size).weigh({"name": "value", "size": "", "kind": str(size)})
def seconds():
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
work()
print(json.dumps([list(sys.version_info[:3]), min(seconds() for _ in range(8))]))
"""


def candidates(path: str) -> list[str]:
    """Every ``python3`` on the path, in its order."""
    found: list[str] = []
    for directory in path.split(os.pathsep):
        python = str(Path(directory) / "python3")
        if os.access(python, os.X_OK) and os.path.realpath(python) not in map(os.path.realpath, found):
            found.append(python)
    return found


def look_at(python: str) -> tuple[tuple[int, ...], float] | None:
    """Its version and the seconds it took; ``None``: it cannot make an environment, or does not run."""
    try:
        said = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, timeout=30, check=True).stdout
        version, seconds = json.loads(said)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return (tuple(version), seconds) if tuple(version) >= OLDEST else None


def choose(found: list[tuple[str, float]]) -> tuple[str, float]:
    """The first of ``found``, pairs of a Python and its seconds, unless another is that much faster."""
    fastest = min(found, key=lambda pair: pair[1])
    return fastest if fastest[1] * FASTER < found[0][1] else found[0]


def main() -> int | str:
    """Print the one that is taken, and on the error stream why it is not the first."""
    best: dict[str, tuple[tuple[int, ...], float]] = {}
    for python in candidates(os.environ.get("PATH", os.defpath)) * TRIES:
        known = look_at(python)
        if known is not None and (python not in best or known[1] < best[python][1]):
            best[python] = known
    if not best:
        return "Keybearer needs Python 3.11 or newer, with venv and ensurepip; set PYTHON=/path/to/it."
    found = [(python, seconds) for python, (_, seconds) in best.items()]
    chosen, seconds = choose(found)
    if chosen != found[0][0]:
        version = ".".join(map(str, best[chosen][0]))
        sys.stderr.write(
            f"Using {chosen} ({version}): {found[0][1] / seconds:.1f} times as fast as {found[0][0]}. "
            f"PYTHON={found[0][0]} takes that one.\n"
        )
    sys.stdout.write(chosen + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

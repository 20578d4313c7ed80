"""Processes of a benchmark: started pinned to a core, watched, and ended by their own ids."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
"""Where peers are installed; git-ignored."""
BIN = Path(sys.prefix) / "bin"
"""Of the environment that runs the benchmark, whose Python Keybearer then runs on: ``make bench VENV=… PYTHON=…`` compares others."""

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
SERVER_CORE = CORES[0]
"""The server under test has this core for itself."""
OTHER_CORE = CORES[-1]
"""The mock provider and the load generator share this one."""

_TICKS = os.sysconf("SC_CLK_TCK")


class Unavailable(Exception):
    """A peer cannot be run here; the message says why, and what to do about it."""


@dataclass(slots=True)
class Process:
    """A running process and its children."""

    popen: subprocess.Popen[bytes]
    log: Path

    def tree(self) -> list[int]:
        """Process ids: its own and all descendants', from /proc. Only its own where there is no /proc."""
        parents: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(path.read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue  # it ended while we looked
            parents.setdefault(parent, []).append(int(path.parent.name))
        found = [self.popen.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """User and system time so far, of the process and its living children."""
        total = 0.0
        for pid in self.tree():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += (int(fields[11]) + int(fields[12])) / _TICKS
        return total

    def resident_mb(self) -> float:
        """Resident memory in MB (10^6 bytes), shared pages counted once for each process."""
        total = 0
        for pid in self.tree():
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
        return total / 1e6

    def stop(self) -> None:
        """Ask it to end, then insist; its children with it. Nothing happens the second time."""
        if self.popen.poll() is not None:
            return
        tree = self.tree()
        self.popen.terminate()
        try:
            self.popen.wait(8)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait(8)
        for pid in tree[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def start(command: Sequence[str], log: Path, core: int, env: Mapping[str, str] | None = None) -> Process:
    """Start a command on one core, with its output in ``log``."""
    pin = ["taskset", "-c", str(core)] if shutil.which("taskset") else []
    with log.open("ab") as output:
        popen = subprocess.Popen(
            [*pin, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
        )
    return Process(popen, log)


def wait_for(process: Process, url: str, seconds: float) -> None:
    """Wait until ``url`` answers with a status below 500. Raises ``Unavailable`` with the log's end if it does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.popen.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    process.stop()
    raise Unavailable(f"it ended, or did not answer at {url} within {seconds:.0f} s; the end of its log:\n{tail(process.log)}")


def tail(log: Path, characters: int = 1500) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-characters:]


def run(command: Sequence[str], env: Mapping[str, str] | None = None, seconds: float = 600, stdin: str = "") -> str:
    """Run a command to its end and give its output. Raises ``Unavailable`` if it fails."""
    try:
        done = subprocess.run(
            command,
            input=stdin,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{' '.join(command)}: {error}") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def busy_seconds(core: int) -> float:
    """Seconds that a core was busy so far, for anybody; 0 where there is no /proc."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    fields = next(line.split()[1:] for line in lines if line.startswith(f"cpu{core} "))
    idle, waiting = int(fields[3]), int(fields[4])
    return (sum(int(field) for field in fields[:8]) - idle - waiting) / _TICKS


def free_port() -> int:
    """A free port on loopback. Another process could take it before we do; then the start fails and says so."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])

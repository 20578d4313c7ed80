"""Long runs against a real server: ``python -m bench.soak --faults 10000 --requests 1000000 --aborted 100000``.

Nothing may be left behind. After each part the run waits until the server is at rest and then looks at what it holds: connections
(its own sockets in /proc), tasks of its event loop, bytes of request bodies, reservations of limits, journal
entries that are not in the database, resident memory. Limits are on: a hard one on requests, soft ones on tokens and dollars, so that
every call reserves. Ended by Ctrl-C or ``--minutes``, it still reports what was done.

Memory is *flat* if its median does not grow by more than ``FLAT_MB`` from the middle fifth (caches are warm then) to the last: an
allocator gives and takes some MB, a leak of 100 bytes a request would be 40 MB in a million.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import uvloop

from bench.deployment import Database, Deployment, deployment
from bench.faults import ABORTED, FAULTS, GOOD, GOOD_STREAM, Fault, Outcome, Scene
from bench.load import Load
from bench.peers import PROVIDER_KEY, Peer, start_provider
from bench.processes import BIN, CACHE, ROOT, Process, Unavailable

FLAT_MB = 8.0
_AT_ONCE, _AT_ONCE_SLOW = 64, 512
_STALL = 2.0
"""Seconds after which the server gives a silent provider up, in this run."""
_REST = 60.0
"""Longest wait for a server to come to rest, once its journal is in the database, or comes no nearer to it."""
_WARM = 300
_ROUND = 10.0
"""Seconds of load between two looks at the server."""
_LIMITS = (
    {"subject": "deployment", "kind": "requests_minute", "amount": 10**9, "is_hard": True},
    {"subject": "deployment", "kind": "tokens_minute", "amount": 10**12, "is_hard": False},
    {"subject": "user", "kind": "usd_day", "amount": 10**9, "is_hard": False},
)


@dataclass(frozen=True, slots=True)
class Held:
    """What a server holds."""

    clients: int
    """Connections of clients."""
    upstream: int
    """Connections to providers, sockets; of which idle ones are kept for 30 s."""
    upstream_busy: int
    tasks: int
    waiting: int
    """Requests that wait for the database."""
    held_bytes: int
    reserved: float
    """Of all limits together."""
    unshipped: int
    cycles: int
    """Objects that only the collector could free."""
    objects: int
    files: int
    rss_mb: float

    def leaks(self, before: Held) -> list[str]:
        """What is there that should not be, nobody asking for anything."""
        must_be_none = ("clients", "upstream_busy", "waiting", "held_bytes", "reserved", "unshipped")
        found = [f"{name} {value:g}" for name in must_be_none if (value := getattr(self, name))]
        if self.tasks > before.tasks:
            found.append(f"tasks {before.tasks} → {self.tasks}")
        if self.files - self.upstream > before.files - before.upstream + 8:  # a database opens a few more when it is busy
            found.append(f"open files {before.files} → {self.files}")
        return found


@dataclass(slots=True)
class Part:
    """One part of the run."""

    name: str
    asked: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    first_wrong: str = ""
    rss_mb: list[float] = field(default_factory=list)
    after: Held | None = None
    leaks: list[str] = field(default_factory=list)

    def took(self, outcome: Outcome) -> None:
        """Take over what came of the calls."""
        self.asked, self.statuses = outcome.asked, dict(outcome.statuses)
        self.wrong, self.first_wrong = outcome.wrong, outcome.first_wrong

    @property
    def line(self) -> str:
        """For people."""
        rss = "" if self.after is None else f" · {self.after.rss_mb:.0f} MB"
        said = ", ".join(f"{name} {count:,}" for name, count in sorted(self.statuses.items()))
        wrong = f" · WRONG {self.wrong:,}: {self.first_wrong}" if self.wrong else ""
        leaks = f" · LEFT BEHIND: {'; '.join(self.leaks)}" if self.leaks else " · nothing left"
        return f"{self.name:42} {self.asked:>9,} in {self.seconds:5.0f} s{rss} · {said}{wrong}{leaks if self.after else ''}"


class Subject:
    """The server under test, and how it is looked at."""

    def __init__(self, made: Deployment, process: Process, figures: Path, provider_ports: set[int]) -> None:
        self.made = made
        self.process = process
        self._figures = figures
        self._provider_ports = provider_ports

    @property
    def pid(self) -> int:
        """The server's own process: the last of those that its starter became."""
        return self.process.popen.pid

    def figures(self) -> dict[str, Any]:
        """What it says of itself."""
        self._figures.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 30
        while not self._figures.exists():
            if time.monotonic() > deadline or self.process.popen.poll() is not None:
                raise Unavailable("the server does not say what it holds; see its log")
            time.sleep(0.02)
        return dict(json.loads(self._figures.read_text(encoding="utf-8")))

    def sockets(self) -> tuple[int, int, int]:
        """Its open connections of clients and to providers, and all its open files."""
        inodes, files = set(), 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                target = str(entry.readlink())
            except OSError:
                continue
            files += 1
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        clients = upstream = 0
        for line in Path(f"/proc/{self.pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            local, remote, state, inode = fields[1], fields[2], fields[3], fields[9]
            if inode in inodes and state != "0A":  # not the listening one
                clients += int(local[9:], 16) in self.made.ports
                upstream += int(remote[9:], 16) in self._provider_ports
        return clients, upstream, files

    def held(self) -> Held:
        """Everything."""
        reserved = sum(item["reserved"] for item in self.made.call("GET", "/budgets")["items"])
        self.made.leave()
        time.sleep(0.05)
        said = self.figures()
        clients, upstream, files = self.sockets()
        return Held(
            clients=clients,
            upstream=upstream,
            upstream_busy=said["upstream_open"] - said["upstream_idle"],
            tasks=said["tasks"],
            waiting=said["waiting"],
            held_bytes=said["held_bytes"],
            reserved=reserved,
            unshipped=said["written"] - said["shipped"],
            cycles=said["cycles"],
            objects=said["objects"],
            files=files,
            rss_mb=self.process.resident_mb(),
        )

    def at_rest(self, before: Held | None) -> Held:
        """Wait until nothing is under way any more, or for long enough: then what is left, is left."""
        deadline, fewest = time.monotonic() + _REST, sys.maxsize
        while True:
            found = self.held()
            if found.unshipped < fewest:
                deadline, fewest = time.monotonic() + _REST, found.unshipped
            if not found.leaks(before or found) or time.monotonic() > deadline:
                return found
            time.sleep(0.5)


class Run:
    """One run: its parts, and when to stop."""

    def __init__(self, subject: Subject, scene: Scene, report: Path, minutes: float) -> None:
        self.subject = subject
        self.scene = scene
        self.parts: list[Part] = []
        self.first: Held | None = None
        self._report = report
        self._deadline = time.monotonic() + minutes * 60

    @property
    def is_over(self) -> bool:
        """Whether to begin nothing more."""
        if time.monotonic() > self._deadline:
            self.scene.is_stopped = True
        return self.scene.is_stopped

    async def calls(self, name: str, faults: list[Fault], count: int) -> None:
        """Let clients meet these faults, ``count`` times in all."""
        if self.is_over or not count:
            return
        part, began = Part(name), time.monotonic()
        at_once = _AT_ONCE_SLOW if faults[0].is_slow else _AT_ONCE
        every = max(1, count // 25)
        shown = max(100, every)

        def on_progress(asked: int) -> None:
            if asked % every == 0:
                part.rss_mb.append(self.subject.process.resident_mb())
                if self.is_over or asked % shown == 0:
                    _progress(f"{name}: {asked:,} of {count:,}, {part.rss_mb[-1]:.0f} MB")

        part.took(await self.scene.run(faults, count, at_once, on_progress))
        self.scene.drop()
        part.seconds = time.monotonic() - began
        await self.look(part)

    async def load(self, peer: Peer, count: int) -> None:
        """Ordinary calls as fast as they go, 32 connections, in rounds with a look at the memory after each."""
        part, began = Part("requests"), time.monotonic()
        while part.asked < count and not self.is_over:
            result = await asyncio.to_thread(_drive, peer, _ROUND)
            part.asked += result["all_requests"]
            part.statuses = {"200": part.asked}
            part.wrong += result["errors"]
            part.first_wrong = part.first_wrong or result["first_error"]
            part.rss_mb.append(self.subject.process.resident_mb())
            _progress(f"requests: {part.asked:,} of {count:,}, {part.rss_mb[-1]:.0f} MB")
            if result["errors"]:
                break
        part.seconds = time.monotonic() - began
        if part.asked:
            await self.look(part)

    async def look(self, part: Part) -> None:
        """What the part has left behind."""
        part.after = await asyncio.to_thread(self.subject.at_rest, self.first)
        if self.first is None:
            self.first = part.after
        part.leaks = part.after.leaks(self.first)
        self.parts.append(part)
        print(part.line, flush=True)
        self.write()

    def write(self) -> None:
        """The figures so far, as JSON."""
        found = [asdict(part) for part in self.parts]
        self._report.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def verdict(self) -> list[str]:
        """What is to be said at the end; empty: all is well."""
        found = [f"{part.name}: {what}" for part in self.parts for what in part.leaks]
        found += [f"{part.name}: {part.wrong} wrong answers, the first: {part.first_wrong}" for part in self.parts if part.wrong]
        for part in (part for part in self.parts if part.name != "warm-up"):
            grown = growth(part.rss_mb)
            if grown is not None and grown > FLAT_MB:
                found.append(f"{part.name}: memory grew by {grown:.1f} MB")
        if self.scene.leaks:
            found.append(f"the provider saw a token of ours {self.scene.leaks} times")
        return found


def growth(samples: list[float]) -> float | None:
    """MB by which memory grew from the middle fifth of the samples to the last; ``None``: too few to tell."""
    fifth = len(samples) // 5
    if not fifth:
        return None
    return statistics.median(samples[-fifth:]) - statistics.median(samples[2 * fifth : 3 * fifth])


def _drive(peer: Peer, seconds: float) -> dict[str, Any]:
    """One round of ordinary calls, by a generator of its own."""
    body = {"model": "gpt-4o-mini", "max_tokens": 50, "messages": [{"role": "user", "content": "k" * 1000}]}
    load = Load(peer.port, peer.encoded_request(body), "chat.completion", 32, seconds)
    command = [str(BIN / "python"), "-m", "bench.load"]
    done = subprocess.run(
        command, input=json.dumps(asdict(load)), capture_output=True, text=True, cwd=ROOT, timeout=seconds + 60, check=False
    )
    if done.returncode:
        raise Unavailable(f"the load generator failed: {done.stderr[-500:]}")
    return dict(json.loads(done.stdout))


def _progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def _run(given: argparse.Namespace, directory: Path) -> list[str]:
    scene = Scene(0, "")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: setattr(scene, "is_stopped", True))
    await scene.start()
    provider = start_provider(directory)
    assert provider.process is not None
    settings = {"KEYBEARER_EGRESS_ALLOW": "127.0.0.1", "KEYBEARER_UPSTREAM_TIMEOUT": f"{_STALL:g}"}
    try:
        with deployment(directory / "keybearer", given.database, **settings) as made:
            figures = directory / "figures.json"
            command = (str(BIN / "python"), "-m", "bench.watched", str(figures))
            process = await asyncio.to_thread(made.serve, command=command)
            await asyncio.to_thread(made.set_up)
            for limit in _LIMITS:
                await asyncio.to_thread(made.call, "POST", "/budgets", limit)
            scene.gateway, scene.token = made.ports[0], made.token
            subject = Subject(made, process, figures, {scene.port, provider.port})
            run = Run(subject, scene, given.output, given.minutes)
            await _parts(given, run, provider.port)

            return run.verdict()
    finally:
        provider.process.stop()
        await scene.stop()


def _point(made: Deployment, port: int) -> None:
    """Let a provider on this port be asked, with a key for it: the address first, for a key is bound to the hosts it may go to."""
    for secret in made.call("GET", "/secrets")["items"]:
        made.call("DELETE", f"/secrets/{secret['id']}")
    made.call("PUT", "/providers/openai", {"base_url": f"http://127.0.0.1:{port}"})
    made.call("POST", "/secrets", {"provider": "openai", "name": f"port {port}", "value": PROVIDER_KEY})
    made.leave()
    time.sleep(2)  # every process hears of a change within one


async def _parts(given: argparse.Namespace, run: Run, mock: int) -> None:
    """Everything that was asked for, the longest first; between kinds of faults a few good calls, which must be served."""
    made = run.subject.made
    await asyncio.to_thread(_point, made, run.scene.port)
    await run.calls("warm-up", [GOOD, GOOD_STREAM, FAULTS["closed before headers"]], 20 * _WARM)
    if given.requests and not run.is_over:
        await asyncio.to_thread(_point, made, mock)
        peer = Peer("keybearer", "", made.ports[0], {"authorization": f"Bearer {made.token}"}, run.subject.process)
        await run.load(peer, given.requests)
        await asyncio.to_thread(_point, made, run.scene.port)
    await run.calls("aborted streams", [ABORTED], given.aborted)
    words = given.only.split(",")
    for fault in FAULTS.values():
        if any(word in fault.name for word in words):
            await run.calls(fault.name, [fault], given.faults)
    await run.calls("good calls after it all", [GOOD, GOOD_STREAM], _WARM)


def main() -> int:
    """Run. Returns the exit code: 1 if anything was left behind or wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--faults", type=int, default=200, help="of each kind (default 200)")
    parser.add_argument("--requests", type=int, default=20_000, help="ordinary calls (default 20,000)")
    parser.add_argument("--aborted", type=int, default=2_000, help="streams whose client leaves (default 2,000)")
    parser.add_argument("--only", default="", help="only faults with one of these words in their name, comma-separated")
    parser.add_argument("--minutes", type=float, default=240.0, help="begin nothing more after so long (default 240)")
    parser.add_argument("--database", choices=get_args(Database), default="sqlite")
    parser.add_argument(
        "--output", type=Path, default=CACHE / "soak.json", help="figures as JSON (default .cache/bench/soak.json)"
    )
    given = parser.parse_args()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="keybearer-soak-") as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        problems = runner.run(_run(given, Path(directory)))
    for problem in problems:
        print("PROBLEM", problem)
    print(
        "nothing was left behind, nothing was wrong" if not problems else f"{len(problems)} problems",
        f"· figures in {given.output}",
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

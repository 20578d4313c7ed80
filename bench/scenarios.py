"""The questions put to every peer: what to send, what to count, what to compare."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.load import Load, Result
from bench.peers import MODELS, VALUE, Peer, add_key, fetch_request, keybearer, limit, openbao, valkey
from bench.processes import BIN, OTHER_CORE, ROOT, SERVER_CORE, Process, Unavailable, busy_seconds
from bench.seal import seal_trail

_KB = 1000
_CHUNKS = 200
_CONNECTIONS = 32
_BOUNDED = {"max_tokens": 1000}
"""What calls must say that hard limits concern."""
_QUIET = 1.6
"""Seconds with less than 5 % of a core: then a server is quiet. Longer than anybody rests between two turns of what was put off."""
_LONGEST_AFTERMATH = 30.0
_PACE = 0.02
"""Seconds between a stream's chunks: 50 a second."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look."""

    rounds: int
    seconds: float
    stream_seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One peer in one round."""

    result: Result
    cpu: float
    """CPU seconds the server spent, warm-up included."""
    after: float
    """CPU seconds it spent afterwards on what it had put off (shipping its journal, say), until it was quiet."""
    foreign: float
    """Share of the server's core that others took: 0 to 1."""
    wall: float
    memory_mb: float
    """Resident memory of the server at the end, or at its peak where it was watched."""


@dataclass(slots=True)
class Metric:
    """One thing measured of all peers: samples by peer name, one a round."""

    name: str
    unit: str
    higher_is_better: bool
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """By peer name: what a reader must know about its figure."""

    def add(self, peer: str, value: float) -> None:
        """Keep one round's figure."""
        self.samples.setdefault(peer, []).append(value)

    def value(self, peer: str) -> float:
        """The median of the rounds."""
        return statistics.median(self.samples[peer])

    def ratio(self, peer: str, other: str) -> float:
        """How many times ``other``'s figure the peer's is: the median of the ratios within each round."""
        pairs = zip(self.samples[peer], self.samples[other], strict=False)
        ratios = [mine / theirs for mine, theirs in pairs if theirs]
        return statistics.median(ratios) if ratios else 0.0


Scenario = Callable[[Sequence[Peer], Effort], list[Metric]]


def chat_1k(peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """Requests a second and CPU for each, chat completions of 1 kB up and down, 32 connections."""
    return _chats(peers, effort, "chat 1 kB, 32 connections", _chat(_KB, MODELS[0]))


def chat_20k(peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """Likewise, 20 kB up and down."""
    return _chats(peers, effort, "chat 20 kB, 32 connections", _chat(20 * _KB, MODELS[1]))


def with_limits(peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """1 kB chats, latency and 500 streams under limits and with several keys; counted in memory, and in Valkey.

    Two limits are hard (a user's tokens, everybody's requests), one is soft (dollars a month), and two keys take turns.
    Needs ``keybearer`` and ``direct`` among the peers. Valkey has the generator's core: its own time is not in the figures.
    """
    if all(peer.name != "keybearer" for peer in peers):
        return []
    direct = next(peer for peer in peers if peer.process is None)
    compared = [peer for peer in peers if peer.name in {"direct", "nginx", "keybearer"}]
    with tempfile.TemporaryDirectory(prefix="keybearer-bench-limits-") as directory, contextlib.ExitStack() as ends:
        server, url = valkey(Path(directory))
        ends.callback(server.stop)
        for name, settings in (("limits in memory", {}), ("limits in Valkey", {"redis_url": url})):
            home = Path(directory) / name.replace(" ", "-")
            home.mkdir()
            peer = replace(keybearer(home, direct.port, **settings), name=name)
            if peer.process is not None:
                ends.callback(peer.process.stop)
            add_key(peer, "second")
            limit(peer, "user", "tokens_minute")
            limit(peer, "deployment", "requests_minute")
            limit(peer, "user", "usd_month", is_hard=False)
            time.sleep(2 * _QUIET)  # the limits' bound, and first counts
            compared.append(peer)
        metrics = _streams(compared, effort, 500, **_BOUNDED)
        metrics += _chats(compared, effort, f"chat 1 kB, {_CONNECTIONS} connections", _chat(_KB, MODELS[0]) | _BOUNDED)
        metrics += _latency(compared, effort, **_BOUNDED)
    for metric in metrics:
        metric.name = f"with limits: {metric.name}"
        for peer in compared:
            if metric.higher_is_better and peer.name.startswith("limits") and "nginx" in metric.samples:
                share = f"{metric.ratio(peer.name, 'nginx'):.3f} of nginx's"
                metric.notes[peer.name] = "; ".join(filter(None, (share, metric.notes.get(peer.name))))
    return metrics


def latency(peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """What a peer adds to the direct call's latency, at one connection. Needs ``direct`` among the peers."""
    return _latency(peers, effort)


def _latency(peers: Sequence[Peer], effort: Effort, **asked: int) -> list[Metric]:
    body = _chat(_KB, MODELS[0]) | asked
    metrics = {name: Metric(f"added latency {name}, chat 1 kB, 1 connection", "ms", False) for name in ("p50", "p99")}
    direct = next(peer for peer in peers if peer.process is None)
    for _ in range(effort.rounds):
        base = _sample(direct, _load(direct, body, 1, effort.seconds)).result
        for peer in peers:
            if peer is direct:
                continue
            found = _sample(peer, _load(peer, body, 1, effort.seconds)).result
            for name, metric in metrics.items():
                metric.add(peer.name, found.latency_ms.get(name, 0.0) - base.latency_ms.get(name, 0.0))
                _note_errors(metric, peer, found)
    return list(metrics.values())


def sse_200(peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """Chunks a second and CPU for each, streams of 200 chunks written one by one as fast as they go, 16 connections."""
    rate = Metric(f"SSE chunks relayed, streams of {_CHUNKS}, 16 connections", "chunks/s", True)
    capacity = Metric(f"SSE chunks a core, streams of {_CHUNKS} (chunks per CPU second)", "chunks/s", True)
    body = _chat(_KB, MODELS[2]) | {"stream": True}
    for _ in range(effort.rounds):
        for peer in peers:
            sample = _sample(peer, _load(peer, body, 16, effort.seconds, stream=True))
            rate.add(peer.name, sample.result.events / sample.result.seconds)
            _note_errors(rate, peer, sample.result)
            _capacity(capacity, peer, sample, sample.result.all_events, sample.cpu)
    return [capacity, rate]


def streams_500(peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """500 streams at once, 50 chunks a second each: how late they end, what they cost. Slow peers are left out."""
    return _streams(peers, effort, 500)


def streams_1000(peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """Twice as many, which is what we aim at. On two cores the mock provider and the generator may be the limit."""
    return _streams(peers, effort, 1000)


def _streams(peers: Sequence[Peer], effort: Effort, count: int, **asked: int) -> list[Metric]:
    chunks = int(effort.stream_seconds / _PACE)
    name = f"{count} SSE streams of 50 chunks/s"
    late = Metric(f"{name}: stream ends late by, p99", "ms", False)
    busy = Metric(f"{name}: share of one core", "%", False)
    memory = Metric(f"{name}: memory a stream", "kB", False)
    body = _chat(_KB, f"mock-chunks-{chunks}-pace-20ms") | {"stream": True, **asked}
    ideal = (chunks + 2) * _PACE * 1000  # the role comes first, at 0; the finish and [DONE] after the chunks
    # Memory that a process keeps from an earlier round would hide what streams take, so all compare with the time before.
    before = {peer.name: peer.process.resident_mb() for peer in peers if peer.process is not None}
    for _ in range(max(1, effort.rounds // 2)):
        for peer in peers:
            if peer.name in {"litellm", "portkey"}:
                continue
            load = _load(peer, body, count, effort.stream_seconds * 3, stream=True)
            load.once, load.warmup = True, min(2.0, effort.stream_seconds / 2)
            sample = _sample(peer, load, watch=True)
            lateness = sample.result.latency_ms.get("p99", 0.0) - ideal
            late.add(peer.name, max(0.0, lateness))
            _note_errors(late, peer, sample.result)
            if sample.result.requests < count:
                late.notes[peer.name] = f"only {sample.result.requests} of {count} streams ended right"
            if peer.process is not None:
                busy.add(peer.name, sample.cpu / sample.wall * 100)
                memory.add(peer.name, max(0.0, sample.memory_mb - before[peer.name]) * 1000 / count)
    return [late, busy, memory]


def fetch(peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """Values of secrets read a second, against OpenBao's KV store (version 2), 32 connections. Needs ``keybearer`` among the peers."""
    what = f"secret value read, {_CONNECTIONS} connections"
    ours = next((peer for peer in peers if peer.name == "keybearer"), None)
    if ours is None:
        return []
    with tempfile.TemporaryDirectory(prefix="keybearer-bench-bao-") as directory:
        theirs, read = openbao(Path(directory))
        requests = {ours.name: fetch_request(ours), theirs.name: read}
        try:
            return _throughput(
                [ours, theirs],
                effort,
                what,
                lambda peer: Load(peer.port, requests[peer.name], VALUE, _CONNECTIONS, effort.seconds),
            )
        finally:
            if theirs.process is not None:
                theirs.process.stop()


SCENARIOS: dict[str, Scenario] = {
    "streams": streams_500,  # first: memory that other loads left behind would hide what streams take
    "streams-1000": streams_1000,
    "chat-1k": chat_1k,
    "chat-20k": chat_20k,
    "latency": latency,
    "with-limits": with_limits,
    "sse": sse_200,
    "fetch": fetch,
    "seal": seal_trail,
}


def idle_memory(peers: Sequence[Peer]) -> Metric:
    """Resident memory after the start, before any load."""
    metric = Metric("resident memory, idle", "MB", False)
    for peer in peers:
        if peer.process is not None:
            metric.add(peer.name, peer.process.resident_mb())
    return metric


def check(peer: Peer) -> None:
    """Prove that a peer answers right, streamed and not. Raises ``Unavailable``."""
    for stream in (False, True):
        body = _chat(_KB, MODELS[0]) | ({"stream": True} if stream else {})
        load = _load(peer, body, 1, 20.0, stream=stream)
        load.once = True
        result = _sample(peer, load).result
        if result.errors or not result.requests:
            raise Unavailable(f"it does not answer right: {result.first_error}")


def _chats(peers: Sequence[Peer], effort: Effort, what: str, body: dict[str, Any]) -> list[Metric]:
    return _throughput(peers, effort, what, lambda peer: _load(peer, body, _CONNECTIONS, effort.seconds))


def _throughput(peers: Sequence[Peer], effort: Effort, what: str, load_of: Callable[[Peer], Load]) -> list[Metric]:
    rate = Metric(f"requests/s reached, {what}", "req/s", True)
    capacity = Metric(f"requests/s a core, {what} (requests per CPU second)", "req/s", True)
    sustained = Metric(f"requests/s a core, {what}, work put off included", "req/s", True)
    for _ in range(effort.rounds):
        for peer in peers:
            sample = _sample(peer, load_of(peer))
            rate.add(peer.name, sample.result.requests / sample.result.seconds)
            _note_errors(rate, peer, sample.result)
            _capacity(capacity, peer, sample, sample.result.all_requests, sample.cpu)
            _capacity(sustained, peer, sample, sample.result.all_requests, sample.cpu + sample.after)
            share = sample.cpu / sample.wall
            if peer.process is not None and share + sample.foreign < 0.85:
                rate.notes.setdefault(
                    peer.name, f"its core was only {share:.0%} busy: mock provider and generator were the limit"
                )
    return [capacity, sustained, rate]


def _capacity(metric: Metric, peer: Peer, sample: Sample, count: int, cpu: float) -> None:
    """How many the server does in a second of its own CPU time: what a whole core of its own would reach.

    Holds on a machine with other work too, and where the other core is the limit. (An idling server wakes up more often for
    less, so it is a lower bound then.) ``count`` includes the warm-up's answers, as the CPU time does.
    """
    if peer.process is None or not count or not cpu:
        return
    metric.add(peer.name, count / cpu)
    if sample.foreign > 0.1:
        metric.notes.setdefault(peer.name, f"other work took up to {sample.foreign:.0%} of its core")


def _chat(size: int, model: str) -> dict[str, Any]:
    """A chat completion whose message has ``size`` characters."""
    said = ("Keys go in once, never come out by accident. " * (size // 45 + 1))[:size]
    return {"model": model, "messages": [{"role": "user", "content": said}]}


def _load(peer: Peer, body: dict[str, Any], connections: int, seconds: float, *, stream: bool = False) -> Load:
    marker = "data: [DONE]" if stream else "keys go in once and never"
    return Load(peer.port, peer.encoded_request(body, stream=stream), marker, connections, seconds, stream=stream)


def _sample(peer: Peer, load: Load, *, watch: bool = False) -> Sample:
    """Drive one load, and look at the server's CPU time and memory around it."""
    pin = ["taskset", "-c", str(OTHER_CORE)] if shutil.which("taskset") else []
    server = peer.process
    cpu, began = server.cpu_seconds() if server else 0.0, time.monotonic()
    core = busy_seconds(SERVER_CORE)
    command = [*pin, str(BIN / "python"), "-m", "bench.load"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as driver:
        assert driver.stdin is not None
        driver.stdin.write(json.dumps(asdict(load)))
        driver.stdin.close()
        driver.stdin = None
        peak = 0.0
        deadline = began + load.seconds + load.warmup + 60
        while driver.poll() is None:
            if time.monotonic() > deadline:
                driver.kill()
                break
            if watch and server:
                peak = max(peak, server.resident_mb())
            time.sleep(0.2 if watch else 0.02)
        output = driver.stdout.read() if driver.stdout else ""
    wall = time.monotonic() - began
    used = server.cpu_seconds() - cpu if server else 0.0
    foreign = max(0.0, (busy_seconds(SERVER_CORE) - core - (used if server else 0.0)) / wall)
    failed = Result(errors=1, first_error="the load generator did not end, or failed", seconds=wall)
    result = Result(**json.loads(output)) if driver.returncode == 0 else failed
    after = _settle(server) if server else 0.0
    return Sample(result, used, after, foreign, wall, peak or (server.resident_mb() if server else 0.0))


def _settle(server: Process) -> float:
    """Wait until a server is quiet, so that what it put off does not disturb the next; the CPU seconds that took."""
    began = before = server.cpu_seconds()
    deadline = time.monotonic() + _LONGEST_AFTERMATH
    while time.monotonic() < deadline:
        time.sleep(_QUIET)
        now = server.cpu_seconds()
        if now - before <= _QUIET * 0.05:
            break
        before = now
    return server.cpu_seconds() - began


def _note_errors(metric: Metric, peer: Peer, result: Result) -> None:
    if result.errors:
        metric.notes[peer.name] = f"{result.errors} errors, the first: {result.first_error}"

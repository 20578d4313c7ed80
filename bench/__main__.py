"""``python -m bench``: start the peers, put the questions, print and write the answers, end what was started."""

from __future__ import annotations

import argparse
import contextlib
import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.opening import opening
from bench.peers import PEERS, Peer, start_provider
from bench.processes import CORES, Unavailable
from bench.rotation import rotation
from bench.scenarios import SCENARIOS as COMPARED
from bench.scenarios import Effort, Metric, check, idle_memory

SCENARIOS = COMPARED | {"open": opening, "rotation": rotation}
FULL = Effort(rounds=5, seconds=3.0, stream_seconds=10.0)
QUICK = Effort(rounds=2, seconds=1.0, stream_seconds=3.0)
LATEST = Path(__file__).parent / "latest.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks. Returns the exit code: 1 if nothing could be compared."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare Keybearer with its peers on this machine.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: for a first look, not for the record")
    parser.add_argument(
        "--only", default=",".join(SCENARIOS), help=f"scenarios, comma-separated (default: {','.join(SCENARIOS)})"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help=f"peers, comma-separated (default: {','.join(PEERS)})")
    parser.add_argument("--output", type=Path, default=LATEST, help="where the figures go as JSON (default: bench/latest.json)")
    given = parser.parse_args(arguments)
    names, wanted = given.only.split(","), given.peers.split(",")
    unknown = [name for name in names if name not in SCENARIOS] + [name for name in wanted if name not in PEERS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    _raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    if len(CORES) < 2:
        print("note: with one core, server and load share it; read the figures with care", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="keybearer-bench-") as directory, contextlib.ExitStack() as ends:
        return _compare(Path(directory), ends, names, wanted, QUICK if given.quick else FULL, given.output)


def _compare(
    directory: Path, ends: contextlib.ExitStack, names: Sequence[str], wanted: Sequence[str], effort: Effort, output: Path
) -> int:
    provider = start_provider(directory)
    assert provider.process is not None
    ends.callback(provider.process.stop)
    direct = Peer("direct", "the mock provider itself", provider.port, provider.headers)
    peers, missing = [direct], {}
    for name in wanted:
        print(f"starting {name} …", file=sys.stderr)
        try:
            peers.append(_start(name, directory, provider.port, ends))
        except Unavailable as error:
            missing[name] = str(error)
    print(report.introduction(peers, missing))
    if len(peers) == 1:
        return 1
    subject = "keybearer" if any(peer.name == "keybearer" for peer in peers) else peers[1].name
    metrics: list[Metric] = [idle_memory(peers)]
    for name in names:
        print(f"measuring {name} …", file=sys.stderr)
        metrics += SCENARIOS[name](peers, effort)
    print(report.table(metrics, subject))
    report.write(output, report.figures(metrics, subject))
    print(f"\nwritten to {output}")
    return 0


def _start(name: str, directory: Path, provider_port: int, ends: contextlib.ExitStack) -> Peer:
    home = directory / name
    home.mkdir()
    peer = PEERS[name](home, provider_port)
    assert peer.process is not None
    ends.callback(peer.process.stop)
    try:
        check(peer)
    except Unavailable:
        peer.process.stop()
        raise
    return peer


def _raise_file_limit() -> None:
    """Streams need descriptors: take as many as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())

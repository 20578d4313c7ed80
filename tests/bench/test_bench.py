"""The benchmark's own parts: the load generator counts right and notices what is wrong; figures compare the right way round."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bench.load import Load, drive, percentiles
from bench.peers import PEERS, Peer
from bench.processes import Unavailable, start, wait_for
from bench.report import figures, introduction, table, write
from bench.scenarios import Metric

from keybearer.mock import MockProvider

SAID = {"messages": [{"role": "user", "content": "hi"}]}


def load(provider: MockProvider, model: str, **more: object) -> Load:
    stream = bool(more.get("stream"))
    peer = Peer("direct", "", provider.port, {"authorization": "Bearer sk-kbtest-bench"})
    request = peer.encoded_request(SAID | {"model": model, "stream": stream}, stream=stream)
    marker = "data: [DONE]" if stream else "keys go in"
    fields = {"connections": 4, "seconds": 0.3, "warmup": 0.1, "stream": False} | more
    return Load(provider.port, request, marker, **fields)  # type: ignore[arg-type]


async def test_right_answers_are_counted(mock_provider: MockProvider) -> None:
    result = await drive(load(mock_provider, "mock-size-2000"))
    assert result.errors == 0
    assert 0 < result.requests <= result.all_requests
    assert 0 < result.latency_ms["p50"] <= result.latency_ms["p99"] <= result.latency_ms["max"]
    assert all(recorded.status == 200 for recorded in mock_provider.requests)


async def test_a_large_answer_in_pieces_is_counted(mock_provider: MockProvider) -> None:
    result = await drive(load(mock_provider, "mock-size-900000", connections=1))
    assert (result.errors, result.requests > 2) == (0, True)


async def test_streams_and_their_events_are_counted(mock_provider: MockProvider) -> None:
    result = await drive(load(mock_provider, "mock-chunks-50-pace-0ms", stream=True, once=True, connections=7, seconds=5.0))
    assert (result.requests, result.errors) == (7, 0)
    assert result.events == 7 * 52  # the role before and the finish after; [DONE] is no JSON
    assert result.first_byte_ms["p50"] <= result.latency_ms["p50"]


@pytest.mark.parametrize("model", ["mock-500", "mock", "mock-badhttp", "mock-drop", "mock-size-2000-cut-1"])
async def test_wrong_answers_are_errors(mock_provider: MockProvider, model: str) -> None:
    result = await drive(load(mock_provider, model))
    assert result.requests == 0
    assert result.errors > 0
    assert result.first_error


@pytest.mark.parametrize("model", ["mock-429", "mock-chunks-20-cut-5", "mock-chunks-20-reset-5"])
async def test_wrong_streams_are_errors(mock_provider: MockProvider, model: str) -> None:
    result = await drive(load(mock_provider, model, stream=True, once=True, seconds=2.0))
    assert (result.requests, result.errors) == (0, 4)


def test_percentiles() -> None:
    assert percentiles([]) == {}
    assert percentiles([n / 1000 for n in range(1, 102)]) == {"p50": 51.0, "p90": 91.0, "p99": 100.0, "max": 101.0}


def test_figures_compare_the_subject_with_each_peer(tmp_path: Path) -> None:
    metric = Metric("requests/s", "req/s", higher_is_better=True)
    for mine, theirs in ((10.0, 20.0), (30.0, 40.0), (9.0, 100.0)):
        metric.add("keybearer", mine)
        metric.add("nginx", theirs)
    found = figures([metric], "keybearer")
    assert found == [
        {"name": "requests/s", "value": 10.0, "unit": "req/s", "versus": "nginx", "ratio": 0.5},
        {"name": "requests/s · nginx", "value": 40.0, "unit": "req/s", "versus": None, "ratio": None},
    ]
    write(tmp_path / "latest.json", found)
    assert json.loads((tmp_path / "latest.json").read_text()) == found
    assert "keybearer has 0.5 times this" in table([metric], "keybearer")


def test_what_a_reader_must_know_of_a_peer_stands_beside_it() -> None:
    peers = [Peer("nginx", "1.31.3", 1, {}, note="slower than yours"), Peer("keybearer", "0.1.0", 2, {})]
    shown = introduction(peers, {"litellm": "no network"}).splitlines()
    assert shown[1:] == ["  nginx       1.31.3    slower than yours", "  keybearer   0.1.0", "  litellm     left out: no network"]


def test_a_process_that_ends_early_is_told_with_its_log(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    process = start(["sh", "-c", "echo kbtest-why; exit 3"], tmp_path / "log", core)
    with pytest.raises(Unavailable, match="kbtest-why"):
        wait_for(process, "http://127.0.0.1:9/", 10)


def test_all_peers_of_the_design_are_there() -> None:
    assert set(PEERS) == {"nginx", "keybearer", "portkey", "litellm"}

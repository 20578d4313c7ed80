"""The long run's own parts: what it calls a leak, what it calls growth, and that a client's end is counted as what it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench.faults import ABORTED, CUT, FAULTS, NOTHING, Act, Outcome
from bench.soak import FLAT_MB, Held, growth

EMPTY = Held(
    clients=0,
    upstream=0,
    upstream_busy=0,
    tasks=30,
    waiting=0,
    held_bytes=0,
    reserved=0.0,
    unshipped=0,
    cycles=0,
    objects=10_000,
    files=30,
    rss_mb=150.0,
)


@pytest.mark.parametrize(
    "left",
    [{"clients": 1}, {"upstream_busy": 1}, {"tasks": 31}, {"waiting": 1}, {"held_bytes": 7}, {"reserved": 0.5}, {"unshipped": 2}],
)
def test_whatever_is_left_is_told(left: dict[str, float]) -> None:
    assert EMPTY.leaks(EMPTY) == []
    found = replace(EMPTY, **left).leaks(EMPTY)  # type: ignore[arg-type]
    assert [text.split()[0] for text in found] == list(left)


def test_idle_connections_to_a_provider_are_no_leak_and_other_files_are() -> None:
    assert replace(EMPTY, upstream=64, files=94).leaks(EMPTY) == []
    assert replace(EMPTY, upstream=64, files=194).leaks(EMPTY) == ["open files 30 → 194"]


def test_memory_that_comes_and_goes_is_flat_and_a_slow_leak_is_not() -> None:
    assert growth([200.0] * 4) is None
    assert (growth([185.0, 196.0, *[204.0] * 7]) or 0) < FLAT_MB
    warm = [150.0, 190.0, 214.0]
    assert (growth(warm + [214.0, 222.0, 218.0] * 10) or 0) < FLAT_MB
    assert (growth([150.0 + index for index in range(40)]) or 0) > FLAT_MB


def test_an_end_counts_as_what_it_was() -> None:
    outcome, closed, left = Outcome(), FAULTS["closed mid-chunk"], FAULTS["client leaves mid-chunk"]
    for fault, status in ((closed, CUT), (left, None), (ABORTED, None)):
        outcome.add(fault, status)
    assert (outcome.asked, outcome.wrong) == (3, 0)
    for fault, status in ((closed, 200), (closed, None), (left, 200), (left, NOTHING)):
        outcome.add(fault, status)
    assert (outcome.wrong, outcome.first_wrong) == (4, "closed mid-chunk: 200")


def test_a_client_leaves_at_every_point_at_which_a_provider_fails() -> None:
    points = {name.partition(" ")[2] for name, fault in FAULTS.items() if Act.CLOSE in fault.steps and name.startswith("closed")}
    assert len(points) == 7
    for point in points:
        assert {f"reset {point}", f"stalled {point}", f"client leaves {point}"} <= FAULTS.keys()

"""Jobs outlive their failures, and say so once."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from keybearer import jobs
from keybearer.errors import Unavailable
from keybearer.jobs import Job


async def test_a_job_that_fails_is_tried_again_and_logged_once() -> None:
    stop, turns = asyncio.Event(), 0

    async def turn() -> None:
        nonlocal turns
        turns += 1
        if turns == 7:
            stop.set()
        elif turns not in (1, 5):
            raise Unavailable("The database does not answer.")

    with capture_logs() as logs:
        await asyncio.wait_for(jobs.run((Job("ship", 0.001, turn),), stop), 5)
    assert turns == 7
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("job failed", "warning"),
        ("job works again", "info"),
        ("job failed", "warning"),
        ("job works again", "info"),
    ]
    assert logs[0]["reason"] == "The database does not answer."


async def test_a_turn_under_way_is_finished_when_told_to_stop() -> None:
    stop, done = asyncio.Event(), []

    async def turn() -> None:
        stop.set()
        await asyncio.sleep(0.05)
        done.append(True)

    await asyncio.wait_for(jobs.run((Job("ship", 60.0, turn),), stop), 5)
    assert done == [True]


async def test_a_mistake_of_ours_is_logged_with_its_traceback_and_ends_no_other_job() -> None:
    stop, turns = asyncio.Event(), 0

    async def broken() -> None:
        raise ZeroDivisionError

    async def working() -> None:
        nonlocal turns
        turns += 1
        if turns == 3:
            stop.set()

    with capture_logs() as logs:
        await asyncio.wait_for(jobs.run((Job("broken", 0.001, broken), Job("working", 0.005, working)), stop), 5)
    assert [(line["job"], line["log_level"], line["exc_info"]) for line in logs] == [("broken", "error", True)]

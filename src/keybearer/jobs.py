"""What a server process does besides answering: loops that outlive their failures and stop when told.

A job that fails is tried again at its next turn and never ends the process. That it fails is logged once, and that it works again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from keybearer.errors import KeybearerError
from keybearer.services import Services
from keybearer.store import changes

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One repeated piece of work: ``every`` seconds between the end of one turn and the start of the next."""

    name: str
    every: float
    turn: Callable[[], Awaitable[object]]


def jobs_of(services: Services) -> tuple[Job, ...]:
    """The jobs of one process. Each is safe to run in every process at once."""
    return (
        Job("ship the journal", 0.25, services.shipper.ship_in_turn),
        Job("settle budgets", 1.0, services.counters.turn),
        Job("prune reservations", 6 * 3600.0, services.records.prune),
        Job("record refusals", 1.0, services.refusals.flush),
        Job("seal the audit trail", services.options.audit_seal_seconds, services.sealer.turn),
        Job("hold the root keys", 1.0, lambda: services.holder.turn(services.keyring)),
        Job("rotate keys", 2.0, services.rotations.turn),
        Job("erase deleted people", 60.0, services.erasure.erase),
        Job("erase deleted teams", 60.0, services.teams.remains.erase),
        Job("empty old audit records", 6 * 3600.0, services.retention.turn),
        Job("prune changes", 3600.0, lambda: changes.prune(services.db)),
        Job("refresh OAuth tokens", 5.0, services.secrets.refresher.turn),
        Job("bind models' keys", 3600.0, services.secrets.adoption.turn),
        Job("plan health checks", 3600.0, services.secrets.checks.plan),
        Job("check keys", 2.0, services.checker.turn),
        Job("prune versions of secrets", 600.0, services.secrets.versions.prune),
        Job("forget old responses", 6 * 3600.0, services.objects.prune),
        Job("remind of expiry", services.options.reminder_seconds, services.reminders.turn),
        Job("purge deleted secrets", 60.0, services.secrets.trash.purge_due),
    )


async def run(jobs: tuple[Job, ...], stop: asyncio.Event) -> None:
    """Run all jobs until ``stop`` is set; a turn under way is finished first."""
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(_loop(job, stop), name=job.name)


async def _loop(job: Job, stop: asyncio.Event) -> None:
    failing = False
    while not stop.is_set():
        was_failing, failing = failing, True
        try:
            await job.turn()
            failing = False
            if was_failing:
                log.info("job works again", job=job.name)
        except KeybearerError as error:
            if not was_failing:
                log.warning("job failed", job=job.name, code=error.code, reason=error.message)
        except Exception:  # a named boundary: a mistake of ours ends this turn, not the job
            if not was_failing:
                log.exception("job failed", job=job.name)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), job.every)

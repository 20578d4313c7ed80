"""``keybearer doctor``: whether what a server needs is there and right."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from keybearer.cli.operate import DataDir
from keybearer.cli.output import AsJson, print_json, say, table
from keybearer.cli.serving import need_server_extra

if TYPE_CHECKING:
    from keybearer.cli.diagnosis import Finding


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("doctor")(doctor)


def doctor(*, data_dir: DataDir = None, as_json: AsJson = False) -> int:
    """Check settings, data directory, root key, database, migrations, clock and egress; changes nothing. Exits with 1 if one fails."""
    try:
        from keybearer.cli.diagnosis import diagnose  # noqa: PLC0415  # the server extra
    except ImportError as error:
        raise need_server_extra(error) from error

    async def work() -> list[Finding]:
        return [finding async for finding in diagnose(data_dir)]

    findings = asyncio.run(work())
    is_well = all(finding.state != "failed" for finding in findings)
    if as_json:
        print_json({"ok": is_well, "findings": [asdict(finding) for finding in findings]})
    else:
        _tell(findings, is_well=is_well)
    return 0 if is_well else 1


def _tell(findings: list[Finding], *, is_well: bool) -> None:
    lines = table([[finding.state, finding.check, finding.message] for finding in findings])
    for finding, line in zip(findings, lines, strict=True):
        say(line)
        if finding.hint and finding.state != "ok":
            say(f"  hint: {finding.hint}")
    say("Nothing is in the way of a start." if is_well else "A server would not start, or not work, as it is.")

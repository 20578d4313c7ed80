"""The table that people read, and ``bench/latest.json`` that programs read."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers import Peer
from bench.scenarios import Metric


def figures(metrics: Sequence[Metric], subject: str) -> list[dict[str, Any]]:
    """One entry for each comparison of the subject with a peer, and one for each other peer's own figure.

    ``ratio`` is the subject's figure divided by the peer's; ``versus`` and ``ratio`` are null where nothing is compared.
    """
    found: list[dict[str, Any]] = []
    for metric in metrics:
        others = [name for name in metric.samples if name != subject]
        if subject in metric.samples:
            value = round(metric.value(subject), 3)
            entry = {"name": metric.name, "value": value, "unit": metric.unit}
            found += [entry | {"versus": other, "ratio": round(metric.ratio(subject, other), 3)} for other in others]
            if not others:
                found.append(entry | {"versus": None, "ratio": None})
        for other in others:
            value = round(metric.value(other), 3)
            found.append({"name": f"{metric.name} · {other}", "value": value, "unit": metric.unit, "versus": None, "ratio": None})
    return found


def table(metrics: Sequence[Metric], subject: str) -> str:
    """All figures for people: a block for each metric, a line for each peer."""
    lines: list[str] = []
    for metric in metrics:
        better = "more is better" if metric.higher_is_better else "less is better"
        lines += ["", f"{metric.name} ({metric.unit}; {better})"]
        for name in metric.samples:
            against = ""
            if name != subject and subject in metric.samples:
                against = f"{subject} has {metric.ratio(subject, name):.3g} times this"
            note = f"   ! {metric.notes[name]}" if name in metric.notes else ""
            lines.append(f"  {name:<12}{metric.value(name):>14,.3f}   {against}{note}".rstrip())
    return "\n".join(lines)


def machine() -> str:
    """What it ran on."""
    model = platform.processor() or platform.machine()
    try:
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = next(line.partition(":")[2].strip() for line in information.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def write(path: Path, found: list[dict[str, Any]]) -> None:
    """Write the figures, one a line."""
    path.write_text(
        "[\n" + ",\n".join("  " + json.dumps(entry, ensure_ascii=False) for entry in found) + "\n]\n", encoding="utf-8"
    )


def introduction(peers: Sequence[Peer], missing: dict[str, str]) -> str:
    """Who takes part, and who does not and why."""
    lines = [machine()]
    lines += [f"  {peer.name:<12}{peer.version:<10}{peer.note}".rstrip() for peer in peers]
    lines += [f"  {name:<12}left out: {why}" for name, why in missing.items()]
    return "\n".join(lines)

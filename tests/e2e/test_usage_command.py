"""`keybearer usage`: what calls cost, as far as it is known, by day, model, key or person, since a day."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from tests.e2e.conftest import World
from tests.support import server as servers
from tests.support.server import environment, json_of

from keybearer.cli.use import cost


def usage(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    told = environment(world.server.data_dir, url=world.server.url, token=world.token)
    return subprocess.run(
        [sys.executable, "-m", "keybearer", "usage", *arguments],
        env=told, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_usage_is_told_with_the_unknown_called_so(world: World) -> None:
    for model in ("gpt-4o-mini", "house-model"):
        body = {"model": f"openai/{model}", "messages": [{"role": "user", "content": "Hello"}]}
        headers = {"authorization": f"Bearer {world.token}"}
        assert httpx2.post(f"{world.server.url}/v1/chat/completions", json=body, headers=headers).status_code == 200
    calls = "/api/v1/usage"
    servers.until(
        lambda: world.admin.http.get(calls), lambda answer: [row["outcome"] for row in answer.json()["items"]] == ["ok"] * 2
    )
    lines = {line.split()[0]: line.split() for line in usage(world, "--by", "model").stdout.splitlines()}
    assert lines["house-model"][-1] == "unknown"
    assert lines["gpt-4o-mini"][-1].startswith("$0.0000")
    (day,) = json_of(usage(world, "--json"))
    assert (day["requests"], day["unknown_cost"]) == (2, 1)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    assert json_of(usage(world, "--by", "user", "--since", tomorrow, "--json")) == []
    assert len(json_of(usage(world, "--by", "secret", "--until", tomorrow, "--json"))) == 1
    wrong = usage(world, "--since", "yesterday")
    assert wrong.returncode == 1
    assert "since" in wrong.stderr


@pytest.mark.parametrize(
    ("known", "unknown", "said"),
    [(0.0, 3, "unknown"), (0.0, 0, "$0.00"), (1.5, 1, "$1.50 + 1 unknown"), (0.000042, 0, "$0.000042"), (1200.0, 0, "$1200.00")],
)
def test_dollars_are_written_as_far_as_they_are_known(known: float, unknown: int, said: str) -> None:
    assert cost({"cost_usd": known, "unknown_cost": unknown, "requests": 3}) == said

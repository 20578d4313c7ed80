"""A price of one's own: a custom provider's calls get a cost, hard budgets take them, and a wrong file ends the start by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from tests.e2e.conftest import World, settle
from tests.support import server as servers
from tests.support.provider import Provider


def chat(world: World, token: str, model: str) -> httpx2.Response:
    return httpx2.post(
        f"{world.server.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {token}"},
        json={"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]},
        timeout=30,
    )


def cost(world: World, answer: httpx2.Response) -> float | None:
    """What is on record of a call, once it is."""
    request_id = answer.headers["x-keybearer-request-id"]
    shipped = servers.until(
        lambda: world.admin.http.get(f"/api/v1/usage?request_id={request_id}"),
        lambda found: [row["outcome"] for row in found.json()["items"]] == ["ok"],
    )
    (row,) = shipped.json()["items"]
    return None if row["cost_usd"] is None else float(row["cost_usd"])


def test_what_a_deployment_says_that_models_cost(provider: Provider, data_dir: Path, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("house/mock: {input: 1000, output: 2000}\nopenai/gpt-4o-mini: {input: 3, output: 5}\n", encoding="utf-8")
    with servers.running(data_dir, egress_allow="127.0.0.1", prices_file=str(prices)) as server:
        world = settle(server, provider)
        draft = {"name": "house", "base_url": f"{provider.base_url('xai')}/v1", "models": ["mock", "mock-size-9"], "system": True}
        world.admin.call("POST", "/providers", json=draft)
        world.admin.add_key("house", "kbtest-house-0123456789abcdef")
        servers.heard(world.admin)
        token = world.admin.token("prices", ("gateway:use", "usage:read"))
        for model, given, made in (("house/mock", 1000, 2000), ("openai/gpt-4o-mini", 3, 5)):
            answer = chat(world, token, model)
            assert answer.status_code == 200, answer.text
            usage = answer.json()["usage"]
            spent = (usage["prompt_tokens"] * given + (usage["total_tokens"] - usage["prompt_tokens"]) * made) / 1e6
            assert cost(world, answer) == pytest.approx(spent, abs=1e-6)
        assert cost(world, chat(world, token, "house/mock-size-9")) is None

        budget = world.admin.call("POST", "/budgets", json={"subject": "user", "kind": "usd_day", "amount": 100})
        servers.heard(world.admin)
        assert chat(world, token, "house/mock").status_code == 200
        refused = chat(world, token, "house/mock-size-9")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "price_unknown")
        world.admin.call("DELETE", f"/budgets/{budget['id']}")


@pytest.mark.parametrize("text", ["house/mock: free", "house/mock: {input: -1}", "{", b"\xff"], ids=str)
def test_a_wrong_price_ends_the_start_by_its_name(data_dir: Path, tmp_path: Path, text: str | bytes) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = subprocess.run(
        [sys.executable, "-m", "keybearer", "serve", "--port", "0"],
        env=servers.environment(data_dir, prices_file=str(prices)), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: KEYBEARER_PRICES" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not data_dir.exists(), "nothing is made before the settings are right"

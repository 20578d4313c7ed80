"""The emergency stop, as an operator uses it."""

from __future__ import annotations

import time

import httpx2
from tests.e2e.conftest import World


def chat(world: World) -> httpx2.Response:
    return httpx2.post(
        f"{world.server.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {world.token}"},
        json={"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]},
        timeout=30,
    )


def test_the_operator_stops_all_use_of_keys_and_takes_it_back(world: World) -> None:
    assert chat(world).status_code == 200
    assert world.server.cli("freeze").stdout.startswith("Frozen: no key is used any more.")
    time.sleep(1.0)
    answer = chat(world)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "frozen")
    assert "already" in world.server.cli("freeze").stdout
    assert world.server.cli("unfreeze").stdout == "Keys are used again.\n"
    time.sleep(1.0)
    assert chat(world).status_code == 200
    assert "It is not frozen." in world.server.cli("unfreeze").stdout
    actions = [record["action"] for record in world.admin.call("GET", "/audit", params={"limit": 50})["items"]]
    assert [action for action in actions if action.startswith("deployment.")] == ["deployment.unfreeze", "deployment.freeze"]


def test_no_value_leaves_to_a_token_while_frozen(world: World) -> None:
    made = world.admin.add_key("voyage", "kbtest-voyage-0123456789abcdef", fetchable=True)
    token = world.admin.token("reads", ("secrets:read",))
    doors: tuple[tuple[str, dict[str, str] | None], ...] = (
        ("secrets/resolve", {"id": made["id"]}),
        (f"secrets/{made['id']}/reveal", None),
        ("export", {"format": "json"}),
    )

    def asked() -> list[tuple[int, str]]:
        headers = {"authorization": f"Bearer {token}"}
        answers = [
            httpx2.post(f"{world.server.url}/api/v1/{path}", headers=headers, json=body, timeout=30) for path, body in doors
        ]
        return [(answer.status_code, answer.json().get("code", "")) for answer in answers]

    assert [status for status, _ in asked()] == [200, 200, 200]
    world.server.cli("freeze")
    time.sleep(1.0)
    assert asked() == [(503, "frozen")] * 3
    assert world.admin.call("POST", f"/secrets/{made['id']}/reveal")["value"].startswith("kbtest-voyage")
    world.server.cli("unfreeze")
    time.sleep(1.0)
    assert [status for status, _ in asked()] == [200, 200, 200]
    world.admin.call("DELETE", f"/secrets/{made['id']}")

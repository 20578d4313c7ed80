"""Providers and models from the command line and from the console's pages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.registry.conftest import World
from tests.support.server import Person, environment

KEY = "sk-proj-kbtest-cli-0123456789abcdefghijklmnop"


def test_from_the_command_line(world: World) -> None:
    tess = world.person("tess")
    world.move("openai")
    token = tess.token("cli", scopes=("secrets:use", "secrets:write", "providers:write", "models:write"))
    env = environment(world.server.data_dir, url=world.server.url, token=token)

    def cli(*arguments: str, stdin: str = "", code: int = 0) -> str:
        command = [sys.executable, "-m", "keybearer", *arguments]
        done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "kbtest" not in done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    listed = {row["name"]: row for row in json.loads(cli("provider", "list", "--json"))}
    assert len(listed) >= 24
    assert not listed["openai"]["has_api_key"]
    cli("provider", "set-key", "openai", stdin=KEY)
    assert [row["name"] for row in json.loads(cli("provider", "list", "--with-keys", "--json"))] == ["openai"]
    assert "ok" in cli("provider", "test", "openai")
    assert "resource" in cli("provider", "set-key", "azure", stdin="0a" * 16, code=1)
    assert "NAME=VALUE" in cli("provider", "set-key", "azure", "--parameter", "x", stdin="0a" * 16, code=1)
    cli("provider", "set-key", "azure", "--parameter", "resource=mine", stdin="0a" * 16)
    cli("provider", "add", "acme", "https://llm.acme.example/v1", "--model", "big", "--key", stdin="acme-0123456789")
    assert "acme" in cli("provider", "list")
    cli("provider", "delete", "acme")

    assert "voyage-4" in cli("model", "templates")
    made = json.loads(cli("model", "add", "openai", "mock", "--alias", "mine", "--json"))
    assert "ok" in cli("model", "test", made["id"])
    cli("model", "set-key", made["id"], stdin=KEY)
    assert json.loads(cli("model", "list", "--json"))[0]["has_own_key"]
    cli("model", "set-key", made["id"], "--remove")
    assert "mine" in cli("model", "list", "--provider", "openai")
    cli("model", "delete", made["id"])
    assert json.loads(cli("model", "list", "--json")) == []
    assert "error:" in cli("model", "delete", made["id"], code=1)


def page(person: Person, path: str, status: int = 200) -> str:
    answer = person.http.get(path)
    assert answer.status_code == status, answer.text
    return answer.text


def test_from_the_console(world: World) -> None:
    vera = world.person("vera")
    world.move("openai")
    world.move_back("azure")
    shown = page(vera, "/providers")
    assert shown.count("no key") >= 24
    for name in ("Hugging Face", "PostgreSQL", "Slack", "Azure OpenAI"):
        assert name in shown
    vera.call("PUT", "/providers/openai", json={"api_key": KEY})
    assert "key stored" in page(vera, "/providers")
    custom = {
        "name": "acme",
        "base_url": "https://llm.acme.example/v1",
        "api_key": "kbtest-acme-0123456789",
        "models": "big, small",
    }
    refused = vera.http.post("/providers", data=custom | {"base_url": "http://10.0.0.1"})
    assert refused.status_code == 422
    assert "kbtest" not in refused.text
    assert vera.http.post("/providers", data=custom).status_code == 303
    assert "acme" in page(vera, "/providers")
    made = next(row for row in vera.call("GET", "/providers") if row["name"] == "acme")
    assert (made["models"], made["has_api_key"]) == (["big", "small"], True)
    assert vera.http.post(f"/providers/{made['id']}/delete").status_code == 303

    secret = {"provider": "azure", "value": "0a" * 16, "name": "default"}
    assert "parameters.resource" in vera.http.post("/secrets/new", data=secret).text
    assert vera.http.post("/secrets/new", data=secret | {"parameters": "resource=veras"}).status_code == 303
    (stored,) = vera.call("GET", "/secrets?provider=azure")["items"]
    assert stored["egress"] == ["https://veras.openai.azure.com:443"]

    assert 'value="gpt-5"' in page(vera, "/models?template=openai/gpt-5")
    model = {"provider": "openai", "name": "mock", "aliases": "hers, best", "display_name": "<b>Hers</b>"}
    assert vera.http.post("/models", data=model).status_code == 303
    listed = page(vera, "/models")
    assert "&lt;b&gt;Hers&lt;/b&gt;" in listed
    assert "provider&#39;s key" in listed or "provider's key" in listed
    assert vera.http.post("/models", data=model).status_code == 409
    (row,) = vera.call("GET", "/models")["items"]
    assert row["aliases"] == ["hers", "best"]
    assert "openai/mock" in page(vera, f"/models/{row['id']}")
    doubtful = vera.http.post(f"/models/{row['id']}", data={"api_key": "kbtest-odd", "display_name": "Hers"})
    assert doubtful.status_code == 422
    assert "Save anyway" in doubtful.text
    assert "kbtest" not in doubtful.text
    changed = {"api_key": KEY, "display_name": "Hers", "aliases": "best"}
    assert vera.http.post(f"/models/{row['id']}", data=changed).status_code == 303
    assert "own key" in page(vera, "/models")
    assert page(world.person("wim"), f"/models/{row['id']}", 404)
    assert vera.http.post(f"/models/{row['id']}/delete").status_code == 303
    assert vera.call("GET", "/models")["items"] == []


@pytest.mark.parametrize("path", ["/providers", "/models"])
def test_pages_are_for_those_who_are_signed_in_and_forms_for_this_site(world: World, path: str) -> None:
    vera = world.person("vera")
    foreign = vera.http.post(path, data={"name": "x"}, headers={"sec-fetch-site": "cross-site", "origin": "https://evil.example"})
    assert foreign.status_code == 403
    cookies = dict(vera.http.cookies)
    vera.http.cookies.clear()
    assert vera.http.get(path).status_code == 303
    vera.http.cookies.update(cookies)

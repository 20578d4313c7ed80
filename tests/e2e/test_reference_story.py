"""Keys that stay where a company keeps them: through the API and the gateway, on both databases, with a real OpenBao."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from tests.e2e.conftest import KEYS, World, settle
from tests.support import openbao as bao
from tests.support import server as servers
from tests.support.openbao import OpenBao
from tests.support.provider import Provider
from tests.support.server import PASSWORD, Person

FIRST, SECOND = "sk-proj-kbtest-elsewhere-0123456789abcdefghijk", "sk-proj-kbtest-elsewhere-zyxwvutsrqponmlkjihgf"
SYSTEMS = "sk-proj-kbtest-environment-0123456789abcdefghi"
POLICY = 'path "secret/data/*" { capabilities = ["read"] }'
CHAT = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def openbao() -> Iterator[OpenBao]:
    with bao.running() as running:
        yield running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(
    request: pytest.FixtureRequest, provider: Provider, openbao: OpenBao, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    settings = {"egress_allow": "127.0.0.1", "fallback": "system", "reference_sources": "openbao"}
    settings |= {"openbao_address": openbao.address, "openbao_token": openbao.token_for(POLICY)}
    settings |= {"reference_environment": "KBTEST_SYSTEMS_KEY", "reference_prefixes": "openbao:secret/people/{owner}/"}
    if request.param == "postgresql":
        url, direct = request.getfixturevalue("postgresql_urls")
        settings |= {"database_url": url, "database_direct_url": direct}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KBTEST_SYSTEMS_KEY", SYSTEMS)
        with servers.running(tmp_path_factory.mktemp("references") / "data", **settings) as server:
            yield settle(server, provider)


def chat(world: World, token: str) -> httpx2.Response:
    headers = {"authorization": f"Bearer {token}"}
    return httpx2.post(f"{world.server.url}/v1/chat/completions", json=CHAT, headers=headers, timeout=30)


def member(world: World, name: str) -> Person:
    world.admin.call("POST", "/users", json={"email": f"{name}@example.com", "password": PASSWORD})
    return servers.sign_in(world.server, f"{name}@example.com")


def test_a_key_serves_from_where_it_is_kept(world: World, provider: Provider, openbao: OpenBao) -> None:
    bob = member(world, "bob")
    path = f"people/{bob.call('GET', '/me')['user']['id']}/openai"
    openbao.call("POST", f"secret/data/{path}", {"data": {"key": FIRST}})
    reference = {"source": "openbao", "mount": "secret", "path": path, "key": "key"}
    tested = bob.call("POST", "/secrets/test", json={"provider": "openai", "reference": reference})
    assert tested["status"] == "ok", tested
    made = bob.call("POST", "/secrets", json={"provider": "openai", "reference": reference})
    assert made["preview"] == ""
    assert made["reference"] == {**reference, "leave": "prefix"}
    token = bob.token("bob", ("gateway:use",))
    provider.forget()
    answer = chat(world, token)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-keybearer-secret-id"] == made["id"]
    assert provider.requests()[-1]["headers"]["authorization"] == f"Bearer {FIRST}"
    bob.call("POST", f"/secrets/{made['id']}/test")

    openbao.call("POST", f"secret/data/{path}", {"data": {"key": SECOND}})
    plain = {"value": KEYS["openai"], "save_anyway": True}
    changed = bob.call("PATCH", f"/secrets/{made['id']}", json=plain)
    assert changed["reference"] is None
    bob.call("PATCH", f"/secrets/{made['id']}", json={"reference": f"openbao:secret/{path}#key"})

    def sent() -> httpx2.Response:
        provider.forget()
        return chat(world, token)

    servers.until(sent, lambda _: provider.requests()[-1]["headers"]["authorization"] == f"Bearer {SECOND}")
    actions = [record["action"] for record in bob.call("GET", f"/secrets/{made['id']}/access-log?limit=50")["items"]]
    assert {"secret.create", "secret.test", "secret.update"} <= set(actions)
    assert FIRST not in world.server.log.read_text()

    refused = bob.call("POST", "/secrets", json={"provider": "xai", "reference": "openbao:secret/finance#key"}, status=403)
    assert "administrators" in refused["detail"]
    missing = bob.call("POST", "/secrets", json={"provider": "xai", "reference": f"openbao:secret/{path}/none#key"}, status=403)
    assert missing["code"] == "reference_missing"
    both = {"provider": "xai", "value": FIRST, "reference": f"openbao:secret/{path}#key"}
    bob.call("POST", "/secrets", json=both, status=422)
    bob.call("POST", "/secrets", json={"provider": "xai"}, status=422)


def test_the_systems_key_stays_in_the_servers_environment(world: World, provider: Provider) -> None:
    carol = member(world, "carol")
    carol.call("POST", "/secrets", json={"provider": "openai", "reference": "env:KBTEST_SYSTEMS_KEY", "system": True}, status=403)
    draft = {"provider": "openai", "reference": "env:KBTEST_SYSTEMS_KEY", "system": True}
    made = world.admin.call("POST", "/secrets", json=draft)
    assert made["reference"] == {"source": "env", "name": "KBTEST_SYSTEMS_KEY", "leave": "admin"}
    token = carol.token("carol", ("gateway:use",))
    provider.forget()
    answer = servers.until(lambda: chat(world, token), lambda answer: answer.status_code == 200)
    assert answer.headers["x-keybearer-key-source"] == "system"
    assert provider.requests()[-1]["headers"]["authorization"] == f"Bearer {SYSTEMS}"


def test_the_command_line_and_the_console_point_too(world: World, openbao: OpenBao) -> None:
    openbao.call("POST", "secret/data/company/openai", {"data": {"key": FIRST}})
    settings = {"KEYBEARER_URL": world.server.url}
    settings["KEYBEARER_TOKEN"] = world.admin.token("cli", ("secrets:write", "admin"))
    world.server.environment.update(settings)
    reference = "openbao:secret/company/openai#key"
    world.server.cli("secret", "add", "openai", "--name", "company", "--reference", reference)
    form = {"provider": "openai", "name": "console", "reference": reference}
    page = world.admin.http.post("/secrets/new", data=form)
    assert page.status_code == 303, page.text
    items = {item["name"]: item for item in world.admin.call("GET", "/secrets?provider=openai")["items"]}
    assert items["company"]["reference"] == items["console"]["reference"]
    assert "company/openai" in world.admin.http.get(f"/secrets/{items['console']['id']}").text

"""Every predefined provider: found, given a key, tested, called; addresses that hold an account's name; wrong and swapped keys."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from tests.pure.test_catalog import KEYS, NAMES, SHARED_FORMS
from tests.registry.conftest import World
from tests.support import server as servers

BEARER = "authorization"
# How one chat completion (Voyage: an embedding) and the test call reach each provider, at an address of the administrator's.
ARRIVALS = {
    "openai": (BEARER, "/v1/chat/completions", "GET /v1/models"),
    "xai": (BEARER, "/v1/chat/completions", "GET /v1/models"),
    "meta": (BEARER, "/v1/chat/completions", "GET /v1/models"),
    "huggingface": (BEARER, "/v1/chat/completions", "GET /v1/models"),
    "cohere": (BEARER, "/compatibility/v1/chat/completions", "GET /v1/models?page_size=100"),
    "voyage": (BEARER, "/v1/embeddings", "POST /v1/embeddings"),
    "groq": (BEARER, "/v1/chat/completions", "GET /v1/models"),
    "mistral": (BEARER, "/v1/chat/completions", "GET /v1/models"),
    "together": (BEARER, "/v1/chat/completions", "GET /v1/models"),
    "deepseek": (BEARER, "/v1/chat/completions", "GET /v1/models"),
    "azure": ("api-key", "/openai/v1/chat/completions", "GET /openai/v1/models"),
    "bedrock": (BEARER, "/openai/v1/chat/completions", "GET /openai/v1/models"),
    "ollama": (BEARER, "/v1/chat/completions", "GET /v1/models"),
}


def test_all_are_listed_and_none_has_a_key(world: World) -> None:
    listed = {row["name"]: row for row in world.person("bea").call("GET", "/providers")}
    assert set(NAMES) <= set(listed)
    assert not any(listed[name]["has_api_key"] for name in NAMES)
    assert {row["category"] for row in listed.values()} == {"model", "integration", "database"}
    assert all(row["logo"] for row in listed.values())
    assert listed["azure"]["parameters"] == [{"name": "resource", "label": "Resource name", "example": "my-resource"}]
    assert [name for name in NAMES if not listed[name]["can_test"]] == ["webhook"]
    assert world.person("bea").call("GET", "/providers/with-keys") == []


@pytest.mark.parametrize("name", ARRIVALS)
def test_a_key_arrives_in_the_right_header_at_the_right_path(world: World, name: str) -> None:
    admin, key = world.admin, f"kbtest-{name}-0123456789abcdefghij"
    world.move(*ARRIVALS)
    admin.add_key(name, key)
    header, path, test_call = ARRIVALS[name]
    token = admin.token(name)
    if name == "voyage":
        answer = world.ask(token, "voyage/voyage-4-lite", "/v1/embeddings", input="Hello")
    else:
        answer = world.ask(token, f"{name}/mock")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-keybearer-provider"] == name
    seen: Any = world.last()
    assert seen["target"] == f"/{name}{path}"
    assert seen["headers"][header] == (f"Bearer {key}" if header == BEARER else key)
    assert key not in seen["target"]

    tested = admin.call("POST", f"/providers/{name}/test")
    assert tested["status"] == "ok", tested
    assert f"{world.last()['method']} {world.last()['target']}" == test_call.replace(" /", f" /{name}/", 1)


def test_a_stream_is_asked_for_its_usage_only_where_that_is_known(world: World) -> None:
    world.move(*ARRIVALS)
    for name, asked in (("groq", True), ("mistral", False), ("cohere", False), ("together", False)):
        carl = world.person("carl")
        carl.call("PUT", f"/providers/{name}", json={"api_key": f"kbtest-{name}-stream-0123456789", "save_anyway": True})
        answer = world.ask(carl.token(f"stream {name}"), f"{name}/mock", stream=True)
        assert answer.status_code == 200
        assert ("include_usage" in str(world.last()["body"])) is asked, name


def test_an_azure_key_is_bound_to_its_resource(world: World) -> None:
    bea, key = world.person("bea"), SHARED_FORMS["azure"]
    world.move_back("azure", "bedrock")
    draft = {"provider": "azure", "value": key}
    for parameters in (
        {},
        {"resource": "a.b"},
        {"resource": "evil.example/"},
        {"resource": "x", "region": "y"},
        {"resource": ""},
    ):
        answer = bea.http.post("/api/v1/secrets", json=draft | {"parameters": parameters})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), answer.text
        assert answer.json()["fields"][0]["field"].startswith("parameters")
    made = bea.call("POST", "/secrets", json=draft | {"parameters": {"resource": "beas"}})
    assert made["egress"] == ["https://beas.openai.azure.com:443"]
    assert bea.call("GET", "/providers/azure")["has_api_key"]
    renamed = bea.call("PATCH", f"/secrets/{made['id']}", json={"description": "hers"})
    assert renamed["egress"] == made["egress"]
    kept = bea.call("PATCH", f"/secrets/{made['id']}", json={"value": key[::-1]})
    assert (kept["egress"], kept["version"]) == (made["egress"], 2)
    moved = bea.call("PATCH", f"/secrets/{made['id']}", json={"parameters": {"resource": "beas-other"}})
    assert (moved["egress"], moved["version"]) == (["https://beas-other.openai.azure.com:443"], 2)
    assert bea.call("POST", f"/secrets/{made['id']}/confirm-egress")["egress"] == moved["egress"]
    by_provider = bea.call("PUT", "/providers/azure", json={"api_key": key, "parameters": {"resource": "beas-third"}})
    assert by_provider["has_api_key"]
    assert bea.call("GET", f"/secrets/{made['id']}")["egress"] == ["https://beas-third.openai.azure.com:443"]
    for parameters in ({}, {"region": "us-east-1/"}):
        answer = bea.http.post("/api/v1/secrets/test", json={"provider": "bedrock", "value": "kbtest", "parameters": parameters})
        assert answer.status_code == 422, answer.text


def test_an_administrators_address_is_taken_back_by_the_catalogues_own(world: World) -> None:
    world.move("ollama")
    moved = world.admin.call("GET", "/providers/ollama")
    assert moved["base_url"] == world.provider.base_url("ollama")
    world.person("bea").call("PUT", "/providers/ollama", json={"base_url": "http://localhost:11434"}, status=403)
    back = world.admin.call("PUT", "/providers/ollama", json={"base_url": "http://localhost:11434/"})
    assert back["base_url"] == "http://localhost:11434"
    log = world.admin.call("GET", "/audit?limit=5")["items"]
    assert ("provider.update", "ollama") in {(row["action"], row["subject"]) for row in log}


def test_voyages_keys_go_where_they_were_made(world: World) -> None:
    world.move_back("voyage")
    bea = world.person("bea")
    own = bea.call("POST", "/secrets", json={"provider": "voyage", "value": KEYS["voyage"]})
    assert own["egress"] == ["https://api.voyageai.com:443"]
    moved = bea.call("PATCH", f"/secrets/{own['id']}", json={"value": "al" + KEYS["voyage"][2:]})
    assert moved["egress"] == ["https://ai.mongodb.com:443"]


def test_integrations_are_stored_by_their_own_type(world: World) -> None:
    bea = world.person("bea")
    for name, secret_type, egress in (
        ("slack", "oauth_token", ["https://slack.com:443"]),
        ("google_drive", "oauth_token", ["https://www.googleapis.com:443"]),
        ("pinecone", "api_key", ["https://api.pinecone.io:443"]),
        ("postgresql", "connection_string", []),
        ("smtp", "connection_string", []),
        ("webhook", "webhook_secret", []),
    ):
        made = bea.call("POST", "/secrets", json={"provider": name, "value": KEYS[name]})
        assert (made["secret_type"], made["egress"]) == (secret_type, egress), name
        assert "kbtest" not in str(made)


@pytest.mark.parametrize("name", KEYS)
def test_pasting_tells_whose_key_it_is_and_leaves_no_trace(world: World, name: str) -> None:
    bea = world.person("bea")
    before = len(bea.call("GET", "/secrets")["items"])
    answer = bea.http.post("/api/v1/secrets/detect", json={"value": KEYS[name]})
    assert answer.json() == {"providers": [name]}
    assert len(bea.call("GET", "/secrets")["items"]) == before
    assert "kbtest" not in world.server.log.read_text()


def test_an_ambiguous_prefix_is_no_guess(world: World) -> None:
    bea = world.person("bea")
    for value in (SHARED_FORMS["deepseek"], "sk-", "", " ", "kbtest", "x" * 60_000, "\ud800"):
        body = '{"value": "\\ud800"}' if value == "\ud800" else None
        if body is None:
            answer = bea.http.post("/api/v1/secrets/detect", json={"value": value})
        else:
            answer = bea.http.post("/api/v1/secrets/detect", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in {200, 422}
        assert answer.status_code != 200 or answer.json() == {"providers": []}


def test_detection_is_for_those_who_are_signed_in_here(world: World) -> None:
    value = {"value": KEYS["openai"]}
    assert httpx2.post(f"{world.server.url}/api/v1/secrets/detect", json=value).status_code == 401
    strange = servers.browser(world.server)
    strange.http.cookies = world.admin.http.cookies
    answer = strange.http.post("/api/v1/secrets/detect", json=value, headers={"sec-fetch-site": "cross-site"})
    assert answer.json()["code"] == "csrf_failed"


def test_a_swapped_key_is_doubtful_and_may_be_saved_anyway(world: World) -> None:
    carl = world.person("carla")
    draft: dict[str, Any]
    for name, other in (("openai", "anthropic"), ("anthropic", "openai"), ("deepseek", "groq"), ("slack", "openai")):
        draft = {"provider": name, "value": KEYS[other], "secret_type": "api_key"}
        answer = carl.http.post("/api/v1/secrets", json=draft)
        assert (answer.status_code, answer.json()["code"]) == (422, "key_doubtful"), answer.text
        assert "kbtest" not in answer.text
        carl.call("POST", "/secrets", json=draft | {"save_anyway": True})
    for name, wrong in (
        ("openai", "sk-admin-kbtest-0123456789abcdefghij"),
        ("anthropic", "sk-ant-admin01-kbtest-0123456789"),
        ("bedrock", "AKIAKBTESTKBTESTKBTE"),
        ("groq", "gsk_kbtest\x07bell0123456789"),
        ("slack", "xoxb-kbtest line\nbreak"),
    ):
        draft = {"provider": name, "value": wrong, "save_anyway": True}
        draft |= {"secret_type": "api_key", "parameters": {"region": "us-east-1"}}
        answer = carl.http.post("/api/v1/secrets", json=draft)
        assert (answer.status_code, answer.json()["code"]) == (422, "key_refused"), answer.text
        assert "kbtest" not in answer.text.lower()

"""Registered models through the real gateway: own addresses, own keys, aliases, defaults; and whose key pays."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from tests.registry.conftest import World
from tests.support.server import Person, heard

OWN_KEY = "kbtest-own-key-of-the-model-0123456789"
NEW_KEY = "kbtest-own-key-entered-anew-0123456789"
USERS_KEY = "sk-proj-kbtest-users-0123456789abcdefghijklmnop"


def of(world: World, name: str) -> Person:
    """Somebody with a key for OpenAI."""
    person = world.person(name)
    world.move("openai", "groq", "azure")
    if not person.call("GET", "/secrets?provider=openai")["items"]:
        person.add_key("openai", USERS_KEY)
    return person


def answered(world: World, token: str, model: str, **more: Any) -> dict[str, Any]:
    """The request as it reached the provider, once the gateway has heard of the newest change."""
    heard(world.admin)
    answer = world.ask(token, model, **more)
    assert answer.status_code == 200, answer.text
    seen: dict[str, Any] = world.last()
    return seen | {"source": answer.headers["x-keybearer-key-source"], "secret": answer.headers["x-keybearer-secret-id"]}


def refused(world: World, token: str, model: str) -> dict[str, Any]:
    heard(world.admin)
    answer = world.ask(token, model)
    assert answer.status_code >= 400, answer.text
    return dict(answer.json()["error"])


def test_a_models_own_key_at_its_own_address_pays_before_any_other(world: World) -> None:
    """And no other call is served by it, nor this one by another."""
    dora = of(world, "dora")
    token = dora.token("dora")
    draft = {"provider": "openai", "name": "mock", "api_key": OWN_KEY, "base_url": "https://llm.example/v1"}
    made = dora.call("POST", "/models", json=draft | {"aliases": ["fast"], "display_name": "Mine"})
    assert (made["has_own_key"], made["base_url"], made["owner_kind"]) == (True, "https://llm.example/v1", "user")
    assert OWN_KEY not in str(made)
    own = dora.call("GET", f"/secrets/{made['secret_id']}")
    assert (own["egress"], own["model_id"]) == (["https://llm.example:443"], made["id"])
    dora.call("DELETE", f"/models/{made['id']}")
    dora.call("GET", f"/secrets/{made['secret_id']}", status=404)

    # The same at the mock provider, as an administrator may: private hosts are for what administrators define.
    there = world.provider.base_url("groq")
    answer = dora.http.post("/api/v1/models", json=draft | {"base_url": there})
    assert answer.json()["fields"][0]["field"] == "base_url"
    made = world.admin.call("POST", "/models", json=draft | {"base_url": there, "system": True, "aliases": ["fast"]})
    for name in ("openai/mock", "fast"):
        seen = answered(world, token, name)
        assert seen["target"] == "/groq/v1/chat/completions"
        assert seen["headers"]["authorization"] == f"Bearer {OWN_KEY}"
        assert json.loads(seen["body"])["model"] == "mock"
        assert (seen["source"], seen["secret"]) == ("model", made["secret_id"])
    other = answered(world, token, "openai/mock-size-9")
    assert (other["target"], other["headers"]["authorization"]) == ("/openai/v1/chat/completions", f"Bearer {USERS_KEY}")
    assert other["source"] == "user"
    # Everybody may call it; its key's id is the administrators' to see, and its value nobody's.
    shown = dora.call("GET", f"/models/{made['id']}")
    assert (shown["owner_kind"], shown["has_own_key"], shown["secret_id"]) == ("system", True, None)
    dora.call("PATCH", f"/models/{made['id']}", json={"display_name": "x"}, status=404)
    dora.call("DELETE", f"/models/{made['id']}", status=404)

    # What is wrong with it is said, and nobody else's key steps in.
    world.admin.call("PATCH", f"/secrets/{made['secret_id']}", json={"is_active": False})
    assert refused(world, token, "fast")["code"] == "key_unusable"
    world.admin.call("DELETE", f"/secrets/{made['secret_id']}")
    assert refused(world, token, "fast")["code"] == "key_unusable"
    world.admin.call("PATCH", f"/models/{made['id']}", json={"api_key": NEW_KEY})
    assert answered(world, token, "fast")["headers"]["authorization"] == f"Bearer {NEW_KEY}"
    world.admin.call("DELETE", f"/models/{made['id']}")
    assert answered(world, token, "openai/mock")["headers"]["authorization"] == f"Bearer {USERS_KEY}"


def test_a_key_of_ones_own_for_one_model_alone(world: World) -> None:
    emil = of(world, "emil")
    token = emil.token("emil")
    made = emil.call(
        "POST", "/models", json={"provider": "openai", "name": "mock", "api_key": "sk-proj-kbtest-emils-" + "x" * 30}
    )
    assert answered(world, token, "openai/mock")["secret"] == made["secret_id"]
    # Blank keeps it; null takes it off, and what resolution finds serves again.
    assert emil.call("PATCH", f"/models/{made['id']}", json={"api_key": " "})["secret_id"] == made["secret_id"]
    assert emil.call("POST", f"/models/{made['id']}/test")["status"] == "ok"
    assert emil.call("POST", f"/secrets/{made['secret_id']}/test")["status"] == "ok"
    emil.call("POST", f"/secrets/{made['secret_id']}/confirm-egress", status=422)
    assert emil.call("GET", "/providers/openai")["has_api_key"]
    bare = emil.call("PATCH", f"/models/{made['id']}", json={"api_key": None})
    assert (bare["has_own_key"], bare["secret_id"]) == (False, None)
    assert answered(world, token, "openai/mock")["headers"]["authorization"] == f"Bearer {USERS_KEY}"
    log = {row["action"] for row in emil.call("GET", "/audit?limit=50")["items"]}
    assert {"model.create", "model.update", "secret.create", "secret.purge"} <= log


def test_a_deleted_own_key_is_not_replaced_in_silence(world: World) -> None:
    fay = of(world, "fay")
    made = fay.call(
        "POST", "/models", json={"provider": "openai", "name": "mock", "api_key": USERS_KEY[::-1], "save_anyway": True}
    )
    fay.call("DELETE", f"/secrets/{made['secret_id']}")
    error = refused(world, fay.token("fay"), "openai/mock")
    assert error["code"] == "key_missing"
    assert f"/models/{made['id']}" in error["hint"]


def test_an_address_without_a_key_gets_nobody_elses(world: World) -> None:
    """The caller's keys are bound to the provider's own hosts; who wants them elsewhere enters them there."""
    gil = of(world, "gil")
    made = gil.call("POST", "/models", json={"provider": "openai", "name": "mock", "base_url": "https://llm.example/v1"})
    error = refused(world, gil.token("gil"), "openai/mock")
    assert error["code"] == "egress_refused"
    assert f"/models/{made['id']}" in error["hint"]


def test_a_model_server_of_ones_own_needs_no_key(world: World) -> None:
    there = world.provider.base_url("openrouter")  # its list of models is everybody's to read
    draft = {"provider": "openrouter", "name": "mock/mock", "base_url": there, "auth_style": "none", "system": True}
    made = world.admin.call("POST", "/models", json=draft)
    token = of(world, "hugo").token("hugo")
    heard(world.admin)
    answer = world.ask(token, "openrouter/mock/mock")
    assert answer.headers["x-keybearer-key-source"] == "model"
    seen: Any = world.last()
    assert not {"authorization", "x-api-key", "api-key", "cookie"} & set(seen["headers"])
    world.admin.call("DELETE", f"/models/{made['id']}")
    alone = world.admin.http.post("/api/v1/models", json={"provider": "openai", "name": "x", "auth_style": "none"})
    assert alone.json()["fields"][0]["field"] == "auth_style"


def test_a_key_in_a_header_of_its_own(world: World) -> None:
    draft = {
        "provider": "azure",
        "name": "mock",
        "base_url": world.provider.base_url("azure"),
        "api_key": OWN_KEY,
        "system": True,
    }
    made = world.admin.call(
        "POST", "/models", json=draft | {"auth_style": "header", "auth_header": "API-Key", "aliases": ["deployed"]}
    )
    seen = answered(world, of(world, "ines").token("ines"), "deployed")
    assert seen["headers"]["api-key"] == OWN_KEY
    assert seen["target"] == "/azure/openai/v1/chat/completions"
    world.admin.call("DELETE", f"/models/{made['id']}")
    for header in ("host", "x y", "content-length", ""):
        wrong = draft | {"auth_style": "header", "auth_header": header}
        assert world.admin.http.post("/api/v1/models", json=wrong).status_code == 422


def test_defaults_fill_what_a_request_leaves_out(world: World) -> None:
    june = of(world, "june")
    token = june.token("june")
    draft = {"provider": "openai", "name": "mock", "parameters": {"temperature": 0.2, "max_tokens": 50}, "aliases": ["calm"]}
    made = june.call("POST", "/models", json=draft)
    assert made["parameters"] == {"temperature": 0.2, "max_tokens": 50}
    sent = json.loads(answered(world, token, "calm", temperature=0.9)["body"])
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("mock", 0.9, 50)
    streamed = json.loads(answered(world, token, "calm", stream=True)["body"])
    assert (streamed["temperature"], streamed["stream"], streamed["stream_options"]) == (0.2, True, {"include_usage": True})
    wrong: tuple[dict[str, Any], ...] = ({"model": "x"}, {"Stream": True}, {"messages": []}, {"x": "y" * 9_000})
    for parameters in wrong:
        june.call("PATCH", f"/models/{made['id']}", json={"parameters": parameters}, status=422)
    june.call("PATCH", f"/models/{made['id']}", json={"parameters": {}})
    assert "max_tokens" not in json.loads(answered(world, token, "calm")["body"])


def test_an_alias_means_one_model(world: World) -> None:
    karl = of(world, "karl")
    first = karl.call("POST", "/models", json={"provider": "openai", "name": "mock", "aliases": ["best", "gpt-5"]})
    answer = karl.http.post("/api/v1/models", json={"provider": "groq", "name": "mock", "aliases": ["best"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    for alias in ("openai/x", "a b", "", "x\x00", "y" * 201):
        answer = karl.http.post("/api/v1/models", json={"provider": "groq", "name": "mock", "aliases": [alias]})
        assert answer.status_code == 422, alias
    answer = karl.http.post("/api/v1/models", json={"provider": "openai", "name": "mock"})
    assert answer.json()["code"] == "conflict"
    token = karl.token("karl")
    assert json.loads(answered(world, token, "best")["body"])["model"] == "mock"
    assert json.loads(answered(world, token, "gpt-5")["body"])["model"] == "mock"  # one's own word comes first
    assert json.loads(answered(world, token, "openai/gpt-5")["body"])["model"] == "gpt-5"  # a provider's name is nobody's
    listed = {row["id"] for row in karl.http.get("/v1/models", headers={"authorization": f"Bearer {token}"}).json()["data"]}
    assert {"best", "openai/mock"} <= listed
    karl.call("PATCH", f"/models/{first['id']}", json={"aliases": []})
    assert refused(world, token, "best")["code"] == "model_not_found"


def test_a_token_for_some_models_is_not_widened_by_an_alias(world: World) -> None:
    lena = of(world, "lena")
    lena.call("POST", "/models", json={"provider": "openai", "name": "mock", "aliases": ["mine"]})
    token = lena.token("narrow", allowed_models=["openai/gpt-5"])
    assert refused(world, token, "mine")["code"] == "model_not_allowed"
    other = lena.token("provider", allowed_providers=["groq"])
    assert refused(world, other, "mine")["code"] == "provider_not_allowed"


def test_what_is_another_persons_is_as_unknown(world: World) -> None:
    mara, nils = of(world, "mara"), of(world, "nils")
    made = mara.call("POST", "/models", json={"provider": "openai", "name": "mock", "api_key": USERS_KEY, "aliases": ["maras"]})
    assert made["id"] not in str(nils.call("GET", "/models"))
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/test")):
        body = {"display_name": "x"} if method == "PATCH" else None
        answer = nils.http.request(method, f"/api/v1/models/{made['id']}{path}", json=body)
        unknown = nils.http.request(method, f"/api/v1/models/{made['secret_id']}{path}", json=body)
        assert (answer.status_code, answer.json()) == (404, unknown.json())
    assert refused(world, nils.token("nils"), "maras")["code"] == "model_not_found"
    nils.call("POST", "/models", json={"provider": "openai", "name": "x", "system": True}, status=403)
    assert world.admin.call("GET", "/models?provider=openai")["items"] == []


def test_pages_templates_and_tests_before_saving(world: World) -> None:
    olga = of(world, "olga")
    for number in range(5):
        olga.call("POST", "/models", json={"provider": "openai", "name": f"mock-size-{number}"})
    seen: list[str] = []
    cursor = None
    while True:
        page = olga.call("GET", "/models?limit=2" + (f"&cursor={cursor}" if cursor else ""))
        assert len(page["items"]) <= 2
        seen += [row["name"] for row in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"mock-size-{number}" for number in range(5)]
    olga.call("GET", "/models?cursor=nonsense", status=422)
    templates = olga.call("GET", "/models/templates")["items"]
    assert {"provider": "voyage", "name": "voyage-4", "kind": "embedding"}.items() <= next(
        row for row in templates if row["name"] == "voyage-4"
    ).items()
    assert {row["kind"] for row in templates} == {"chat", "embedding", "rerank", "image", "audio", "moderation"}
    for template in templates[::20]:
        fields = ("provider", "name", "display_name", "kind")
        olga.call("POST", "/models", json={name: template[name] for name in fields})

    assert olga.call("POST", "/models/test", json={"provider": "openai", "name": "mock"})["status"] == "ok"
    unlisted = olga.call("POST", "/models/test", json={"provider": "openai", "name": "no-such-model"})
    assert "does not list" in unlisted["message"]
    wrong = olga.call("POST", "/models/test", json={"provider": "openai", "name": "mock", "api_key": "sk-wrong"})
    assert wrong["status"] == "invalid"
    assert "sk-wrong" not in str(wrong)
    missing = olga.http.post("/api/v1/models/test", json={"provider": "xai", "name": "grok-4.7"})
    assert missing.json()["code"] == "key_missing"
    elsewhere = olga.http.post(
        "/api/v1/models/test", json={"provider": "openai", "name": "x", "base_url": "http://169.254.169.254/"}
    )
    assert elsewhere.status_code == 422


BAD: list[tuple[dict[str, Any], str]] = [
    ({"provider": "nobody"}, "provider_unknown"),
    ({"name": "a b"}, "invalid"),
    ({"name": ""}, "invalid"),
    ({"name": "x\u202ey"}, "invalid"),
    ({"kind": "poem"}, "invalid"),
    ({"base_url": "ftp://x.example"}, "invalid"),
    ({"base_url": "https://user:kbtest@x.example"}, "invalid"),
    ({"base_url": "https://x.example/?key=kbtest"}, "invalid"),
    ({"base_url": "http://x.example"}, "invalid"),
    ({"base_url": "https://10.0.0.1"}, "invalid"),
    ({"base_url": "https://{resource}.example"}, "invalid"),
    ({"auth_style": "query"}, "invalid"),
    ({"api_key": "sk-admin-kbtest-0123456789abcdefghij"}, "key_refused"),
    ({"api_key": "kbtest-of-another-form"}, "key_doubtful"),
    ({"provider": "azure", "api_key": "kbtest", "save_anyway": True}, "invalid"),
    ({"provider": "postgresql", "base_url": "https://x.example"}, "invalid"),
    ({"parameters": {"temperature": {"a": "b" * 9_000}}}, "invalid"),
    ({"aliases": ["x"] * 30}, "invalid"),
    ({"api_keys": "x"}, "invalid"),
]


@pytest.mark.parametrize(("wrong", "code"), BAD)
def test_a_wrong_model_is_refused_and_nothing_is_left_of_it(world: World, wrong: dict[str, Any], code: str) -> None:
    pia = world.person("pia")
    world.move_back("azure")
    answer = pia.http.post("/api/v1/models", json={"provider": "openai", "name": "mock"} | wrong)
    assert answer.json()["code"] == code, answer.text
    assert answer.json()["hint"]
    assert "kbtest" not in answer.text
    assert pia.call("GET", "/models")["items"] == []
    assert pia.call("GET", "/secrets")["items"] == []


def test_tokens_do_what_their_scopes_say(world: World) -> None:
    rosa = of(world, "rosa")
    draft = {"provider": "openai", "name": "mock"}

    def call(token: str, method: str, path: str, body: object = None) -> int:
        headers = {"authorization": f"Bearer {token}"}
        return httpx2.request(method, f"{world.server.url}/api/v1{path}", json=body, headers=headers).status_code

    use, write = rosa.token("use", scopes=("secrets:use",)), rosa.token("write", scopes=("models:write",))
    assert call(use, "POST", "/models", draft) == 403
    assert call(write, "POST", "/models", draft | {"api_key": USERS_KEY}) == 403
    assert call(write, "POST", "/models", draft) == 201
    (made,) = rosa.call("GET", "/models")["items"]
    assert call(use, "DELETE", f"/models/{made['id']}") == 403
    assert call(write, "POST", f"/models/{made['id']}/test") == 403
    assert call(use, "POST", f"/models/{made['id']}/test") == 200
    narrow = rosa.token("narrow", scopes=("secrets:use",), allowed_providers=["groq"])
    assert call(narrow, "POST", f"/models/{made['id']}/test") == 403

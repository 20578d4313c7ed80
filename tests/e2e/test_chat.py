"""One chat with models of three dialects, whole and streamed, with tools; by session and by token; and what can go wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.e2e.conftest import KEYS, World, settle
from tests.support import server as servers
from tests.support.provider import Provider

from keybearer.api import problems
from keybearer.api.chat import provider_error

HELLO = [{"role": "user", "content": "Hello"}]
MODELS = {"openai": "openai/gpt-4o-mini", "anthropic": "anthropic/claude-sonnet-4-6", "gemini": "gemini/gemini-2.5-flash"}
WEATHER = {
    "name": "weather",
    "description": "The weather in a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(provider: Provider, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[World]:
    settings = {}
    if request.param == "postgresql":
        url, direct = request.getfixturevalue("postgresql_urls")
        settings = {"database_url": url, "database_direct_url": direct}
    data = tmp_path_factory.mktemp("chat") / "data"
    with servers.running(data, egress_allow="127.0.0.1", **settings) as server:
        yield settle(server, provider)


def ask(http: httpx2.Client, model: str, **more: Any) -> httpx2.Response:
    return http.post("/api/chat", json={"modelId": model, "messages": HELLO, **more})


@pytest.mark.parametrize(
    ("stated", "told"),
    [("30", "30"), ("1.2", "2"), ("Fri, 31 Dec 1999 23:59:59 GMT", "0"), ("9" * 400, None), ("soon", None), ("", None)],
)
def test_how_long_a_provider_wants_to_be_left_alone_is_passed_on(stated: str, told: str | None) -> None:
    error = provider_error(429, {"retry-after": stated}, b"")
    assert problems.response(error).headers.get("retry-after") == told


def events(answer: httpx2.Response) -> list[tuple[str, dict[str, Any]]]:
    """A stream's events, name and data."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    found = []
    for event in answer.text.strip().split("\n\n"):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_chat_whole_and_streamed_says_the_same(world: World, name: str) -> None:
    whole = ask(world.admin.http, MODELS[name], temperature=0.5, maxTokens=500)
    assert whole.status_code == 200, whole.text
    said = whole.json()
    assert said["message"]["role"] == "assistant"
    assert said["message"]["content"]
    assert (said["toolCalls"], said["finishReason"]) == ([], "stop")
    assert said["usage"]["inputTokens"] > 0
    assert said["usage"]["outputTokens"] > 0
    assert said["cost"] > 0
    receipt = said["receipt"]
    assert (receipt["keySource"], receipt["provider"]) == ("user", name)
    assert receipt["requestId"].startswith("req_")

    with servers.program(world.server, world.token).http as http:
        found = events(ask(http, MODELS[name], stream=True))
    assert {kind for kind, _ in found[:-1]} == {"delta"}
    kind, done = found[-1]
    assert kind == "done"
    assert "".join(data["text"] for _, data in found[:-1]) == done["message"]["content"] == said["message"]["content"]
    assert done["usage"]["outputTokens"] > 0
    assert done["cost"] > 0
    assert done["receipt"]["secretId"] == receipt["secretId"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_tools_are_called_and_their_results_taken(world: World, name: str, streamed: bool) -> None:  # noqa: FBT001
    answer = ask(world.admin.http, MODELS[name], tools=[WEATHER], stream=streamed)
    if streamed:
        found = events(answer)
        assert [kind for kind, _ in found] == ["tool_call", "done"]
        said = found[-1][1]
        assert found[0][1] == said["toolCalls"][0]
    else:
        said = answer.json()
    assert said["finishReason"] == "tool_calls"
    (call,) = said["toolCalls"]
    assert call["name"] == "weather"
    assert set(call["arguments"]) == {"place"}

    asked = {"role": "assistant", "content": "", "toolCalls": said["toolCalls"]}
    result = {"role": "tool", "toolCallId": call["id"], "content": "Sunny, 21 degrees"}
    world.provider.forget()
    system = {"role": "system", "content": "Be brief."}
    after = ask(world.admin.http, MODELS[name], tools=[WEATHER], messages=[system, *HELLO, asked, result])
    assert after.status_code == 200, after.text
    assert after.json()["message"]["content"]
    assert after.json()["finishReason"] == "stop"


@pytest.mark.parametrize("streamed", [False, True])
def test_gemini_gets_back_what_it_signed(world: World, streamed: bool) -> None:  # noqa: FBT001
    """Its models from 3 on refuse a call's result without the signature of the call; two steps of one turn need both."""
    model, talk = "gemini/gemini-3.8-flash", list[dict[str, Any]](HELLO)
    for _ in range(2):
        answer = ask(world.admin.http, model, tools=[WEATHER], stream=streamed, messages=talk)
        said = events(answer)[-1][1] if streamed else answer.json()
        (call,) = said["toolCalls"]
        assert call["signature"]
        talk += [
            {"role": "assistant", "toolCalls": said["toolCalls"]},
            {"role": "tool", "toolCallId": call["id"], "content": "Sun"},
        ]
        after = ask(world.admin.http, model, tools=[WEATHER], messages=talk)
        assert after.json()["finishReason"] == "stop", after.text
        talk += [after.json()["message"], {"role": "user", "content": "And there?"}]
    del talk[-2:], talk[-2]["toolCalls"][0]["signature"]
    assert "thought_signature" in ask(world.admin.http, model, tools=[WEATHER], messages=talk).json()["detail"]


def test_a_model_is_named_by_its_registered_id_too(world: World) -> None:
    """It is called as it was registered: at its address, with its own key and its defaults."""
    key = "sk-proj-kbtest-of-the-model-0123456789abcdefghij"
    elsewhere = world.provider.base_url("xai")
    model: dict[str, Any] = {
        "provider": "openai",
        "name": "gpt-4.1-mini",
        "base_url": elsewhere,
        "api_key": key,
        "parameters": {"seed": 7},
    }
    model["system"] = True  # only an administrator's may have a private address
    made = world.admin.call("POST", "/models", json=model)
    for asker in (world.admin.http, servers.program(world.server, world.token).http):
        for streamed in (False, True):
            world.provider.forget()
            answer = servers.until(
                lambda asker=asker, streamed=streamed: ask(asker, made["id"], stream=streamed),  # type: ignore[misc]
                lambda found: found.status_code == 200,
            )
            said = events(answer)[-1][1] if streamed else answer.json()
            assert said["receipt"]["model"].startswith("gpt-4.1-mini")
            assert said["receipt"]["secretId"] == made["secret_id"]
            request = world.provider.requests()[-1]
            assert request["target"] == "/xai/v1/chat/completions"
            assert request["headers"]["authorization"] == f"Bearer {key}"
            assert json.loads(request["body"])["seed"] == 7
    world.admin.call("DELETE", f"/models/{made['id']}")
    assert ask(world.admin.http, made["id"]).json()["code"] == "not_found"


def test_an_id_never_means_another_model_of_that_name(world: World) -> None:
    """Everybody's model and one's own of the same name: the id of the one must not be served, and paid, as the other."""
    everybodys = world.admin.call("POST", "/models", json={"provider": "openai", "name": "gpt-4.1-nano", "system": True})
    servers.until(lambda: ask(world.admin.http, everybodys["id"]), lambda found: found.status_code == 200)
    own = {"provider": "openai", "name": "gpt-4.1-nano", "api_key": "sk-proj-kbtest-own-0123456789abcdefghijklmnop"}
    mine = world.admin.call("POST", "/models", json=own)
    servers.until(
        lambda: ask(world.admin.http, mine["id"]),
        lambda found: found.status_code == 200 and found.json()["receipt"]["secretId"] == mine["secret_id"],
    )
    refused = ask(world.admin.http, everybodys["id"])
    assert (refused.status_code, refused.json()["code"]) == (400, "model_ambiguous"), refused.text
    for model in (mine, everybodys):
        world.admin.call("DELETE", f"/models/{model['id']}")


def test_each_chat_is_on_record_with_whose_key_and_what_for(world: World) -> None:
    answer = world.admin.http.post(
        "/api/chat",
        json={"modelId": MODELS["openai"], "messages": HELLO},
        headers={"x-keybearer-workflow": "support", "x-keybearer-node": "reply"},
    )
    request_id = answer.json()["receipt"]["requestId"]

    def mine(found: httpx2.Response) -> bool:
        return any(row["request_id"] == request_id and row["outcome"] == "ok" for row in found.json()["items"])

    rows = servers.until(lambda: world.admin.http.get("/api/v1/usage?limit=20"), mine).json()["items"]
    (row,) = [row for row in rows if row["request_id"] == request_id]
    assert (row["operation"], row["workflow"], row["node"], row["provider"]) == ("chat.completions", "support", "reply", "openai")


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": []}, 422, "invalid"),
    ({"messages": [{"role": "user", "content": ""}]}, 422, "invalid"),
    ({"messages": [{"role": "system", "content": "Be brief."}]}, 422, "invalid"),
    ({"messages": [{"role": "root", "content": "x"}]}, 422, "invalid"),
    ({"messages": [*HELLO, {"role": "tool", "toolCallId": "call_9", "content": "x"}]}, 422, "invalid"),
    ({"messages": [{**HELLO[0], "toolCalls": [{"id": "1", "name": "x", "arguments": {}}]}]}, 422, "invalid"),
    ({"modelId": ""}, 422, "invalid"),
    ({"modelId": "nobody/nothing"}, 404, "model_unknown"),
    ({"modelId": "mistral/mistral-large-latest"}, 404, "key_missing"),
    ({"modelId": "slack/chat"}, 422, "invalid"),
    ({"modelId": "00000000-0000-4000-8000-000000000000"}, 404, "not_found"),
    ({"temperature": 9}, 422, "invalid"),
    ({"maxTokens": 0}, 422, "invalid"),
    ({"max_tokens": 5}, 422, "invalid"),
    ({"unknown": 1}, 422, "invalid"),
    ({"tools": [{"name": "not a name"}]}, 422, "invalid"),
    ({"modelId": "openai/mock-429"}, 429, "rate_limited"),
    ({"modelId": "openai/mock-500"}, 502, "upstream_error"),
    ({"modelId": "anthropic/mock-401"}, 403, "key_failed"),
    ({"modelId": "gemini/mock-400"}, 400, "invalid_request"),
    ({"modelId": "openai/mock-badjson"}, 502, "upstream_malformed"),
    ({"modelId": "openai/mock-drop"}, 502, "upstream_unreachable"),
]


# What is malformed in a stream is known only when that has begun: the next test's matter.
@pytest.mark.parametrize(
    ("change", "status", "code", "streamed"),
    [(*each, streamed) for each in BAD for streamed in (False, True) if not (streamed and each[2] == "upstream_malformed")],
)
def test_what_goes_wrong_has_a_type(world: World, change: dict[str, Any], status: int, code: str, streamed: bool) -> None:  # noqa: FBT001
    asked = {"modelId": MODELS["openai"], "messages": HELLO, "stream": streamed, **change}
    answer = world.admin.http.post("/api/chat", json=asked)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert all(key not in answer.text for key in KEYS.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_that_breaks_off_ends_in_an_error(world: World, name: str) -> None:
    found = events(ask(world.admin.http, f"{name}/mock-chunks-20-cut-5", stream=True))
    assert [kind for kind, _ in found].count("done") == 0
    kind, error = found[-1]
    assert kind == "error"
    assert error["code"].startswith("upstream")


def test_strangers_other_sites_and_tokens_without_the_scope_are_refused(world: World) -> None:
    asked = {"modelId": MODELS["openai"], "messages": HELLO}
    assert httpx2.post(f"{world.server.url}/api/chat", json=asked).status_code == 401
    forged = world.admin.http.post(
        "/api/chat", json=asked, headers={"origin": "https://elsewhere.example", "sec-fetch-site": "cross-site"}
    )
    assert forged.json()["code"] == "csrf_failed"
    with servers.program(world.server, world.admin.token("no chat", ("usage:read",))).http as http:
        assert ask(http, MODELS["openai"]).json()["code"] == "scope_missing"
    limited = world.admin.token("one model", allowed_models=["openai/gpt-4o"])
    with servers.program(world.server, limited).http as http:
        assert ask(http, MODELS["openai"]).json()["code"] == "model_not_allowed"


def test_nobody_chats_as_somebody_else(world: World) -> None:
    """As at the gateway: what is asked for a host application's user must not be served, and paid, as the caller's own."""
    asked = {"modelId": MODELS["openai"], "messages": HELLO}
    world.provider.forget()
    for http in (world.admin.http, servers.program(world.server, world.token).http):
        refused = http.post("/api/chat", json=asked, headers={"x-keybearer-user": "their-user-7"})
        assert refused.status_code == 403, refused.text
        assert "x-keybearer-user" in refused.text
    assert world.provider.requests() == []


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_ends_the_providers_call(world: World, streamed: bool) -> None:  # noqa: FBT001
    world.provider.forget()
    model = "openai/mock-chunks-400-pace-50ms" if streamed else "openai/mock-slow-20s"
    with httpx2.Client(base_url=world.server.url, headers={"authorization": f"Bearer {world.token}"}) as http:
        asked = {"modelId": model, "messages": HELLO, "stream": streamed}
        if streamed:
            with http.stream("POST", "/api/chat", json=asked, timeout=10) as answer:
                assert next(answer.iter_bytes())
        else:
            with pytest.raises(httpx2.ReadTimeout):
                http.post("/api/chat", json=asked, timeout=1.0)
    deadline = time.monotonic() + 8
    while not any(found["outcome"] == "left" for found in world.provider.requests()):
        assert time.monotonic() < deadline, world.provider.requests()[-1]
        time.sleep(0.1)


def test_a_switched_off_key_serves_no_chat_within_a_second(world: World) -> None:
    (mine,) = [each for each in world.admin.call("GET", "/secrets?provider=gemini")["items"] if each["name"] == "default"]
    assert ask(world.admin.http, MODELS["gemini"]).status_code == 200
    world.admin.call("PATCH", f"/secrets/{mine['id']}", json={"is_active": False})
    servers.until(lambda: ask(world.admin.http, MODELS["gemini"]), lambda found: found.status_code == 403)
    world.admin.call("PATCH", f"/secrets/{mine['id']}", json={"is_active": True})
    servers.until(lambda: ask(world.admin.http, MODELS["gemini"]), lambda found: found.status_code == 200)


def test_a_change_in_mid_call_ends_no_chat(world: World) -> None:
    """A session's caller is admitted anew where what was known of them was dropped, as a token's is."""
    for number in range(5):
        made = world.admin.add_key("mistral", f"kbtest-mistral-{number}-0123456789abcdef", name=f"k{number}")
        assert ask(world.admin.http, MODELS["openai"]).status_code == 200
        world.admin.call("DELETE", f"/secrets/{made['id']}")
        time.sleep(0.24)
        assert ask(world.admin.http, MODELS["openai"]).status_code == 200

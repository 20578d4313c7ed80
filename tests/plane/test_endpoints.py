"""Every endpoint beside chat: what arrives at the provider, what comes back, what is recorded of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.plane.conftest import KEY, House, credential
from tests.plane.wire import Answer, fixed
from tests.pure.test_meter import ANSWERS, RECORDED

from keybearer.catalog import Catalog, Registry, with_base_url
from keybearer.domain import SYSTEM_OWNER, KeySource, Usage

SOUND = bytes(range(256)) * 40


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def add(house: House, *names: str, **changed: Any) -> None:
    """Further providers, all of them behind the scripted one."""
    base = f"http://127.0.0.1:{house.provider.port}"
    known = house.vault.providers.providers.values()
    more = [with_base_url(Catalog.load().get(name), f"{base}/host") for name in names]
    house.vault.providers = Registry([*known, *more])
    for provider in more:
        house.vault.keys[provider.name] = credential(provider, **changed)


def share(house: House) -> None:
    """From now on all keys are the system's."""
    for name, found in house.vault.keys.items():
        house.vault.keys[name] = replace(found, owner=SYSTEM_OWNER, source=KeySource.SYSTEM)


def form(model: bytes = b"whisper-1", boundary: bytes = b"b0") -> bytes:
    return b"".join(
        (
            b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n' % boundary,
            b"Content-Type: audio/mpeg\r\n\r\n%b\r\n" % SOUND,
            b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--%b--\r\n' % (boundary, model, boundary),
        )
    )


def raw(house: House, line: str, body: bytes = b"", *headers: str) -> bytes:
    """A request with the token and exactly these headers."""
    lines = [f"{line} HTTP/1.1", "Host: gw", f"Authorization: Bearer {house.token}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def code(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["code"])


def _request_of(name: str, dialect: str, operation: str) -> tuple[str, bytes, str]:
    """The request that a recorded answer is an answer to: line, body, content type."""
    streams = name.endswith(".sse")
    prompt: dict[str, Any] = {"model": "gpt-4o-mini"} | ({"stream": True} if streams else {})
    if dialect == "gemini":
        query = "?alt=sse" if streams else ""
        return f"POST /v1beta/models/gemini-2.5-flash:{operation}{query}", b'{"contents":[]}', "application/json"
    if operation in {"audio.transcriptions", "images.edits"}:
        return f"POST /v1/{operation.replace('.', '/')}", form(b"gpt-4o-transcribe"), "multipart/form-data; boundary=b0"
    if operation in {"chat.completions", "completions"} and streams:
        prompt["stream_options"] = {"include_usage": True}
    path = operation.replace(".", "/") if dialect == "openai" else f"{operation.replace('.', '/')}"
    return f"POST /v1/{path}", json.dumps(prompt).encode(), "application/json"


REPLAYED = [name for name in RECORDED if "error.json" not in name]


@pytest.mark.parametrize("name", REPLAYED)
async def test_each_recorded_answer_passes_byte_for_byte_and_its_usage_is_what_it_says(house: House, name: str) -> None:
    dialect, operation, usage = RECORDED[name]
    said = (ANSWERS / name).read_bytes()
    line, body, content_type = _request_of(name, dialect, operation)
    kind = b"text/event-stream" if name.endswith(".sse") else b"application/json"
    house.provider.script = fixed(b"200 OK", said, b"content-type: " + kind)
    answer = await house.ask(raw(house, line, body, f"Content-Type: {content_type}"))
    assert (answer.status, answer.body) == (200, said)
    outcome = await house.outcome()
    # What an answer states of counting is no usage.
    expected = Usage() if operation in {"messages.count_tokens", "countTokens"} else usage
    assert outcome["usage"] == msgspec.to_builtins(expected)
    if not (expected.input_tokens or expected.output_tokens or expected.cost_usd):
        assert outcome["cost_micro_usd"] is None


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("openai-file.json", "GET /v1/files/file-1"),
        ("openai-batch.json", "GET /v1/batches/batch_1"),
        ("openai-batch.json", "POST /v1/batches/batch_1/cancel"),
        ("anthropic-batch.json", "GET /anthropic/v1/messages/batches/msgbatch_1"),
        ("openai-responses.json", "GET /v1/responses/resp_1"),
        ("openai-responses.sse", "GET /v1/responses/resp_1?stream=true"),
        ("openai-chat.json", "POST /p/openai/v1/chat/completions"),
    ],
)
async def test_what_is_kept_is_shown_as_often_as_one_likes_and_counted_once(house: House, name: str, line: str) -> None:
    said = (ANSWERS / name).read_bytes()
    house.provider.script = fixed(
        b"200 OK", said, b"content-type: text/event-stream" if name.endswith("sse") else b"content-type: a/b"
    )
    answer = await house.ask(raw(house, line))
    assert (answer.status, answer.body) == (200, said)
    outcome = await house.outcome()
    assert outcome["usage"] == msgspec.to_builtins(Usage())
    assert outcome["cost_micro_usd"] is None


async def test_a_recording_reaches_the_provider_byte_for_byte(house: House) -> None:
    said = (ANSWERS / "openai-transcription.json").read_bytes()
    house.provider.script = fixed(b"200 OK", said, b"content-type: application/json")
    answer = await house.ask(
        raw(house, "POST /v1/audio/transcriptions", form(), "Content-Type: multipart/form-data; boundary=b0")
    )
    assert (answer.status, answer.body) == (200, said)
    sent = house.provider.received[0]
    assert (sent.line, sent.body) == (b"POST /v1/audio/transcriptions HTTP/1.1", form())
    assert sent["content-type"] == "multipart/form-data; boundary=b0"
    assert sent["authorization"] == f"Bearer {KEY}"
    outcome = await house.outcome()
    assert (outcome["usage"]["input_tokens"], outcome["usage"]["output_tokens"]) == (14, 45)
    use = house.lines()[0]
    assert (use["operation"], use["model"], use["provider"]) == ("audio.transcriptions", "whisper-1", "openai")


async def test_a_model_named_with_its_provider_goes_there_under_its_own_name(house: House) -> None:
    add(house, "groq")
    body = form(b"groq/whisper-large-v3")
    await house.ask(raw(house, "POST /v1/audio/transcriptions", body, 'Content-Type: multipart/form-data; boundary="b0"'))
    sent = house.provider.received[0]
    assert sent.line == b"POST /host/v1/audio/transcriptions HTTP/1.1"
    assert sent.body == form(b"whisper-large-v3")
    assert sent["content-length"] == str(len(sent.body))


async def test_sound_comes_back_as_it_is_and_costs_nobody_knows_what(house: House) -> None:
    house.provider.script = fixed(b"200 OK", SOUND * 200, b"content-type: audio/mpeg")
    answer = await house.ask(house.request(b'{"model":"gpt-4o-mini-tts","voice":"alloy","input":"hi"}', path="/v1/audio/speech"))
    assert answer.body == SOUND * 200
    outcome = await house.outcome()
    assert (outcome["usage"]["input_tokens"], outcome["cost_micro_usd"]) == (None, None)


async def test_slack_is_called_with_its_key_under_p(house: House) -> None:
    add(house, "slack")
    house.provider.script = fixed(b"200 OK", b'{"ok":true,"usage":{"input_tokens":5}}', b"content-type: application/json")
    request = raw(
        house,
        "POST /p/slack/api/chat.postMessage?pretty=1",
        b"channel=C1&text=hi",
        "Content-Type: application/x-www-form-urlencoded",
        "Cookie: kbtest=1",
    )
    answer = await house.ask(request)
    assert (answer.status, answer.body) == (200, b'{"ok":true,"usage":{"input_tokens":5}}')
    assert answer["x-keybearer-provider"] == "slack"
    sent = house.provider.received[0]
    assert sent.line == b"POST /host/api/chat.postMessage?pretty=1 HTTP/1.1"
    assert sent["authorization"] == f"Bearer {KEY}"
    assert (sent.body, sent["content-type"], sent["cookie"]) == (b"channel=C1&text=hi", "application/x-www-form-urlencoded", None)
    outcome = await house.outcome()
    assert (outcome["usage"]["input_tokens"], outcome["cost_micro_usd"]) == (None, None)
    use = house.lines()[0]
    assert (use["operation"], use["model"], use["provider"]) == ("http", "", "slack")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_any_method_and_any_body_pass_under_p(house: House, method: str) -> None:
    add(house, "pinecone")
    body = b"" if method in {"GET", "HEAD", "OPTIONS"} else b"\x00\xff anything"
    answer = await house.ask(raw(house, f"{method} /p/pinecone/indexes/a%20b", body), method.encode())
    assert answer.status == 200
    sent = house.provider.received[0]
    assert (sent.line, sent.body) == (f"{method} /host/indexes/a%20b HTTP/1.1".encode(), body)
    assert sent["api-key"] == KEY
    assert sent["x-pinecone-api-version"] == "2025-10"


async def test_the_longest_root_says_how_the_key_is_sent_under_p(house: House) -> None:
    for path, header in (("/p/gemini/v1beta/models", "x-goog-api-key"), ("/p/gemini/v1beta/openai/models", "authorization")):
        await house.ask(raw(house, f"GET {path}"))
        sent = house.provider.received[-1]
        assert KEY in str(sent[header])


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /p/slack/../v1/models", 404),
        ("GET /p/slack/%2e%2e/v1/models", 404),
        ("GET /p/nobody/x", 404),
        ("GET /p/postgresql/x", 404),
        ("TRACE /p/slack/api/x", 405),
    ],
)
async def test_nothing_leaves_for_a_crooked_path(house: House, line: str, status: int) -> None:
    add(house, "slack")
    assert (await house.ask(raw(house, line))).status == status
    assert not house.provider.received


async def test_azures_paths_reach_azure_with_its_key_and_usage_is_asked_for(house: House) -> None:
    add(house, "azure")
    events = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\ndata: [DONE]\n\n'
    house.provider.script = fixed(b"200 OK", events, b"content-type: text/event-stream")
    path = "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
    body = b'{"messages":[],"stream":true,"model":"ignored"}'
    answer = await house.ask(house.request(body, path=path))
    assert (answer.status, answer.body) == (200, b"data: [DONE]\n\n")
    sent = house.provider.received[0]
    assert sent.line == f"POST /host{path} HTTP/1.1".encode()
    assert sent["api-key"] == KEY
    assert json.loads(sent.body) == {
        "messages": [],
        "stream": True,
        "model": "ignored",
        "stream_options": {"include_usage": True},
    }
    outcome = await house.outcome()
    assert (outcome["usage"]["input_tokens"], outcome["usage"]["output_tokens"]) == (5, 2)
    assert house.lines()[0]["model"] == "my-gpt"


@pytest.mark.parametrize("path", ["/anthropic", "/anthropic/", "/v1", "/openai/v1", "/gemini"])
async def test_an_agent_that_looks_whether_somebody_is_there_finds_somebody(house: House, path: str) -> None:
    for method in (b"HEAD", b"GET"):
        answer = await house.ask(b"%b %b HTTP/1.1\r\nHost: gw\r\n\r\n" % (method, path.encode()), method)
        assert answer.status == 200
        assert answer.body == (b"" if method == b"HEAD" else b"{}")
    known = await house.ask(house.request(b"", path=path, method="GET"))
    assert (known.status, known.body) == (200, b"{}")
    wrong = await house.ask(b"GET %b HTTP/1.1\r\nHost: gw\r\nX-Api-Key: kb_wrong\r\n\r\n" % path.encode())
    assert wrong.status == 401
    assert not house.provider.received
    assert not house.lines()


async def test_what_claude_code_sends_goes_on_as_it_is(house: House) -> None:
    body = b'{"model":"claude-sonnet-4-5","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}'
    headers = (
        "anthropic-version: 2023-06-01",
        "anthropic-beta: claude-code-20250219,interleaved-thinking-2025-05-14",
        "x-app: cli",
    )
    answer = await house.ask(house.request(body, *headers, path="/v1/messages?beta=true"))
    assert answer.status == 200
    sent = house.provider.received[0]
    assert sent.line == b"POST /v1/messages?beta=true HTTP/1.1"
    assert sent["anthropic-beta"] == "claude-code-20250219,interleaved-thinking-2025-05-14"
    assert (sent["x-api-key"], sent["authorization"], sent["x-app"]) == (KEY, None, "cli")


async def test_a_token_for_some_models_makes_no_call_that_names_none(house: House) -> None:
    add(house, "slack")
    house.vault.grants[house.token.encode()] = replace(house.grant, allowed_models=frozenset({"openai/gpt-4o-mini"}))
    for line in ("GET /v1/files", "POST /v1/batches", "POST /p/openai/v1/chat/completions", "POST /p/slack/api/chat.postMessage"):
        answer = await house.ask(raw(house, line, b"{}" if "POST" in line else b""))
        assert (answer.status, code(answer)) == (403, "model_not_allowed")
    assert not house.provider.received


async def test_with_a_shared_key_nobody_lists_what_others_made(house: House) -> None:
    add(house, "slack", "reddit")
    share(house)
    for line in (
        "GET /v1/files",
        "GET /v1/batches",
        "GET /p/openai/v1/files",
        "GET /p/reddit/api/v1/me",
        "GET /openai/v1/vector_stores",
    ):
        answer = await house.ask(raw(house, line))
        assert (answer.status, code(answer)) == (403, "shared_key_refused")
    for line in ("GET /v1/files/file-1", "GET /v1/responses/resp_1", "DELETE /p/openai/v1/files/file-1"):
        answer = await house.ask(raw(house, line))
        assert (answer.status, code(answer)) == (404, "not_found")
    body = b'{"model":"gpt-4o-mini","input":"x","previous_response_id":"resp_1"}'
    assert (await house.ask(house.request(body, path="/v1/responses"))).status == 404
    assert not house.provider.received
    assert not house.lines()
    assert (await house.ask(house.request())).status == 200
    assert (await house.ask(raw(house, "POST /p/slack/api/chat.postMessage", b"text=hi"))).status == 200

"""Answers of our own, in each dialect's shape; and the usage event that is taken out of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import anthropic
import httpx2
import openai
import pytest
from google.genai import errors as google_errors
from hypothesis import given
from hypothesis import strategies as st

from keybearer import errors
from keybearer.catalog import Catalog, Model, Registry, custom
from keybearer.errors import FieldError, Invalid, KeybearerError, KeyMissing, ModelUnknown, RateLimited, TokenInvalid, TrustLost
from keybearer.gateway.dialect import UsageHider, error_body, error_event, models_body

ANSWERS = Path(__file__).parent / "answers"
DIALECTS = ["openai", "anthropic", "gemini"]


def _all_errors() -> Iterator[type[KeybearerError]]:
    waiting: list[type[KeybearerError]] = [KeybearerError]
    while waiting:
        kind = waiting.pop()
        if kind.__module__.startswith("keybearer.errors."):  # what other modules derive is theirs, and takes other arguments
            yield kind
        waiting += kind.__subclasses__()


# --- error bodies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(_all_errors(), key=str), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_error_has_code_hint_and_request_id_in_each_shape(dialect: str, kind: type[KeybearerError]) -> None:
    status, content_type, body = error_body(dialect, kind("What is wrong."), "req-1")
    expected = 400 if kind.status == 422 else kind.status  # what no provider tells apart
    assert (status, content_type) == (expected, b"application/json")
    said = json.loads(body)
    text = body.decode()
    assert "What is wrong." in text
    assert "req-1" in text
    assert json.dumps(kind.default_hint, ensure_ascii=False)[1:-1] in text
    if dialect == "openai":
        assert set(said) == {"error"}
        assert {"message", "type", "param", "code"} <= set(said["error"])
    elif dialect == "anthropic":
        assert said["type"] == "error"
        assert said["error"]["type"].endswith(("_error", "_too_large"))
    else:
        assert said["error"]["code"] == status
        assert said["error"]["status"] == said["error"]["status"].upper()
        assert all(detail["@type"].startswith("type.googleapis.com/google.rpc.") for detail in said["error"]["details"])


KINDS: list[tuple[KeybearerError, str, str, str]] = [
    # error → type for OpenAI, type for Anthropic, status for Google
    (TokenInvalid(), "authentication_error", "authentication_error", "UNAUTHENTICATED"),
    (errors.CredentialsConflict(), "authentication_error", "authentication_error", "INVALID_ARGUMENT"),
    (errors.ProviderNotAllowed(), "permission_error", "permission_error", "PERMISSION_DENIED"),
    (KeyMissing(), "permission_error", "permission_error", "NOT_FOUND"),
    (ModelUnknown(), "invalid_request_error", "not_found_error", "NOT_FOUND"),
    (errors.RouteUnknown(), "invalid_request_error", "not_found_error", "NOT_FOUND"),
    (errors.MethodNotAllowed(), "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    (errors.InvalidJson(), "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    (Invalid(), "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    (errors.TooLarge(), "invalid_request_error", "request_too_large", "INVALID_ARGUMENT"),
    (errors.UnsupportedMediaType(), "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    (RateLimited(), "rate_limit_error", "rate_limit_error", "RESOURCE_EXHAUSTED"),
    (errors.UpstreamUnreachable(), "server_error", "api_error", "UNAVAILABLE"),
    (errors.UpstreamTimeout(), "server_error", "timeout_error", "DEADLINE_EXCEEDED"),
    (TrustLost(), "server_error", "overloaded_error", "UNAVAILABLE"),
    (errors.JournalFailed(), "server_error", "overloaded_error", "UNAVAILABLE"),
    (errors.Frozen(), "server_error", "api_error", "UNAVAILABLE"),
    (KeybearerError(), "server_error", "api_error", "INTERNAL"),
]


@pytest.mark.parametrize(
    ("error", "for_openai", "for_anthropic", "for_google"), KINDS, ids=lambda value: getattr(value, "code", "")
)
def test_kinds_of_errors_keep_their_names(error: KeybearerError, for_openai: str, for_anthropic: str, for_google: str) -> None:
    assert json.loads(error_body("openai", error, "r")[2])["error"]["type"] == for_openai
    assert json.loads(error_body("anthropic", error, "r")[2])["error"]["type"] == for_anthropic
    assert json.loads(error_body("gemini", error, "r")[2])["error"]["status"] == for_google


def test_fields_and_delays_have_their_places() -> None:
    error = Invalid(fields=(FieldError("model", "is missing"),), retry_after=1.5)
    assert json.loads(error_body("openai", error, "r")[2])["error"]["param"] == "model"
    details = json.loads(error_body("gemini", error, "r")[2])["error"]["details"]
    assert details[1]["fieldViolations"] == [{"field": "model", "description": "is missing"}]
    assert details[2]["retryDelay"] == "1.5s"


def test_an_unknown_model_has_the_code_that_openais_clients_look_for() -> None:
    assert json.loads(error_body("openai", ModelUnknown(), "r")[2])["error"]["code"] == "model_not_found"


# --- as the official SDKs understand them -----------------------------------------------------------------------------


def _transport(status: int, content_type: str, body: bytes) -> httpx2.MockTransport:
    return httpx2.MockTransport(lambda _: httpx2.Response(status, headers={"content-type": content_type}, content=body))


def _openai(status: int, content_type: str, body: bytes) -> openai.OpenAI:
    client = openai.DefaultHttpxClient(transport=_transport(status, content_type, body))
    return openai.OpenAI(api_key="kb_kbtest", base_url="http://gateway.test/v1", http_client=client, max_retries=0)


def _anthropic(status: int, content_type: str, body: bytes) -> anthropic.Anthropic:
    client = anthropic.DefaultHttpxClient(transport=_transport(status, content_type, body))
    return anthropic.Anthropic(api_key="kb_kbtest", base_url="http://gateway.test", http_client=client, max_retries=0)


CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def test_openais_sdk_reads_our_errors() -> None:
    status, _, body = error_body("openai", KeyMissing(), "req-1")
    with pytest.raises(openai.NotFoundError) as raised:
        _openai(status, "application/json", body).chat.completions.create(**CHAT)
    assert raised.value.code == "key_missing"
    assert "Secrets Vault" in str(raised.value)


def test_anthropics_sdk_reads_our_errors() -> None:
    status, _, body = error_body("anthropic", TokenInvalid(), "req-1")
    with pytest.raises(anthropic.AuthenticationError) as raised:
        _anthropic(status, "application/json", body).messages.create(**CHAT, max_tokens=1)
    assert "req-1" in str(raised.value)


def test_googles_sdk_reads_our_errors() -> None:
    status, _, body = error_body("gemini", KeyMissing(), "req-1")
    error = google_errors.ClientError(status, json.loads(body))
    assert (error.code, error.status, error.message) == (
        404,
        "NOT_FOUND",
        "You have no key for this provider. Add one in the Secrets Vault.",
    )


def test_openais_sdk_raises_an_error_in_mid_stream() -> None:
    answer = (ANSWERS / "openai-chat.sse").read_bytes().partition(b"\n\n")[0] + b"\n\n"
    answer += error_event("openai", "chat.completions", TrustLost(), "req-1")
    with pytest.raises(openai.APIError, match="database"):
        list(_openai(200, "text/event-stream", answer).chat.completions.create(**CHAT, stream=True))


def test_openais_sdk_sees_an_error_in_mid_response() -> None:
    answer = (ANSWERS / "openai-responses-aborted.sse").read_bytes()
    answer += error_event("openai", "responses", TrustLost(), "req-1")
    events = list(_openai(200, "text/event-stream", answer).responses.create(model="m", input="x", stream=True))
    assert events[-1].type == "error"
    assert events[-1].code == "database_unreachable"


def test_anthropics_sdk_raises_an_error_in_mid_stream() -> None:
    answer = (ANSWERS / "anthropic-messages-aborted.sse").read_bytes() + error_event(
        "anthropic", "messages", TrustLost(), "req-1"
    )
    with pytest.raises(anthropic.APIStatusError, match="database"):
        list(_anthropic(200, "text/event-stream", answer).messages.create(**CHAT, max_tokens=1, stream=True))


def test_googles_error_event_begins_as_its_sdk_looks_for_it() -> None:
    event = error_event("gemini", "streamGenerateContent", TrustLost(), "req-1")
    assert event.startswith(b'data: {"error":{"code":503,')
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2


@given(st.sampled_from(DIALECTS), st.text(), st.text())
def test_an_event_is_one_event_whatever_the_message(dialect: str, message: str, request_id: str) -> None:
    try:
        event = error_event(dialect, "messages", KeybearerError(message), request_id)
    except UnicodeEncodeError:
        assert any("\ud800" <= character <= "\udfff" for character in message + request_id)
        return
    assert event.count(b"\n\n") == 1
    assert b"\r" not in event


# --- the list of models -----------------------------------------------------------------------------------------------


def test_models_are_listed_by_names_that_can_be_called() -> None:
    mine = custom("mine", "Mine", "https://llm.example/v1", "none", "", [Model("llama", "Llama")], UUID(int=7))
    registry = Registry([*Catalog.load().providers.values(), mine])
    page = json.loads(models_body("openai", registry))
    names = [entry["id"] for entry in page["data"]]
    assert page["object"] == "list"
    assert {"openai/gpt-4o", "mine/llama", "openrouter/auto", "gemini/gemini-2.5-pro"} <= set(names)
    for entry in page["data"]:
        provider, _ = registry.locate(entry["id"])
        assert entry == {"id": entry["id"], "object": "model", "created": 0, "owned_by": provider.name}
    assert [model.id for model in _openai(200, "application/json", models_body("openai", registry)).models.list()] == names


def test_a_token_sees_only_what_it_may_use() -> None:
    registry = Registry(Catalog.load().providers.values())

    def names(**allowed: frozenset[str] | None) -> set[str]:
        return {entry["id"] for entry in json.loads(models_body("openai", registry, **allowed))["data"]}

    assert names(allowed_providers=frozenset({"xai"})) == {f"xai/{model.name}" for model in registry.get("xai").models}
    assert names(allowed_models=frozenset({"openai/gpt-5", "xai/other"})) == {"openai/gpt-5"}
    assert names(allowed_providers=frozenset()) == set()


def test_the_other_dialects_have_their_own_pages() -> None:
    registry = Registry(Catalog.load().providers.values())
    page = json.loads(models_body("anthropic", registry))
    assert page["first_id"] == page["data"][0]["id"]
    assert page["has_more"] is False
    assert json.loads(models_body("anthropic", Registry([]))) == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }
    assert json.loads(models_body("gemini", registry))["models"][0]["name"].startswith("models/openai/")


# --- the hidden usage event -------------------------------------------------------------------------------------------


def _passed(pieces: list[bytes]) -> bytes:
    hider = UsageHider()
    return b"".join([*(hider.feed(piece) for piece in pieces), hider.finish()])


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


ASKED = (ANSWERS / "openai-chat.sse").read_bytes()
HIDDEN = (ANSWERS / "openai-chat-hidden.sse").read_bytes()


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100, 1_000, 100_000])
def test_the_usage_event_is_taken_out_and_nothing_else(size: int) -> None:
    assert _passed([ASKED[at : at + size] for at in range(0, len(ASKED), size)]) == HIDDEN


@given(st.lists(st.integers(0, 5_000), max_size=10), st.integers(0, 5_000))
def test_pieces_and_cuts_make_no_difference(cuts: list[int], end: int) -> None:
    assert _passed(_pieces(ASKED, cuts)) == HIDDEN
    cut = _passed(_pieces(ASKED[:end], cuts))
    assert cut == _passed([ASKED[:end]])


def test_whole_events_pass_at_once() -> None:
    hider = UsageHider()
    for event in HIDDEN.split(b"\n\n")[:-1]:
        assert hider.feed(event + b"\n\n") == event + b"\n\n"


USAGE = b'{"prompt_tokens":1,"completion_tokens":2}'


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[],"usage":' + USAGE + b"}\n\n",
        b'data: {"choices": [ ], "usage": ' + USAGE + b"}\r\n\r\n",
        b'data:{"usage":' + USAGE + b',"choices":null}\n\n',
        b'data: {"id":"x","usage":' + USAGE + b"}\n\n",
        b'event: message\ndata: {"choices":[],\ndata: "usage":' + USAGE + b"}\n\n",
        b'data: {"choices":[],"usage":' + USAGE + b"}\r\r",
        b'data: {"choices":[],"usage":' + USAGE + b"}",
    ],
)
def test_forms_of_the_usage_event(event: bytes) -> None:
    assert _passed([b": ok\n\n", event]) == b": ok\n\n"
    assert _passed([b": ok\n\n" + event]) == b": ok\n\n"


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"index":0,"delta":{}}],"usage":' + USAGE + b"}\n\n",  # usage beside content: xAI, Groq
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[],"prompt_filter_results":[]}\n\n',  # Azure's first event
        b'data: {"choices":[],"usage":' + USAGE + b',"error":{"message":"x"}}\n\n',
        b'data: {"choices":[],"usage":5}\n\n',
        b'data: {"choices":[],"usage":{\n\n',
        b'data: {"choices":[{"delta":{"content":"\\"choices\\":[],\\"usage\\":{}"}}],"usage":null}\n\n',
        b'data: {"error":{"message":"x"}}\n\n',
        b": a comment\n\n",
        b"data: [DONE]\n\n",
        b"data: \xff\xfe\x00\n\n",
        b"\n\n\n\n",
        b'data: {"choices":[],"usage":{"x":"' + b"y" * 70_000 + b'"}}\n\n',
        b"data: " + b"x" * 300_000 + b"\n\n",
        b"data: " + b"x" * 300_000,
    ],
    ids=lambda event: event[:40],
)
@pytest.mark.parametrize("size", [1, 5_000, 1_000_000])
def test_everything_else_passes_byte_for_byte(event: bytes, size: int) -> None:
    if size == 1 and len(event) > 1_000:
        size = 997
    stream = b"data: 1\n\n" + event + b"data: 2\n\n"
    assert _passed([stream[at : at + size] for at in range(0, len(stream), size)]) == stream


def test_a_long_event_is_not_held_back() -> None:
    hider = UsageHider()
    passed = b"".join(hider.feed(b"x" * 1_000) for _ in range(100))
    assert len(passed) >= 30_000
    assert len(hider._held) <= 64 * 1024


_PARTS = st.lists(
    st.sampled_from(
        [b"\n", b"\r", b"\r\n", b"\n\n", b"data: ", b'{"choices":[],', b'"usage":' + USAGE, b"}", b"x", b"data: [DONE]"]
    ),
    max_size=14,
)


@given(_PARTS, st.lists(st.integers(0, 300), max_size=6))
def test_what_passes_never_depends_on_the_pieces(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    assert _passed(_pieces(stream, cuts)) == _passed([stream])

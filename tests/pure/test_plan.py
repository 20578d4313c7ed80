"""One request, decided: where it goes and which bytes go there."""

from __future__ import annotations

import json
import resource
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keybearer.catalog import Catalog, Model, Registry, custom, with_base_url
from keybearer.errors import (
    Invalid,
    InvalidJson,
    InvalidRequest,
    KeybearerError,
    ModelAmbiguous,
    ModelUnknown,
    ProviderUnknown,
    UnsupportedMediaType,
)
from keybearer.gateway import body as bodies
from keybearer.gateway.plan import Route, compose, plan, read, route

PREDEFINED = Catalog.load().providers
MINE = custom(
    "mine", "Mine", "https://llm.example/base/v1", "none", "", [Model("llama", "Llama"), Model("gpt-5", "Mine")], UUID(int=7)
)
REGISTRY = Registry([*PREDEFINED.values(), MINE])
JSON = b"application/json"


def _decided(found: Route, body: bytes, content_type: bytes = JSON, registry: Registry = REGISTRY) -> Any:
    """The plan, with the body as it goes on."""
    document = read(found, body, content_type)
    decided = plan(found, document, registry)
    sent, hide_usage = compose(decided, body, document)
    return SimpleNamespace(**msgspec.structs.asdict(decided), body=sent, hide_usage=hide_usage)


def _plan(line: str, body: Any = b"", content_type: bytes = JSON, **headers: str) -> Any:
    method, target = line.encode().split(b" ")
    raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return _decided(route(method, target, named), raw, content_type)


# request, model in the body → provider, upstream path, model in the body sent
PLANS = [
    ("POST /v1/chat/completions", "gpt-4o", "openai", "/v1/chat/completions", "gpt-4o"),
    ("POST /v1/chat/completions", "openai/gpt-4o", "openai", "/v1/chat/completions", "gpt-4o"),
    ("POST /v1/chat/completions", "claude-x", "anthropic", "/v1/chat/completions", "claude-x"),
    ("POST /v1/chat/completions", "anthropic/claude-x", "anthropic", "/v1/chat/completions", "claude-x"),
    ("POST /v1/chat/completions", "gemini/gemini-x", "gemini", "/v1beta/openai/chat/completions", "gemini-x"),
    ("POST /v1/chat/completions", "xai/grok-x", "xai", "/v1/chat/completions", "grok-x"),
    ("POST /v1/chat/completions", "openrouter/meta/llama", "openrouter", "/api/v1/chat/completions", "meta/llama"),
    ("POST /v1/chat/completions", "openrouter/auto", "openrouter", "/api/v1/chat/completions", "openrouter/auto"),
    ("POST /v1/chat/completions", "mine/llama", "mine", "/base/v1/chat/completions", "llama"),
    ("POST /v1/chat/completions", "mine/any-other", "mine", "/base/v1/chat/completions", "any-other"),
    ("POST /v1/chat/completions?x=1", "llama", "mine", "/base/v1/chat/completions?x=1", "llama"),
    ("POST /openai/v1/chat/completions", "gpt-5", "openai", "/v1/chat/completions", "gpt-5"),
    ("POST /anthropic/v1/chat/completions", "claude-x", "anthropic", "/v1/chat/completions", "claude-x"),
    ("POST /v1beta/openai/embeddings", "gemini-embedding-2", "gemini", "/v1beta/openai/embeddings", "gemini-embedding-2"),
    ("POST /v1/embeddings", "text-embedding-3-small", "openai", "/v1/embeddings", "text-embedding-3-small"),
    ("POST /v1/responses", "openai/gpt-6-luna", "openai", "/v1/responses", "gpt-6-luna"),
    ("POST /v1/completions", "mine/llama", "mine", "/base/v1/completions", "llama"),
    ("POST /v1/moderations", "omni-moderation-latest", "openai", "/v1/moderations", "omni-moderation-latest"),
    ("POST /v1/messages", "claude-x", "anthropic", "/v1/messages", "claude-x"),
    ("POST /v1/messages?beta=true", "anthropic/claude-x", "anthropic", "/v1/messages?beta=true", "claude-x"),
    ("POST /v1/messages/count_tokens", "claude-x", "anthropic", "/v1/messages/count_tokens", "claude-x"),
    ("POST /v1/messages", "openrouter/anthropic/claude-x", "openrouter", "/api/v1/messages", "anthropic/claude-x"),
]


@pytest.mark.parametrize(("line", "model", "provider", "path", "bare"), PLANS)
def test_the_models_name_decides_where_a_request_goes(line: str, model: str, provider: str, path: str, bare: str) -> None:
    decided = _plan(line, {"messages": [{"model": "not this"}], "model": model, "n": 1})
    assert decided.provider is not None
    assert decided.api is not None
    assert (decided.provider.name, decided.path.decode(), decided.model) == (provider, path, bare)
    assert json.loads(decided.body) == {"messages": [{"model": "not this"}], "model": bare, "n": 1}
    assert decided.api.dialect == decided.dialect
    assert (decided.streamed, decided.hide_usage, decided.local) == (False, False, None)


# request → provider, upstream path
PATH_PLANS = [
    ("POST /v1beta/models/gemini-x:generateContent", "gemini", "/v1beta/models/gemini-x:generateContent"),
    ("POST /v1/models/gemini-x:generateContent", "gemini", "/v1/models/gemini-x:generateContent"),
    ("POST /gemini/v1beta/models/gemini/gemini-x:embedContent", "gemini", "/v1beta/models/gemini-x:embedContent"),
    (
        "POST /v1beta/models/gemini-x:streamGenerateContent?alt=sse",
        "gemini",
        "/v1beta/models/gemini-x:streamGenerateContent?alt=sse",
    ),
    ("GET /v1beta/models/gemini-x", "gemini", "/v1beta/models/gemini-x"),
    ("GET /v1beta/models?pageSize=3", "gemini", "/v1beta/models?pageSize=3"),
    ("GET /openai/v1/models", "openai", "/v1/models"),
    ("GET /anthropic/v1/models?limit=2", "anthropic", "/v1/models?limit=2"),
    ("GET /v1/models/gpt-4o", "openai", "/v1/models/gpt-4o"),
    ("GET /v1/models/openrouter%2Fmeta%2Fllama@1", "openrouter", "/api/v1/models/meta/llama@1"),
    ("GET /v1/models/mine%2Fqwen2.5:7b", "mine", "/base/v1/models/qwen2.5:7b"),
]


@pytest.mark.parametrize(("line", "provider", "path"), PATH_PLANS)
def test_so_does_a_model_in_the_path(line: str, provider: str, path: str) -> None:
    decided = _plan(line, b"{}" if line.startswith("POST") else b"")
    assert decided.provider is not None
    assert (decided.provider.name, decided.path.decode()) == (provider, path)
    assert decided.streamed is ("stream" in line)
    assert decided.body == (b"{}" if line.startswith("POST") else b"")


def test_an_administrators_base_url_moves_the_upstream_path() -> None:
    registry = Registry([with_base_url(PREDEFINED["openai"], "https://proxy.example/llm")])
    decided = _decided(route(b"POST", b"/v1/embeddings", []), b'{"model":"openai/e"}', registry=registry)
    assert decided.path == b"/llm/v1/embeddings"


def test_the_list_of_models_is_answered_by_the_gateway() -> None:
    decided = _plan("GET /v1/models", content_type=b"")
    assert (decided.local, decided.provider, decided.api, decided.operation) == ("models", None, None, "models")


def test_moderations_may_leave_the_model_out() -> None:
    decided = _plan("POST /v1/moderations", {"input": "x"})
    assert (decided.model, decided.path, decided.body) == ("", b"/v1/moderations", b'{"input":"x"}')


def test_embedding_bodies_repeat_the_model_and_are_renamed_too() -> None:
    content = {"parts": [{"text": "models/gemini/e-1"}]}
    body: dict[str, Any] = {"requests": [{"model": "models/gemini/e-1", "content": content}, 5]}
    decided = _plan("POST /v1beta/models/gemini/e-1:batchEmbedContents", body)
    assert json.loads(decided.body) == {"requests": [{"model": "models/e-1", "content": content}, 5]}
    body = {"generateContentRequest": {"model": "models/gemini/g-1"}}
    decided = _plan("POST /v1beta/models/gemini/g-1:countTokens", body)
    assert json.loads(decided.body) == {"generateContentRequest": {"model": "models/g-1"}}


# --- streams ----------------------------------------------------------------------------------------------------------

ASKED = {"include_usage": True}
STREAMS: list[tuple[str, dict[str, Any], dict[str, Any] | None, bool]] = [
    # model, what the body has → stream_options sent, hidden
    ("gpt-4o", {"stream": True}, ASKED, True),
    ("gpt-4o", {"stream": True, "stream_options": None}, ASKED, True),
    ("gpt-4o", {"stream": True, "stream_options": {}}, ASKED, True),
    ("gpt-4o", {"stream": True, "stream_options": {"include_usage": False}}, ASKED, True),
    ("gpt-4o", {"stream": True, "stream_options": {"include_usage": 1}}, ASKED, True),
    ("gpt-4o", {"stream": True, "stream_options": {"include_obfuscation": False}}, {"include_obfuscation": False, **ASKED}, True),
    ("gpt-4o", {"stream": True, "stream_options": ASKED}, ASKED, False),
    ("gpt-4o", {"stream": False}, None, False),
    ("gpt-4o", {"stream": None}, None, False),
    ("gpt-4o", {}, None, False),
    ("anthropic/claude-x", {"stream": True}, ASKED, True),
    ("mine/llama", {"stream": True}, ASKED, True),
    ("openrouter/x/y", {"stream": True}, None, False),
]


@pytest.mark.parametrize(("model", "options", "sent", "hidden"), STREAMS)
def test_streams_are_asked_for_their_usage(
    model: str, options: dict[str, Any], sent: dict[str, Any] | None, *, hidden: bool
) -> None:
    for padding in ("", "x" * 5_000):
        body = {"messages": [padding], "model": model, **options, "user": "stream"}
        decided = _plan("POST /v1/chat/completions", body)
        assert decided.hide_usage is hidden
        assert decided.streamed is (options.get("stream") is True)
        expected = body | {"model": decided.model} | ({"stream_options": sent} if sent else {})
        assert json.loads(decided.body) == expected


def test_only_chat_and_completions_know_that_option() -> None:
    for line in ("POST /v1/responses", "POST /v1/messages"):
        decided = _plan(line, {"model": "openrouter/x/y" if "messages" in line else "gpt-4o", "stream": True})
        assert decided.streamed
        assert not decided.hide_usage
        assert b"stream_options" not in decided.body
    assert _plan("POST /v1/completions", {"model": "gpt-4o", "stream": True}).hide_usage


def test_stream_options_of_a_wrong_type() -> None:
    with pytest.raises(Invalid) as refused:
        _plan("POST /v1/chat/completions", {"model": "gpt-4o", "stream": True, "stream_options": [1]})
    assert refused.value.fields[0].field == "stream_options"


# --- splicing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"openai/gpt-4o"}',
        b'{ "messages" : [ "\\"model\\":\\"openai/gpt-4o\\"" ] ,\r\n\t"model"\n:\t"openai/gpt-4o" , "n":1}\n',
        b'{"metadata":{"model":"openai/gpt-4o","stream":true},"model":"openai/gpt-4o"}',
        b'{"model":"openai/gpt-4o","tools":[{"model":"x"},{"model":"y"}]}',
        b'{"m\\u006fdel":"openai/gpt-4o"}',
        b'{"model":"openai\\/gpt\\u002d4o","x":"\\u0041"}',
        b'{"x":"model","y":"\\"model\\"","z":"\\\\","model":"openai/gpt-4o"}',
        '{"ä":"€ 😀","model":"openai/gpt-4o","é":"model"}'.encode(),
        b'{"":{"":[[],{}]},"model":"openai/gpt-4o","e":1e999,"n":123456789012345678901234567890}',
        b'{"big":"' + b"x" * 9_000 + b'","model":"openai/gpt-4o"}',
        b'{"big":"' + b"\\\\" * 4_500 + b'", "model" : "openai\\/gpt-4o" , "y":[1, 2]}',
    ],
)
def test_renaming_touches_nothing_but_the_top_level_model(body: bytes) -> None:
    decided = _plan("POST /v1/chat/completions", body)
    assert json.loads(decided.body) == json.loads(body) | {"model": "gpt-4o"}
    # The longest common beginning and end leave only the value itself different.
    common = next(at for at, (old, new) in enumerate(zip(body, decided.body, strict=False)) if old != new)
    tail = len(decided.body) - common - len(b'gpt-4o"')
    assert body.endswith(decided.body[len(decided.body) - tail :])
    assert body[:common].endswith(b'"')


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-4o","model":"gpt-5"}',
        b'{"model":"gpt-4o","model":"gpt-4o"}',
        b'{"model":"gpt-4o","mod\\u0065l":"mine/llama"}',
        b'{"mod\\u0065l":"gpt-4o","model":"mine/llama"}',
        b'{"model":null,"model":"gpt-4o"}',
        b'{"model":"gpt-4o","model":null}',
        b'{"model":"gpt-4o","stream":true,"stream":false}',
        b'{"model":"gpt-4o","stream":true,"stream":null}',
        b'{"model":"gpt-4o","stream":true,"str\\u0065am":false}',
        b'{"model":"gpt-4o","stream_options":{},"stream_options":null}',
        # The last value is a prefix of the first, or hides its like inside: walking must not be led astray.
        b'{"model":"gpt-4o,\\"n\\":1","n":1,"model":"gpt-4o"}',
        b'{"n":12,"model":"gpt-4o","model":"x","n":1}',
        b'{"a":{"model":"x"},"model":"gpt-4o","a":{},"model":"y"}',
        # Readers that do not mind case, as Go's, would follow the other one.
        b'{"model":"gpt-4o","Model":"mine/llama"}',
        b'{"MODEL":"mine/llama","model":"gpt-4o"}',
        b'{"model":"gpt-4o","mod\\u0045l":"mine/llama"}',
        b'{"model":"gpt-4o","stream":true,"Stream":false}',
    ],
)
@pytest.mark.parametrize("padding", [0, 5_000])
def test_a_decisive_key_that_stands_twice_is_refused(body: bytes, padding: int) -> None:
    padded = body[:-1] + b',"padding":"' + b"x" * padding + b'"}'
    with pytest.raises(Invalid) as refused:
        _plan("POST /v1/chat/completions", padded)
    assert "twice" in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("key", ["top_p", "tools", "logits", "max_new_tokens"])
def test_a_key_as_long_as_a_decisive_one_needs_no_walk(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(bodies, "_walk", None)
    body = b'{"model":"gpt-4o","%b":1,"padding":"%b"}' % (key.encode(), b"x" * 5_000)
    assert _plan("POST /v1/chat/completions", body).body == body


_KEYS = st.sampled_from(["model", "stream", "stream_options", "messages", "a", "", "é", "mod", "\\", '"', "\u2028"]) | st.text(
    max_size=3
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


_SPELLINGS = st.fixed_dictionaries({"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 1])})


@given(
    st.dictionaries(_KEYS, _VALUES, max_size=5),
    st.sampled_from(["openai/gpt-4o", "gpt-4o", "mine/é"]),
    st.sampled_from([{"stream": True}, {"stream": False}, {"stream": None}, {}]),
    _SPELLINGS,
    st.integers(0, 1),
)
def test_splicing_means_the_same_as_encoding_again(
    document: dict[str, Any], model: str, asked: dict[str, Any], spelling: dict[str, Any], padding: int
) -> None:
    document.pop("stream", None)
    document |= {"model": model, "padding": "x" * 5_000 * padding, **asked}
    document.pop("stream_options", None)
    raw = json.dumps(document, **spelling).encode("utf-8", "surrogatepass")
    try:
        decided = _plan("POST /v1/chat/completions", raw)
    except InvalidJson:
        assert b"\\ud" in raw  # half of a surrogate pair
        return
    expected = document | {"model": model.partition("/")[2] or model}
    if asked.get("stream"):
        expected["stream_options"] = {"include_usage": True}
    assert json.loads(decided.body) == expected


# --- bad input --------------------------------------------------------------------------------------------------------

DEEP = b'{"model":"gpt-4o","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"model"',
        b"{",
        b'{"model":"gpt-4o"',
        b'{"model":"gpt-4o",}',
        b'{"model":"gpt-4o"}}',
        b'{"model":"gpt-4o"}\x00',
        b'\xef\xbb\xbf{"model":"gpt-4o"}',
        b'{"model":"gpt-4o","x":"\x00"}',
        b'{"model":"gpt-4o","x":"\xff"}',
        b'{"model":"gpt-4o","x":"\xed\xa0\x80"}',
        b'{"model":"gpt-4o","x":"\xc0\xaf"}',
        b'{"model":"gpt-4o","\xff":1}',
        b'{"model":"gpt-4o","x":"\\ud800"}',
        b'{"model":"\\udc00"}',
        b'{"model":"\xff"}',
        b'{"model":"gpt-4o","x":01}',
        b'{"model":"gpt-4o","x":NaN}',
        b"{'model':'gpt-4o'}",
        "{}".encode("utf-16"),
        DEEP,
    ],
    ids=lambda body: body[:24],
)
@pytest.mark.parametrize("line", ["POST /v1/chat/completions", "POST /v1beta/models/g:generateContent"])
def test_what_is_no_json_object_is_refused(line: str, body: bytes) -> None:
    for raw in (body, body[:-1] + b" " * 5_000 + body[-1:] if body[-1:] == b"}" else body):
        with pytest.raises(InvalidJson) as refused:
            _plan(line, raw)
        assert refused.value.message.isprintable()


def test_huge_numbers_pass_unread() -> None:
    body = b'{"model":"gpt-4o","x":' + b"9" * 10_000 + b',"y":-1e99999}'
    assert _plan("POST /v1/chat/completions", body).body == body


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "model"),
        (b'{"model":null}', "model"),
        (b'{"model":""}', "model"),
        (b'{"model":5}', "model"),
        (b'{"model":["gpt-4o"]}', "model"),
        (b'{"model":"gpt-4o","stream":"yes"}', "stream"),
        (b'{"model":"gpt-4o","stream":1}', "stream"),
        (b'{"model":"a\\u0000b"}', "model"),
        (b'{"model":"a\\r\\nX-Evil: 1"}', "model"),
        (b'{"model":"' + b"x" * 10_000 + b'"}', "model"),
        (b'{"model":"gpt\xe2\x80\xae4o"}', "model"),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else value,
)
def test_a_field_of_a_wrong_kind_is_named(body: bytes, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        _plan("POST /v1/chat/completions", body)
    assert not isinstance(refused.value, InvalidJson)
    assert refused.value.fields[0].field == field
    assert refused.value.hint
    assert len(refused.value.message) < 200


def test_a_long_key_costs_no_more_than_its_length() -> None:
    """Spelled with an escape it is read by pattern, which once kept a way back for each byte: 4 GB for a body of 32 MB."""
    body = b'{"model":"gpt-4o","\\u0061' + b"a" * 2_000_000 + b'":1,"messages":[]}'
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _plan("POST /v1/chat/completions", body).model == "gpt-4o"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB; it was 240,000


def test_more_keys_than_any_api_has() -> None:
    body = json.dumps({"model": "gpt-4o"} | {f"k{number}": 1 for number in range(2_000)}).encode()
    with pytest.raises(Invalid, match="keys"):
        _plan("POST /v1/chat/completions", body)


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"application/jsonp",
        b"\xff",
        b"application/json; charset=utf-16",
    ],
)
def test_another_content_type_is_refused(content_type: bytes) -> None:
    for line in ("POST /v1/chat/completions", "POST /v1beta/models/g:generateContent"):
        with pytest.raises(UnsupportedMediaType) as refused:
            _plan(line, b'{"model":"gpt-4o"}', content_type)
        assert "application/json" in refused.value.hint


@pytest.mark.parametrize("around", [b"application/json%bx", b"application/json;charset=utf-8%bx", b"application/json%b;%bx"])
def test_a_long_content_type_is_not_tried_in_all_ways(around: bytes) -> None:
    """One header of 60 kB of white space took three seconds, in which no other call went on."""
    began = time.thread_time()
    with pytest.raises(UnsupportedMediaType):
        _plan("POST /v1/chat/completions", b'{"model":"gpt-4o"}', around.replace(b"%b", b" " * 30_000))
    assert time.thread_time() - began < 0.2


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json;charset=UTF-8",
        b'application/json ; charset="utf-8"',
        b"application/json;",
    ],
)
def test_json_is_spelled_in_several_ways(content_type: bytes) -> None:
    assert _plan("POST /v1/chat/completions", b'{"model":"gpt-4o"}', content_type).model == "gpt-4o"


def test_a_body_where_none_belongs_is_refused() -> None:
    for line in ("GET /v1/models", "GET /openai/v1/models", "GET /v1beta/models/g"):
        with pytest.raises(InvalidRequest):
            _plan(line, b"{}")


def test_nothing_is_translated_between_dialects() -> None:
    with pytest.raises(ModelUnknown, match="xAI cannot") as refused:
        _plan("POST /v1/messages", {"model": "xai/grok-4.7"})
    assert "'xai/…'" in refused.value.hint
    with pytest.raises(ModelUnknown):
        _plan("POST /v1beta/models/openai/gpt-4o:generateContent", b"{}")


def test_unknown_and_ambiguous_models() -> None:
    with pytest.raises(ModelUnknown):
        _plan("POST /v1/chat/completions", {"model": "nobody-knows-me"})
    with pytest.raises(ModelAmbiguous):
        _plan("POST /v1/chat/completions", {"model": "gpt-5"})
    with pytest.raises(ProviderUnknown):
        _decided(route(b"POST", b"/openai/v1/embeddings", []), b'{"model":"x"}', registry=Registry([MINE]))


@given(st.binary(max_size=60) | _VALUES.map(lambda value: json.dumps(value).encode()))
@example(b'{"model":')
@example(b'{"model":[]}')
def test_planning_never_raises_anything_but_our_own_errors(body: bytes) -> None:
    for line in ("POST /v1/chat/completions", "POST /v1beta/models/gemini/g:batchEmbedContents", "POST /v1/moderations"):
        with suppress(KeybearerError):
            _plan(line, body)


def test_documents_are_spliced_once() -> None:
    document = bodies.Document(b'{"model":"a","stream":true}')
    assert document.spliced() is document.body
    document.rename("b")
    assert document.ask_usage()
    assert document.spliced() == b'{"stream_options":{"include_usage":true},"model":"b","stream":true}'

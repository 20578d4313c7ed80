"""With a key of several people: what a call names, in its path and its body, however it is written."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from keybearer.catalog import Catalog, Registry
from keybearer.domain import SYSTEM_OWNER, Credential, Grant, KeySource, Owner, OwnerKind, Role, SecretBytes
from keybearer.errors import InvalidJson, SharedKeyRefused, TooLarge, UnsupportedMediaType
from keybearer.gateway.fields import Lines
from keybearer.gateway.plan import plan, read, route
from keybearer.gateway.sharing import Guard, Named

USER, OTHER = UUID(int=7), UUID(int=8)
REGISTRY = Registry(Catalog.load().providers.values())
JSON = b"application/json"
FORM = b"multipart/form-data; boundary=b"


def key(provider: str = "openai", owner: Owner = SYSTEM_OWNER, source: KeySource = KeySource.SYSTEM) -> Credential:
    return Credential(uuid4(), 1, owner, provider, source, SecretBytes(b"kbtest-key"), (), None, None)


def guard(line: str, body: bytes = b"", content_type: bytes = JSON, credential: Credential | None = None) -> Guard | None:
    method, target = line.encode().split(b" ")
    headers = [(b"anthropic-version", b"x")] if "messages" in line else []
    found = route(method, target, headers)
    planned = plan(found, read(found, body, content_type), REGISTRY)
    grant = Grant("kbtesttoken1", USER, Role.MEMBER, frozenset(), None, None, (), None)
    return Guard.of(planned, credential or key(), "https://api.example", grant)


def named(line: str, document: Any = None, content_type: bytes = JSON) -> Named:
    body = b"" if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
    made = guard(line, body, content_type)
    assert made is not None
    return made.named(body, content_type)


def test_an_own_key_is_not_restricted() -> None:
    own = key(owner=Owner(OwnerKind.USER, USER), source=KeySource.USER)
    assert guard("GET /v1/files", credential=own) is None
    assert guard("GET /p/openai/v1/anything/at/all", credential=own) is None


@pytest.mark.parametrize(
    "credential",
    [
        key(),
        key(source=KeySource.MODEL),
        key(source=KeySource.OPENROUTER),
        key(owner=Owner(OwnerKind.TEAM, uuid4()), source=KeySource.TEAM),
        key(owner=Owner(OwnerKind.USER, OTHER), source=KeySource.TEAM),
    ],
    ids=["system", "a model's", "openrouter", "team", "lent by another"],
)
def test_every_key_of_somebody_else_is_shared(credential: Credential) -> None:
    assert guard("GET /v1/files/file-1", credential=credential) is not None
    with pytest.raises(SharedKeyRefused):
        guard("GET /v1/files", credential=credential)


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1/files",
        "HEAD /v1/files",
        "GET /v1/batches",
        "GET /v1/vector_stores",
        "POST /v1/vector_stores/vs_1/search",
        "POST /v1/uploads",
        "GET /v1/messages/batches",
        "GET /anthropic/v1/files",
        "GET /v1beta/files",
        "GET /v1beta/cachedContents",
        "GET /v1/cachedContents",
        "GET /gemini/v1/files",
        "POST /upload/v1/files",
        "POST /upload/v1beta/files",
        "GET /p/openai/v1/files",
        "GET /p/openai/v1/files/",
        "GET /p/openai/v1/organization/users",
        "GET /p/openai/other/v1/models",
        "DELETE /p/openai/v1/models/ft:mine",
        "GET /p/reddit/api/v1/me",
        "GET /p/google_drive/drive/v3/files",
        "GET /p/slack/api/conversations.history",
        "POST /p/slack/chat.postMessage",
        "GET /p/huggingface/api/whoami-v2",
        "GET /openai/files",
    ],
)
def test_what_the_catalogue_does_not_allow_is_refused(line: str) -> None:
    with pytest.raises(SharedKeyRefused) as refused:
        guard(line)
    assert "key of your own" in refused.value.hint


@pytest.mark.parametrize(
    "line",
    ["POST /p/slack/api/chat.postMessage", "GET /p/openai/v1/models", "POST /p/cohere/compatibility/v1/embeddings"],
)
def test_what_it_allows_is_served_under_p_too(line: str) -> None:
    assert named(line) == frozenset()


@pytest.mark.parametrize(
    ("line", "object_"),
    [
        ("GET /v1/files/file-1", ("file", "file-1")),
        ("HEAD /v1/files/file-1", ("file", "file-1")),
        ("GET /p/openai/v1/files/file-1/content", ("file", "file-1")),
        ("GET /openai/files/file-1?api-version=1", ("file", "file-1")),
        ("DELETE /v1/responses/resp_1", ("response", "resp_1")),
        ("POST /v1/batches/batch_1/cancel", ("batch", "batch_1")),
        ("GET /v1/messages/batches/msgbatch_1/results", ("batch", "msgbatch_1")),
        ("GET /v1beta/cachedContents/abc", ("cached_content", "abc")),
        ("DELETE /v1/cachedContents/abc", ("cached_content", "abc")),
        ("GET /v1/files/abc", ("file", "abc")),
    ],
)
def test_a_path_names_an_object(line: str, object_: tuple[str, str]) -> None:
    assert named(line) == {object_}


RESPONSES, CHAT, GEMINI = "POST /v1/responses", "POST /v1/chat/completions", "POST /v1beta/models/gemini-x:generateContent"
BODIES: list[tuple[str, Any, set[tuple[str, str]]]] = [
    (CHAT, {"model": "gpt-5", "messages": [{"role": "user", "content": 'my file_id is "file-1"'}]}, set()),
    (
        CHAT,
        {"model": "gpt-5", "messages": [{"content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
        {("file", "file-1")},
    ),
    (CHAT, {"model": "gpt-5", "tools": [{"function": {"parameters": {"properties": {"file_id": {"type": "string"}}}}}]}, set()),
    (RESPONSES, {"model": "gpt-5", "input": "hi", "previous_response_id": None}, set()),
    (RESPONSES, {"model": "gpt-5", "input": "hi", "previous_response_id": "resp_1"}, {("response", "resp_1")}),
    (RESPONSES, {"model": "gpt-5", "input": "hi", "conversation": {"id": "conv_1"}}, {("conversation", "conv_1")}),
    (RESPONSES, {"model": "gpt-5", "input": "hi", "conversation": "conv_1"}, {("conversation", "conv_1")}),
    (RESPONSES, {"model": "gpt-5", "input": "hi", "prompt": {"id": "pmpt_1", "version": "2"}}, {("prompt", "pmpt_1")}),
    (
        RESPONSES,
        {"model": "gpt-5", "input": "hi", "tools": [{"type": "file_search", "vector_store_ids": ["vs_1", "vs_2"]}]},
        {("vector_store", "vs_1"), ("vector_store", "vs_2")},
    ),
    (
        RESPONSES,
        {"model": "gpt-5", "input": "hi", "tools": [{"container": {"type": "auto", "file_ids": ["file-1"]}}]},
        {("file", "file-1")},
    ),
    (RESPONSES, {"model": "gpt-5", "input": "hi", "tools": [{"container": "cntr_1"}]}, {("container", "cntr_1")}),
    (RESPONSES, {"model": "gpt-5", "input": [{"role": "user", "content": "hi", "id": "msg_1"}]}, set()),
    (RESPONSES, {"model": "gpt-5", "input": [{"type": "function_call", "id": "fc_1", "arguments": "{}"}]}, set()),
    (RESPONSES, {"model": "gpt-5", "input": [{"type": "reasoning", "id": "rs_1", "encrypted_content": "x"}]}, set()),
    ("POST /v1/images/generations", {"prompt": "a key"}, set()),
    ("POST /v1/images/edits", {"prompt": "a", "images": [{"file_id": "file-1"}]}, {("file", "file-1")}),
    ("POST /v1/batches", {"input_file_id": "file-1", "endpoint": "/v1/responses"}, {("file", "file-1")}),
    (
        "POST /v1/messages/batches",
        {"requests": [{"params": {"messages": [{"content": [{"source": {"type": "file", "file_id": "file_1"}}]}]}}]},
        {("file", "file_1")},
    ),
    (GEMINI, {"contents": [{"parts": [{"fileData": {"fileUri": "files/abc"}}]}]}, {("file", "abc")}),
    (
        GEMINI,
        {"contents": [{"parts": [{"file_data": {"file_uri": "https://generativelanguage.googleapis.com/v1beta/files/abc"}}]}]},
        {("file", "abc")},
    ),
    (GEMINI, {"cachedContent": "cachedContents/c1"}, {("cached_content", "c1")}),
    (GEMINI, {"cachedContent": "https://x/v1beta/files/v?y=/own"}, {("cached_content", "https://x/v1beta/files/v?y=/own")}),
]


@pytest.mark.parametrize(("line", "document", "objects"), BODIES)
def test_a_body_names_objects(line: str, document: Any, objects: set[tuple[str, str]]) -> None:
    assert named(line, document) == objects


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-5","x":{"File_ID":"file-1"}}',
        b'{"model":"gpt-5","x":{"file\\u005fid":"file-1"}}',
        b'{"model":"gpt-5","x":{"\\u0066ile_id":"file-1"}}',
        b'{"model":"gpt-5","x":{"file_id":"file-1","file_id":null}}',
        b'{"model":"gpt-5","x":{"file_id":null,"file_id" :\t"file-1"}}',
        b'{"model":"gpt-5","x":[[[{"file_ids":["file-1"]}]]]}',
        b'{"model":"gpt-5","x":{"file_id":{"ID":"file-1"}}}',
        '{"model":"gpt-5","x":{"file_id\u017f":["file-1"]}}'.encode(),
        b'{"model":"gpt-5","x":{"file_id\\u017F":["file-1"]}}',
    ],
)
def test_no_spelling_hides_an_object(body: bytes) -> None:
    assert named("POST /v1/chat/completions", body) == {("file", "file-1")}


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "msg_1"},
        {"id": "msg_1"},
        {"type": None, "id": "rs_1"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "reasoning", "id": "rs_1", "encrypted_content": None},
        {"type": "image_generation_call", "id": "ig_1"},
        {"Type": "item_reference", "ID": "msg_1"},
    ],
)
def test_an_item_by_its_id_alone_is_nobodys(item: dict[str, Any]) -> None:
    with pytest.raises(SharedKeyRefused, match="item"):
        named("POST /v1/responses", {"model": "gpt-5", "input": [{"role": "user", "content": "x"}, item]})


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-5","input":[{"role":"user","content":"x"}],"input":[{"id":"msg_1"}]}',
        b'{"model":"gpt-5","input":[{"type":"message","type":"item_reference","id":"msg_1"}]}',
        b'{"model":"gpt-5","input":"x","conversation":{"id":"a","id":"b"}}',
    ],
)
def test_a_key_that_decides_stands_once(body: bytes) -> None:
    with pytest.raises(SharedKeyRefused, match="twice"):
        named("POST /v1/responses", body)


def test_what_is_passed_on_unread_must_be_readable() -> None:
    for body in (b"previous_response_id=resp_1", b"\xff\xfe{", '{"a":1}'.encode("utf-16"), b"[" * 100_000):
        with pytest.raises(InvalidJson):
            named("POST /p/openai/v1/responses", body)
    for content_type in (b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/mixed; boundary=b"):
        with pytest.raises(UnsupportedMediaType):
            named("POST /p/openai/v1/responses", b'{"x":"&previous_response_id=resp_1&"}', content_type)
    with pytest.raises(TooLarge):
        named("POST /p/openai/v1/responses", b'{"x":"' + b"y" * 5_000_000 + b'"}')
    small = b",".join([b"{}"] * 250_000)
    for body in (b'{"x":[' + small + b"]}", b'{"x":[' + small.replace(b"{}", b'{"":1}') + b"]}"):
        with pytest.raises(TooLarge):  # decoded, it would hold up other calls for a second
            named("POST /p/openai/v1/responses", body)
    assert named("POST /p/slack/api/chat.postMessage", b"channel=C1&text=hi", b"application/x-www-form-urlencoded") == frozenset()


def upload(*lines: bytes, fields: tuple[tuple[str, str], ...] = ()) -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields]
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="b.jsonl"\r\n\r\n'
    return b"".join((*parts, head, b"\n".join(lines), b"\r\n--b--\r\n"))


def test_the_calls_of_a_batch_name_objects_as_calls_do() -> None:
    calls = (
        b'{"custom_id":"1","url":"/v1/responses","body":{"model":"m","input":"x","previous_response_id":"resp_1"}}',
        b'{"custom_id":"2","url":"/v1/completions","body":{"model":"m","prompt":"text"}}',
    )
    assert named("POST /v1/files", upload(*calls), FORM) == {("response", "resp_1")}
    reference = b'{"url":"/v1/responses","body":{"model":"m","input":[{"type":"item_reference","id":"msg_1"}]}}'
    with pytest.raises(SharedKeyRefused):
        named("POST /v1/files", upload(calls[1], reference), FORM)
    assert named("POST /v1/files", upload(b'\x00\xff no JSON: "file_id"', bytes(range(256))), FORM) == frozenset()
    many = b"\n" * 3_000_000 + calls[0]
    assert named("POST /v1/files", upload(b"x\r" + many + b"\r" + many), FORM) == {("response", "resp_1")}
    with pytest.raises(TooLarge):
        named("POST /v1/files", upload(*[b'{"file_id":{}}'] * 100_000), FORM)
    assert named("POST /v1/images/edits", upload(fields=(("image[0][file_id]", "file-1"),)), FORM) == {("file", "file-1")}


def test_headers_that_bring_an_earlier_answer_back_or_choose_another_account_stay_here() -> None:
    made = guard("POST /v1/responses", b'{"model":"gpt-5","input":"x"}')
    assert made is not None
    lines = Lines([b"\r\nopenai-organization: ", b"org-1", b"\r\naccept: ", b"*/*", b"\r\nidempotency-key: ", b"1"])
    assert made.forwarded(lines).block == b"\r\naccept: */*"
    plain = Lines([b"\r\naccept: ", b"*/*"])
    assert made.forwarded(plain) is plain


TOLD = [
    ("POST /v1/files", b'{"id":"file-1","object":"file"}', {("file", "file-1")}),
    ("POST /v1/files", b'{"id":"../1"}', set()),
    ("POST /v1/files", b'{"id":7}', set()),
    ("POST /v1/files", b'{"error":{"id":"x"}}', set()),
    ("POST /v1/files", b"not JSON", set()),
    ("POST /v1/responses", b'{"id":"resp_1","output":[{"id":"msg_1"}]}', {("response", "resp_1")}),
    ("POST /v1/batches", b'{"id":"batch_1","output_file_id":null}', {("batch", "batch_1")}),
    (
        "GET /v1/batches/batch_1",
        b'{"id":"batch_1","output_file_id":"file-2","error_file_id":"file-3"}',
        {("file", "file-2"), ("file", "file-3")},
    ),
    ("POST /v1beta/cachedContents", b'{"name":"cachedContents/abc","id":"x"}', {("cached_content", "abc")}),
    ("POST /v1/cachedContents", b'{"name":"cachedContents/abc","id":"x"}', {("cached_content", "abc")}),
]


@pytest.mark.parametrize(("line", "answer", "told"), TOLD)
def test_an_answer_tells_what_was_made(line: str, answer: bytes, told: set[tuple[str, str]]) -> None:
    body = b'{"model":"gpt-5","input":"x"}' if "responses" in line else b""
    made = guard(line, body)
    assert made is not None
    assert made.keeps
    assert made.made(answer, streamed=False) == told


def test_a_stream_tells_it_in_its_first_events() -> None:
    made = guard("POST /v1/responses", b'{"model":"gpt-5","input":"x"}')
    assert made is not None
    created = b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1"}}\n\n'
    assert made.made(created[:-1], streamed=True) == frozenset()
    assert made.made(b": comment\n\n" + created, streamed=True) == {("response", "resp_1")}

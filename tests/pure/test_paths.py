"""Which paths are the gateway's, and what each means."""

from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybearer.errors import InvalidRequest, KeybearerError, MethodNotAllowed, RouteUnknown
from keybearer.gateway.plan import dialect_of, is_gateway_path, route

GOOGLE = [(b"x-goog-api-key", b"kb_kbtest")]
ANTHROPIC = [(b"anthropic-version", b"2023-06-01")]

# method and target, headers → dialect, operation, home provider, upstream suffix, model, tail, query
ROUTES = [
    ("POST /v1/chat/completions", [], "openai chat.completions - /chat/completions - - -"),
    ("POST /v1/completions", [], "openai completions - /completions - - -"),
    ("POST /v1/responses", [], "openai responses - /responses - - -"),
    ("POST /v1/embeddings", [], "openai embeddings - /embeddings - - -"),
    ("POST /v1/moderations", [], "openai moderations openai /moderations - - -"),
    ("POST /openai/v1/chat/completions", [], "openai chat.completions openai /chat/completions - - -"),
    ("POST /openai/v1/embeddings", GOOGLE, "openai embeddings openai /embeddings - - -"),
    ("GET /v1/models", [], "openai models - /models - - -"),
    ("HEAD /v1/models", [], "openai models - /models - - -"),
    ("GET /v1/models", ANTHROPIC, "anthropic models anthropic /models - - -"),
    ("GET /v1/models", GOOGLE, "gemini models gemini /v1/models - - -"),
    ("GET /v1/models", ANTHROPIC + GOOGLE, "gemini models gemini /v1/models - - -"),
    ("GET /v1/models?limit=5", ANTHROPIC, "anthropic models anthropic /models - - limit=5"),
    ("GET /openai/v1/models", ANTHROPIC, "openai models openai /models - - -"),
    ("GET /v1/models/gpt-5", [], "openai models.get - /models/ gpt-5 - -"),
    ("GET /v1/models/openai%2Fgpt-5", [], "openai models.get - /models/ openai/gpt-5 - -"),
    ("GET /v1/models/ft:gpt-4o:acme::1", [], "openai models.get - /models/ ft:gpt-4o:acme::1 - -"),
    ("GET /v1/models/ft%3Agpt-4o", [], "openai models.get - /models/ ft:gpt-4o - -"),
    ("GET /v1/models/claude-x", ANTHROPIC, "anthropic models.get anthropic /models/ claude-x - -"),
    ("GET /v1/models/gemini-x", GOOGLE, "gemini models.get gemini /v1/models/ gemini-x - -"),
    ("POST /v1/messages", [], "anthropic messages anthropic /messages - - -"),
    ("POST /v1/messages?beta=true", ANTHROPIC, "anthropic messages anthropic /messages - - beta=true"),
    ("POST /v1/messages/count_tokens", [], "anthropic messages.count_tokens anthropic /messages/count_tokens - - -"),
    ("POST /anthropic/v1/messages", [], "anthropic messages anthropic /messages - - -"),
    ("GET /anthropic/v1/models", [], "anthropic models anthropic /models - - -"),
    ("GET /anthropic/v1/models/claude-x", [], "anthropic models.get anthropic /models/ claude-x - -"),
    ("POST /anthropic/v1/chat/completions", [], "openai chat.completions anthropic /chat/completions - - -"),
    ("POST /v1beta/models/g-2:generateContent", [], "gemini generateContent gemini /v1beta/models/ g-2 :generateContent -"),
    (
        "POST /v1beta/models/g:streamGenerateContent?alt=sse",
        [],
        "gemini streamGenerateContent gemini /v1beta/models/ g :streamGenerateContent alt=sse",
    ),
    ("POST /v1/models/g:generateContent", [], "gemini generateContent gemini /v1/models/ g :generateContent -"),
    ("POST /gemini/v1/models/g:countTokens", [], "gemini countTokens gemini /v1/models/ g :countTokens -"),
    ("POST /gemini/v1beta/models/g:embedContent", [], "gemini embedContent gemini /v1beta/models/ g :embedContent -"),
    (
        "POST /v1beta/models/gemini/g:batchEmbedContents",
        [],
        "gemini batchEmbedContents gemini /v1beta/models/ gemini/g :batchEmbedContents -",
    ),
    ("POST /v1alpha/models/g:generateContent", [], "gemini generateContent gemini /v1alpha/models/ g :generateContent -"),
    ("GET /v1beta/models?pageSize=2", [], "gemini models gemini /v1beta/models - - pageSize=2"),
    ("GET /gemini/v1beta/models", [], "gemini models gemini /v1beta/models - - -"),
    ("GET /gemini/v1/models", [], "gemini models gemini /v1/models - - -"),
    ("GET /v1beta/models/g-2", [], "gemini models.get gemini /v1beta/models/ g-2 - -"),
    ("POST /v1beta/openai/chat/completions", [], "openai chat.completions gemini /chat/completions - - -"),
    ("GET /gemini/v1beta/openai/models", [], "openai models gemini /models - - -"),
    ("GET /v1beta/openai/models/g", [], "openai models.get gemini /models/ g - -"),
    ("POST /v1/images/generations", [], "openai images.generations - /images/generations - - -"),
    ("POST /v1/images/edits", [], "openai images.edits - /images/edits - - -"),
    ("POST /v1/audio/speech", [], "openai audio.speech - /audio/speech - - -"),
    ("POST /openai/v1/audio/transcriptions", [], "openai audio.transcriptions openai /audio/transcriptions - - -"),
    ("POST /v1/files", [], "openai files.create - /files - - -"),
    ("POST /v1/files", ANTHROPIC, "anthropic files.create anthropic /files - - -"),
    ("GET /v1/files?limit=3", [], "openai files.list - /files - - limit=3"),
    ("GET /v1/files/file-1", [], "openai files.get - /files/file-1 - - -"),
    ("GET /v1/files/file_1", ANTHROPIC, "anthropic files.get anthropic /files/file_1 - - -"),
    ("HEAD /anthropic/v1/files/file_1", [], "anthropic files.get anthropic /files/file_1 - - -"),
    ("GET /v1/files/file-1/content", [], "openai files.content - /files/file-1/content - - -"),
    ("DELETE /openai/v1/files/file-1", [], "openai files.delete openai /files/file-1 - - -"),
    ("POST /v1/batches", [], "openai batches.create - /batches - - -"),
    ("GET /v1/batches/batch_1", [], "openai batches.get - /batches/batch_1 - - -"),
    ("POST /v1/batches/batch_1/cancel", [], "openai batches.cancel - /batches/batch_1/cancel - - -"),
    ("GET /v1/responses/resp_1?stream=true", [], "openai responses.get - /responses/resp_1 - - stream=true"),
    ("DELETE /v1/responses/resp_1", [], "openai responses.delete - /responses/resp_1 - - -"),
    ("POST /v1/responses/resp_1/cancel", [], "openai responses.cancel - /responses/resp_1/cancel - - -"),
    ("GET /v1/responses/resp_1/input_items", [], "openai responses.input_items - /responses/resp_1/input_items - - -"),
    ("POST /v1/responses/input_tokens", [], "openai responses.input_tokens - /responses/input_tokens - - -"),
    ("GET /v1/conversations/conv_1/items/msg_1", [], "openai conversations.items - /conversations/conv_1/items/msg_1 - - -"),
    ("POST /v1/vector_stores/vs_1/search", [], "openai vector_stores - /vector_stores/vs_1/search - - -"),
    ("POST /v1/messages/batches", ANTHROPIC, "anthropic messages.batches.create anthropic /messages/batches - - -"),
    ("GET /v1/messages/batches/b/results", [], "anthropic messages.batches.results anthropic /messages/batches/b/results - - -"),
    (
        "GET /anthropic/v1/messages/batches?beta=true",
        [],
        "anthropic messages.batches.list anthropic /messages/batches - - beta=true",
    ),
    ("POST /upload/v1beta/files", [], "gemini files.create gemini /upload/v1beta/files - - -"),
    ("POST /gemini/upload/v1beta/files", [], "gemini files.create gemini /upload/v1beta/files - - -"),
    ("GET /v1beta/files/abc", [], "gemini files.get gemini /v1beta/files/abc - - -"),
    ("PATCH /gemini/v1beta/cachedContents/c", [], "gemini cachedContents.update gemini /v1beta/cachedContents/c - - -"),
    # The version that its SDK asks for by default, beside others' files.
    ("POST /upload/v1/files", [], "gemini files.create gemini /upload/v1/files - - -"),
    ("POST /gemini/upload/v1/files", [], "gemini files.create gemini /upload/v1/files - - -"),
    ("GET /gemini/v1/files", [], "gemini files.list gemini /v1/files - - -"),
    ("DELETE /gemini/v1/files/abc", [], "gemini files.delete gemini /v1/files/abc - - -"),
    ("GET /v1/files", GOOGLE, "gemini files.list gemini /v1/files - - -"),
    ("HEAD /v1/files/abc", GOOGLE, "gemini files.get gemini /v1/files/abc - - -"),
    ("DELETE /v1/files/abc", GOOGLE, "gemini files.delete gemini /v1/files/abc - - -"),
    ("POST /v1/cachedContents", [], "gemini cachedContents.create gemini /v1/cachedContents - - -"),
    ("GET /gemini/v1/cachedContents/c", [], "gemini cachedContents.get gemini /v1/cachedContents/c - - -"),
    (
        "POST /openai/deployments/my-gpt.4/chat/completions?api-version=2024-10-21",
        [],
        "openai chat.completions azure /openai/deployments/ my-gpt.4 /chat/completions api-version=2024-10-21",
    ),
    (
        "POST /openai/deployments/w/audio/transcriptions",
        [],
        "openai audio.transcriptions azure /openai/deployments/ w /audio/transcriptions -",
    ),
    ("GET /openai/models?api-version=1", [], "openai models azure /openai/models - - api-version=1"),
    ("GET /openai/files/f", [], "openai files.get azure /openai/files/f - - -"),
    ("POST /openai/responses", [], "openai responses azure /openai/responses - - -"),
    ("POST /p/slack/api/chat.postMessage", [], "openai http slack /api/chat.postMessage - - -"),
    ("GET /p/reddit/", [], "openai http reddit / - - -"),
    ("DELETE /p/pinecone/indexes/a-b?x=%2F", [], "openai http pinecone /indexes/a-b - - x=%2F"),
    ("GET /p/google_drive/drive/v3/files/A%20%C3%A4%22", [], "openai http google_drive /drive/v3/files/A%20%C3%A4%22 - - -"),
    ("PATCH /p/my.own-1/x:y@z/(1)/", ANTHROPIC, "openai http my.own-1 /x:y@z/(1)/ - - -"),
    ("HEAD /anthropic", [], "anthropic probe - - - - -"),
    ("HEAD /v1/", [], "openai probe - - - - -"),
    ("GET /gemini/v1beta", [], "gemini probe - - - - -"),
]


@pytest.mark.parametrize(("line", "headers", "meaning"), ROUTES, ids=[f"{line} {len(headers)}" for line, headers, _ in ROUTES])
def test_each_path_means_what_the_design_says(line: str, headers: list[tuple[bytes, bytes]], meaning: str) -> None:
    method, target = line.encode().split(b" ")
    dialect, operation, *rest = (None if word == "-" else word for word in meaning.split(" "))
    provider, suffix, model, tail, query = rest
    assert is_gateway_path(target)
    for _ in range(2):  # looked up, then remembered
        found = route(method, target, headers)
        assert (found.dialect, found.operation, found.provider, found.model) == (dialect, operation, provider, model)
        assert (found.suffix, found.method) == ((suffix or "").encode(), method)
        assert (found.tail, found.query) == ((tail or "").encode(), (query or "").encode())
        assert (found.takes == "nothing") is (method in {b"GET", b"HEAD"} and operation != "http")
        assert found.streamed is (operation == "streamGenerateContent")
    assert dialect_of(target, headers) == dialect


def test_only_the_aggregated_list_is_answered_here() -> None:
    assert route(b"GET", b"/v1/models", []).local == "models"
    assert not route(b"GET", b"/openai/v1/models", []).local
    assert not route(b"GET", b"/v1/models", ANTHROPIC).local


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("GET /v1/chat/completions", "POST"),
        ("DELETE /v1/messages", "POST"),
        ("POST /v1/models", "GET, HEAD"),
        ("PUT /v1beta/models", "GET, HEAD"),
        ("DELETE /v1/models/gpt-5", "GET"),
        ("GET /v1beta/models/g:generateContent", "POST"),
        ("OPTIONS /v1/responses", "POST"),
        ("post /v1/responses", "POST"),
        ("POST\x7f /v1/responses", "POST"),
        ("PUT /v1/files/file-1", "DELETE, GET"),
        ("DELETE /v1/batches", "GET, HEAD, POST"),
        ("GET /openai/deployments/d/chat/completions", "POST"),
        ("TRACE /p/slack/api/x", "GET"),
        ("CONNECT /p/slack/api/x", "GET"),
        ("POST /anthropic", "GET, HEAD"),
    ],
)
def test_a_wrong_method_says_the_right_one(line: str, hint: str) -> None:
    method, target = line.encode().split(b" ")
    with pytest.raises(MethodNotAllowed) as refused:
        route(method, target, [])
    assert hint in refused.value.hint
    assert refused.value.message.isprintable()


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1//", "openai"),
        ("/v1/nothing", "openai"),
        ("/v1/chat/completions/", "openai"),
        ("/v1/files/", "openai"),
        ("/v1/files/..", "openai"),
        ("/v1/files/a/..", "openai"),
        ("/v1/files/a%2Fb", "openai"),
        ("/v1/files/a;b", "openai"),
        ("/v1/files/.hidden", "openai"),
        ("/v1/files/a/content/", "openai"),
        ("/v1/vector_stores/a/../b", "openai"),
        ("/v1/vector_stores/a//b", "openai"),
        ("/v1/audio/nothing", "openai"),
        ("/openai/deployments/d/files", "openai"),
        ("/openai/deployments/../files", "openai"),
        ("/openai/deployments/d%2Fx/chat/completions", "openai"),
        ("/p", "openai"),
        ("/p/", "openai"),
        ("/p/slack", "openai"),
        ("/p//slack/x", "openai"),
        ("/p/../v1/files", "openai"),
        ("/p/Slack/x", "openai"),
        ("/p/slack%2Fx/y", "openai"),
        ("/p/slack/../x", "openai"),
        ("/p/slack/x/..", "openai"),
        ("/p/slack/./x", "openai"),
        ("/p/slack//x", "openai"),
        ("/p/slack/x//", "openai"),
        ("/p/slack/x%", "openai"),
        ("/p/slack/x%/y", "openai"),  # which Python's possessive groups let pass up to 3.11.4
        ("/p/slack/x%2/y", "openai"),
        ("/p/slack/x;y=1/z", "openai"),
        ("/p/slack/.well-known/x", "openai"),
        ("/p/slack/%2e%2e/x", "openai"),
        ("/p/slack/x%2Fy", "openai"),
        ("/p/slack/x%5Cy", "openai"),
        ("/p/slack/x%00", "openai"),
        ("/p/slack/x%0d%0ay", "openai"),
        ("/p/slack/x%3Fy", "openai"),
        ("/p/slack/x%23y", "openai"),
        ("/p/slack/x%252e", "openai"),
        ("/p/slack/%61", "openai"),
        ("/p/slack/x%c0%ae", "openai"),
        ("/p/slack/x%ff", "openai"),
        ("/p/slack/x%E2%80%AEy", "openai"),
        ("/p/slack/x%2", "openai"),
        ("/p/slack/ä", "openai"),
        ("/anthropic/v1/nothing", "anthropic"),
        ("/v1/messages/batches/a/results/x", "anthropic"),
        ("/v1beta/models/g:explode", "gemini"),
        ("/v1beta/models/:generateContent", "gemini"),
        ("/v1beta/nothing", "gemini"),
        ("/gemini//", "gemini"),
        ("/gemini/v2/models", "gemini"),
        ("/v1/models/g/../x:generateContent", "gemini"),
        ("/v1/models/a%2e%2e/b", "openai"),
        ("/v1/models/%2e%2e", "openai"),
        ("/v1/models/..", "openai"),
        ("/v1/models/a%00b", "openai"),
        ("/v1/models/a%0d%0ab", "openai"),
        ("/v1/models/a%252Fb", "openai"),
        ("/v1/models//x", "openai"),
        ("/v1beta/models/a%3Fb:generateContent", "gemini"),
        ("/v1beta/models/a#b:generateContent", "gemini"),
        ("/v1beta/models/a\\b:generateContent", "gemini"),
        ("/v1beta/models/ä:generateContent", "gemini"),
    ],
)
def test_what_is_not_there_is_unknown_in_the_right_dialect(path: str, dialect: str) -> None:
    target = path.encode()
    assert is_gateway_path(target)
    with pytest.raises(RouteUnknown) as refused:
        route(b"POST" if "enerate" in path else b"GET", target, [])
    assert refused.value.hint
    assert dialect_of(target) == dialect


HIDDEN = [
    "/V1/chat/completions",
    "/v1%2Fchat/completions",
    "/%76%31/chat/completions",
    "/%2576%2531/chat/completions",
    "/%25252576%25252531/messages",
    "//v1/chat/completions",
    "///v1/messages",
    "/./v1/messages",
    "/x/../v1/messages",
    "/api/../v1/messages",
    "/api/..%2fv1/messages",
    "/api/%2e%2e/v1/messages",
    "/api/%252e%252e/v1/messages",
    "/api/..;/v1/messages",
    "/api/..;a=b/v1/messages",
    "/v1;x/messages",
    "/;/v1/messages",
    "/%3B/v1/messages",
    "/\\v1/messages",
    "/%5cv1/messages",
    "/api/..\\v1/messages",
    "/x/../v1//../api",
    "/a//../../v1/x",
    "/Openai/v1/models",
    "/ANTHROPIC/v1/messages",
    "/Gemini/v1beta/models",
    "/V1BETA/models",
    "/P/slack",
    "/p%2Fslack",
    "/v1%3Fx",
    "/v1%23x",
    "/ v1/messages",
    "/v1%20/messages",
]


@pytest.mark.parametrize("path", HIDDEN)
def test_another_spelling_of_a_gateway_path_is_claimed_and_refused(path: str) -> None:
    assert is_gateway_path(path.encode())
    with pytest.raises(RouteUnknown):
        route(b"POST", path.encode(), [])


@pytest.mark.parametrize(
    "path", ["/v1/../api/v1/secrets", "/v1//chat/completions", "/v1/./chat/completions", "/v1/chat%2Fcompletions"]
)
def test_below_a_gateway_prefix_only_the_canonical_spelling_counts(path: str) -> None:
    assert is_gateway_path(path.encode())
    with pytest.raises(RouteUnknown) as refused:
        route(b"POST", path.encode(), [])
    assert "canonical" in refused.value.message


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "*",
        "/api/v1/providers",
        "/api/v1/secrets/detect",
        "/api/v1/models/openai%2Fgpt-5",
        "/api/v1/providers/my%20own",
        "/api/v1//secrets",
        "/api/v1/./secrets",
        "/healthz",
        "/login?next=/v1/chat/completions",
        "/assets/v1/app.css",
        "/v10/x",
        "/v1betamax",
        "/openai-docs",
        "/pages",
        "/settings/p",
        "/api/chat",
        "/%E2%82%AC",
    ],
)
def test_the_rest_is_the_applications(path: str) -> None:
    assert not is_gateway_path(path.encode())


@pytest.mark.parametrize(
    "query",
    [
        "key=kb_kbtest",
        "alt=sse&key=kbtest",
        "KEY=x",
        "%6Bey=x",
        "%6b%65%79=x",
        "$key=x",
        "a;key=x",
        "access_token=x",
        "api_key=x",
        "key",
        "+key=x",
    ],
)
def test_credentials_in_a_url_are_never_accepted(query: str) -> None:
    with pytest.raises(InvalidRequest, match="never accepted") as refused:
        route(b"POST", b"/v1beta/models/g:generateContent?" + query.encode(), [])
    assert "kbtest" not in refused.value.message + refused.value.hint


@pytest.mark.parametrize("query", ["a b", "a\r\nx: y", "a\x00", "ä", "a#b", "a\x7f"])
def test_a_query_that_is_no_query_is_refused(query: str) -> None:
    with pytest.raises(InvalidRequest):
        route(b"GET", b"/v1beta/models?" + query.encode(), [])


@pytest.mark.parametrize("query", ["", "alt=sse", "pageToken=key", "monkey=1", "fields=key", "beta=true&x=%20"])
def test_other_queries_pass_as_they_are(query: str) -> None:
    assert route(b"GET", b"/v1beta/models?" + query.encode(), []).query == query.encode()


def test_the_answer_for_one_dialect_is_not_remembered_for_another() -> None:
    for _ in range(2):
        for headers, dialect in ((GOOGLE, "gemini"), (ANTHROPIC, "anthropic"), ([], "openai")):
            assert route(b"GET", b"/v1/models/x", headers).dialect == dialect


_TARGETS = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from(
            [
                b"/",
                b"v1",
                b"..",
                b".",
                b"//",
                b"%2f",
                b"%2e",
                b";",
                b"openai",
                b"p",
                b"api",
                b"models",
                b":generateContent",
                b"?",
                b"key=",
                b"%",
                b"\\",
                b"V1",
            ]
        ),
        max_size=12,
    ).map(b"".join),
)


@given(st.sampled_from([b"GET", b"POST", b"", b"\xff"]), _TARGETS, st.sampled_from([[], GOOGLE, ANTHROPIC]))
def test_route_never_raises_anything_but_our_own_errors(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    assert dialect_of(target, headers) in {"openai", "anthropic", "gemini"}
    is_gateway_path(target)
    refused: KeybearerError | None = None
    try:
        found = route(method, target, headers)
    except KeybearerError as error:
        refused = error
    if refused is not None:
        assert refused.message.isprintable()
        assert refused.hint.isprintable()
        return
    assert is_gateway_path(target)
    assert b".." not in found.suffix + (found.model or "").encode()


@given(st.lists(st.sampled_from(["v1", "V1", "openai", "p", "x", "..", ".", "", "a;b", "v1;c"]), max_size=6), st.integers(0, 3))
def test_no_reader_finds_a_gateway_path_that_was_not_claimed(segments: list[str], escapes: int) -> None:
    """Readers that decode, drop parameters and empty segments, and resolve dots, in either order."""
    path = "/" + "/".join(segments)
    spelled = path
    for _ in range(escapes):
        spelled = "/" + quote(spelled[1:], safe="")
    seen = spelled
    for _ in range(escapes):
        seen = unquote(seen)
    names = [segment.partition(";")[0].lower() for segment in seen.split("/")[1:]]
    for kept in (names, [name for name in names if name]):
        resolved: list[str] = []
        for name in kept:
            if name == "..":
                del resolved[-1:]
            elif name != ".":
                resolved.append(name)
        first = next((name for name in resolved if name), "")
        if first in {"v1", "openai", "p"}:
            assert is_gateway_path(spelled.encode())

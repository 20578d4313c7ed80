"""Connection tests: each class of failure, produced by a real server, told apart."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from uuid import UUID

import pytest
import trustme
from tests.upstream.scripted import HOST, Line, MakeUpstream, Resolver, Serve, answering, answering_once, until
from tests.upstream.test_tls import context_for

from keybearer.catalog import Catalog, Provider, custom, with_base_url
from keybearer.domain import SYSTEM_OWNER_ID, SecretBytes
from keybearer.errors import EgressRefused, Invalid
from keybearer.gateway.egress import egress_set
from keybearer.gateway.probe import MAX_BODY_BYTES, ProbeResult, probe, redacted, shown
from keybearer.gateway.upstream import Upstream

KEY = SecretBytes(b"sk-kbtest-0123456789abcdefgh-tail")


@pytest.fixture
def scheme() -> str:
    return "https"


def response(status: int, body: object) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(raw), raw)


def predefined(name: str, port: int) -> Provider:
    return with_base_url(Catalog.load().get(name), f"https://{HOST}:{port}")


async def run(upstream: Upstream, provider: Provider, seconds: float = 5) -> ProbeResult:
    return await probe(upstream, provider, KEY, egress_set(provider), seconds=seconds)


REFUSALS: list[tuple[str, int, object, str]] = [
    ("openai", 401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}, "invalid"),
    ("openai", 403, {"error": {"message": "Country not supported", "code": "unsupported_country"}}, "forbidden"),
    ("openai", 429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, "no_credit"),
    ("openai", 429, {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}, "rate_limited"),
    ("openai", 400, {"error": {"message": "Billing hard limit", "code": "billing_hard_limit_reached"}}, "no_credit"),
    ("openai", 500, {"error": {"message": "The server had an error"}}, "error"),
    ("openai", 404, {"error": "not found"}, "error"),
    ("openai", 307, b"", "error"),
    ("anthropic", 401, {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}, "invalid"),
    ("anthropic", 403, {"type": "error", "error": {"type": "permission_error", "message": "no"}}, "forbidden"),
    ("anthropic", 402, {"type": "error", "error": {"type": "billing_error", "message": "pay"}}, "no_credit"),
    (
        "anthropic",
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access"}},
        "no_credit",
    ),
    ("anthropic", 529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "error"),
    (
        "gemini",
        400,
        {
            "error": {
                "code": 400,
                "message": "API key not valid. Please pass a valid API key.",
                "status": "INVALID_ARGUMENT",
                "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
            }
        },
        "invalid",
    ),
    ("gemini", 403, {"error": {"code": 403, "message": "Method blocked", "status": "PERMISSION_DENIED"}}, "forbidden"),
    ("gemini", 429, [{"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}], "rate_limited"),
    ("xai", 400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: sk***"}, "invalid"),
    ("openrouter", 402, {"error": {"code": 402, "message": "Insufficient credits"}}, "no_credit"),
    ("openrouter", 401, {"error": {"code": 401, "message": "User not found."}}, "invalid"),
    ("slack", 200, {"ok": False, "error": "invalid_auth"}, "invalid"),
    ("slack", 200, {"ok": False, "error": "account_inactive"}, "invalid"),
    ("slack", 200, {"ok": False, "error": "ratelimited"}, "rate_limited"),
    ("slack", 200, {"ok": False, "error": "internal_error"}, "error"),
    ("pinecone", 401, b"Invalid API Key", "invalid"),
    ("reddit", 403, {"message": "Forbidden", "error": 403}, "forbidden"),
    ("google_drive", 401, {"error": {"code": 401, "message": "Invalid Credentials", "status": "UNAUTHENTICATED"}}, "invalid"),
    ("deepseek", 402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}, "no_credit"),
]


@pytest.mark.parametrize(("name", "status", "body", "expected"), REFUSALS)
async def test_refusals(name: str, status: int, body: object, expected: str, serve: Serve, make_upstream: MakeUpstream) -> None:
    server = await serve(answering(response(status, body)))
    result = await run(make_upstream(), predefined(name, server.port))
    assert (result.status, result.http_status, result.models) == (expected, status, ())
    assert result.message
    assert result.latency_ms > 0


@pytest.mark.parametrize(
    ("name", "body", "models"),
    [
        ("openai", {"object": "list", "data": [{"id": "gpt-5"}, {"id": "gpt-5-mini"}, {"id": "gpt-5"}]}, ("gpt-5", "gpt-5-mini")),
        ("anthropic", {"data": [{"type": "model", "id": "claude-opus-5-5"}], "has_more": False}, ("claude-opus-5-5",)),
        ("gemini", {"models": [{"name": "models/gemini-3-pro"}, {"name": "models/x"}]}, ("gemini-3-pro", "x")),
        ("openai", {"data": [{"id": 5}, "x", {}, {"id": ""}, {"id": "a\x00b"}, {"id": "x" * 300}, {"id": "good"}]}, ("good",)),
        ("openai", {"data": "many"}, ()),
        ("slack", {"ok": True, "team": "kbtest"}, ()),
        ("cohere", {"models": [{"name": "command-a-03-2025"}]}, ("command-a-03-2025",)),
        ("together", [{"id": "moonshotai/Kimi-K2.5"}], ("moonshotai/Kimi-K2.5",)),
        ("bedrock", {"modelSummaries": [{"modelId": "openai.gpt-oss-20b-1:0"}]}, ("openai.gpt-oss-20b-1:0",)),
        ("voyage", {"data": [{"object": "embedding", "index": 0}]}, ()),
        ("openai", [], ()),
    ],
)
async def test_a_good_key(name: str, body: object, models: tuple[str, ...], serve: Serve, make_upstream: MakeUpstream) -> None:
    requests: list[bytes] = []

    async def script(line: Line) -> None:
        requests.append(await line.request())
        await line.say(response(200, body))

    server = await serve(script)
    provider = predefined(name, server.port)
    result = await run(make_upstream(), provider)
    assert (result.status, result.models, result.http_status) == ("ok", models, 200)
    (request,) = requests
    auth = provider.auth
    assert provider.test is not None
    assert request.startswith(f"{provider.test.method} ".encode())
    assert request.count(KEY.reveal()) == 1
    assert f"\r\n{auth.header}: {'Bearer ' if auth.style == 'bearer' else ''}".encode() + KEY.reveal() in request
    for name_and_value in provider.headers:
        assert ": ".join(name_and_value).encode() in request
    assert b"\r\naccept-encoding: identity\r\n" in request


TEST_CALLS = {
    "openai": (b"GET /v1/models ", b"authorization: Bearer "),
    "anthropic": (b"GET /v1/models ", b"x-api-key: "),
    "gemini": (b"GET /v1beta/models?pageSize=1 ", b"x-goog-api-key: "),
    "xai": (b"GET /v1/models ", b"authorization: Bearer "),
    "openrouter": (b"GET /v1/key ", b"authorization: Bearer "),
    "meta": (b"GET /v1/models ", b"authorization: Bearer "),
    "huggingface": (b"GET /v1/models ", b"authorization: Bearer "),
    "cohere": (b"GET /v1/models?page_size=100 ", b"authorization: Bearer "),
    "voyage": (b"POST /v1/embeddings ", b"authorization: Bearer "),
    "groq": (b"GET /v1/models ", b"authorization: Bearer "),
    "mistral": (b"GET /v1/models ", b"authorization: Bearer "),
    "together": (b"GET /v1/models ", b"authorization: Bearer "),
    "deepseek": (b"GET /v1/models ", b"authorization: Bearer "),
    "azure": (b"GET /openai/v1/models ", b"api-key: "),
    "bedrock": (b"GET /openai/v1/models ", b"authorization: Bearer "),
    "ollama": (b"GET /v1/models ", b"authorization: Bearer "),
    "slack": (b"POST /api/auth.test ", b"authorization: Bearer "),
    "google_drive": (b"GET /drive/v3/about?fields=user ", b"authorization: Bearer "),
    "reddit": (b"GET /api/v1/me ", b"authorization: Bearer "),
    "pinecone": (b"GET /indexes ", b"api-key: "),
}


def test_every_provider_that_has_a_test_call_is_in_the_table() -> None:
    assert set(TEST_CALLS) == {name for name, provider in Catalog.load().providers.items() if provider.test is not None}


@pytest.mark.parametrize("name", TEST_CALLS)
async def test_each_test_call_as_it_arrives(name: str, serve: Serve, make_upstream: MakeUpstream) -> None:
    """At an administrator's address, where the host's own path does not count, and a test elsewhere is one of the API itself."""
    requests: list[bytes] = []

    async def script(line: Line) -> None:
        requests.append(await line.request())
        await line.say(response(200, {}))

    server = await serve(script)
    provider = predefined(name, server.port)
    assert (await run(make_upstream(), provider)).status == "ok"
    (request,) = requests
    line, header = TEST_CALLS[name]
    assert request.startswith(line)
    assert b"\r\n" + header + KEY.reveal() + b"\r\n" in request
    assert request.count(KEY.reveal()) == 1
    if provider.test is not None and provider.test.body:
        assert request.endswith(b"\r\n\r\n" + provider.test.body.encode())


async def test_a_test_call_at_another_host_needs_a_key_that_is_bound_to_it(serve: Serve, make_upstream: MakeUpstream) -> None:
    requests: list[bytes] = []

    async def script(line: Line) -> None:
        requests.append(await line.request())
        await line.say(response(200, {"name": "kbtest"}))

    server = await serve(script)
    huggingface = Catalog.load().get("huggingface")
    assert huggingface.test is not None
    elsewhere = replace(huggingface, test=replace(huggingface.test, base_url=f"https://{HOST}:{server.port}"))
    with pytest.raises(EgressRefused):
        await probe(make_upstream(), elsewhere, KEY, ["https://router.huggingface.co:443"])
    assert (await probe(make_upstream(), elsewhere, KEY, egress_set(elsewhere), seconds=5)).status == "ok"
    assert requests[0].startswith(b"GET /api/whoami-v2 ")


async def test_what_is_not_reached_by_http_has_no_test_here(make_upstream: MakeUpstream) -> None:
    with pytest.raises(Invalid, match="PostgreSQL"):
        await probe(make_upstream(), Catalog.load().get("postgresql"), KEY, ())


async def test_a_200_that_is_no_json(serve: Serve, make_upstream: MakeUpstream) -> None:
    server = await serve(answering(response(200, b"<html>Welcome</html>")))
    result = await run(make_upstream(), predefined("openai", server.port))
    assert result.status == "error"
    assert "base URL" in result.message


async def test_dns(make_upstream: MakeUpstream) -> None:
    result = await run(make_upstream(resolver=Resolver([])), predefined("openai", 443))
    assert (result.status, result.http_status) == ("dns", None)


async def test_tls(serve: Serve, make_upstream: MakeUpstream) -> None:
    server = await serve(answering(response(200, {})), tls=context_for(trustme.CA().issue_cert(HOST)))
    assert (await run(make_upstream(), predefined("openai", server.port))).status == "tls"


async def test_time_out(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        await line.request()
        assert await line.gone()

    server = await serve(script)
    upstream = make_upstream()
    assert (await run(upstream, predefined("openai", server.port), seconds=0.1)).status == "timeout"
    assert (await run(make_upstream(read_timeout=0.1), predefined("openai", server.port))).status == "timeout"
    await until(lambda: upstream.open_connections == 0)


async def test_unreachable(make_upstream: MakeUpstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert (await run(make_upstream(), predefined("openai", port))).status == "unreachable"


async def test_a_private_address_is_unreachable_and_says_so(serve: Serve, make_upstream: MakeUpstream) -> None:
    server = await serve(answering(response(200, {})))
    result = await run(make_upstream(allow=()), predefined("openai", server.port))
    assert result.status == "unreachable"
    assert "not sent" in result.message
    assert not server.lines


async def test_a_malformed_answer(serve: Serve, make_upstream: MakeUpstream) -> None:
    server = await serve(answering_once(b"SSH-2.0-x\r\n"))
    assert (await run(make_upstream(), predefined("openai", server.port))).status == "error"


async def test_an_endless_answer(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.say(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(MAX_BODY_BYTES // 100_000 + 50):
            await line.say(b"[" * 100_000)

    server = await serve(script)
    upstream = make_upstream()
    assert (await run(upstream, predefined("openai", server.port))).status == "error"
    await until(lambda: upstream.open_connections == 0)


async def test_json_that_is_nested_without_end(serve: Serve, make_upstream: MakeUpstream) -> None:
    server = await serve(answering(response(401, b"[" * 100_000)))
    assert (await run(make_upstream(), predefined("openai", server.port))).status == "invalid"


@pytest.mark.parametrize(
    "words",
    [
        "Incorrect API key provided: sk-kbtest-0123456789abcdefgh-tail.",
        "key sk-kbtest-0123***************tail is wrong",
        "key 'sk-kbtest-0123456...' is wrong",
        "key ****abcdefgh-tail is wrong",
        "sk-kbtest-0123456789abcdefgh-tail" * 20,
        "a\r\nb\x00c\u202ed " * 100,
    ],
)
async def test_the_providers_words_are_shown_without_the_key(words: str, serve: Serve, make_upstream: MakeUpstream) -> None:
    server = await serve(answering(response(401, {"error": {"message": words}})))
    result = await run(make_upstream(), predefined("openai", server.port))
    assert result.status == "invalid"
    assert "0123" not in result.message
    assert "gh-tail" not in result.message
    assert len(result.message) <= 300
    assert result.message.isprintable()


@pytest.mark.parametrize("words", ["a" * 100_000, "'" + "ab" * 50_000, "\u202e" * 1_000_000], ids=len)
def test_words_without_end_are_not_searched_to_their_end(words: str) -> None:
    """A provider of somebody's own answered a test with a word of 4 MB: for hours nobody else had a turn."""
    began = time.thread_time()
    assert len(redacted(words, KEY)) <= 300
    assert len(shown(words)) <= 300
    assert time.thread_time() - began < 0.2


def test_what_is_cut_in_two_shows_no_part_of_the_key() -> None:
    for before in range(4050, 4100):
        words = ("x" * 49 + " ") * (before // 50) + "y" * (before % 50) + " 0123456789abcdefgh-tail"
        assert "0123" not in redacted(words, KEY)
    assert redacted("z" * 5000, KEY) == "…"


async def test_the_key_goes_only_where_it_is_bound(serve: Serve, make_upstream: MakeUpstream) -> None:
    server = await serve(answering(response(200, {})))
    with pytest.raises(EgressRefused):
        await probe(make_upstream(), predefined("openai", server.port), KEY, ("https://api.openai.com:443",))
    assert not server.lines


@pytest.mark.parametrize(
    ("owner", "status"), [(SYSTEM_OWNER_ID, "ok"), (UUID(int=9), "unreachable")], ids=["of the system", "of a user"]
)
async def test_custom_providers_on_private_hosts(owner: UUID, status: str, serve: Serve, make_upstream: MakeUpstream) -> None:
    server = await serve(answering(response(200, {"data": [{"id": "m"}]})))
    provider = custom("mine", "Mine", f"https://{HOST}:{server.port}/v1", "bearer", "", (), owner)
    assert (await run(make_upstream(), provider)).status == status


async def test_a_provider_without_auth_gets_no_key(serve: Serve, make_upstream: MakeUpstream) -> None:
    requests: list[bytes] = []

    async def script(line: Line) -> None:
        requests.append(await line.request())
        await line.say(response(200, {"data": []}))

    server = await serve(script)
    provider = custom("mine", "Mine", f"https://{HOST}:{server.port}/v1", "none", "", (), SYSTEM_OWNER_ID)
    assert (await run(make_upstream(), provider)).status == "ok"
    assert KEY.reveal() not in requests[0]
    assert requests[0].startswith(b"GET /v1/models ")

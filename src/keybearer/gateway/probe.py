"""Connection tests: the provider's cheapest call, on the same ``Upstream`` as real use, and what its answer means.

Sources for the codes: the error pages of OpenAI (``invalid_api_key``, ``insufficient_quota``), Anthropic
(``authentication_error``, ``permission_error``, ``billing_error``), Google (``google.rpc.ErrorInfo`` reasons such as
``API_KEY_INVALID``, sent with status 400), xAI (400 for a wrong key) and OpenRouter (402).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from keybearer import __version__
from keybearer.catalog import Api, Provider, TestCall
from keybearer.domain import SecretBytes
from keybearer.errors import (
    Invalid,
    KeybearerError,
    UpstreamError,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnresolved,
)
from keybearer.gateway.asking import ask
from keybearer.gateway.egress import Origin, origin_of, require_bound
from keybearer.gateway.scrubber import Scrubber
from keybearer.gateway.upstream import Target, Upstream, build_request
from keybearer.gateway.verdict import ProbeResult, ProbeStatus

__all__ = ["MAX_BODY_BYTES", "PROBE_SECONDS", "ProbeResult", "ProbeStatus", "failed", "probe", "redacted"]

PROBE_SECONDS = 20.0
MAX_BODY_BYTES = 4 * 2**20
"""OpenRouter lists its models in about 0.6 MB."""
MAX_MODELS = 2000
_MAX_NAME, _MAX_MESSAGE, _MAX_WORDS = 200, 300, 64
_READ = 4096
"""Characters of a message that are looked at: a part of the key is looked for from each of them to the end of its word."""
_KEY_PART = 8
"""A word of the provider's message that begins or ends with this many of the key's characters is taken for the key, cut."""

_BY_STATUS: dict[int, ProbeStatus] = {401: "invalid", 402: "no_credit", 403: "forbidden", 429: "rate_limited"}
_BY_CODE: dict[str, ProbeStatus] = {
    "insufficient_quota": "no_credit",
    "billing_hard_limit_reached": "no_credit",
    "billing_not_active": "no_credit",
    "billing_error": "no_credit",
    "insufficient_balance": "no_credit",
    "insufficient_credits": "no_credit",
    "billing_disabled": "no_credit",
    "invalid_api_key": "invalid",
    "api_key_invalid": "invalid",
    "api_key_expired": "invalid",
    "authentication_error": "invalid",
    "permission_error": "forbidden",
    "permission_denied": "forbidden",
    "invalid_auth": "invalid",  # Slack
    "not_authed": "invalid",
    "account_inactive": "invalid",
    "token_expired": "invalid",
    "token_revoked": "invalid",
    "ratelimited": "rate_limited",
    "service_disabled": "forbidden",
}
_BY_WORDS: tuple[tuple[str, ProbeStatus], ...] = (
    ("credit balance is too low", "no_credit"),  # Anthropic, 400 invalid_request_error
    ("incorrect api key", "invalid"),  # xAI, 400
    ("api key not valid", "invalid"),  # Google, 400
)
_USER_AGENT = f"keybearer/{__version__}".encode()


async def probe(
    upstream: Upstream,
    provider: Provider,
    value: SecretBytes,
    egress: Iterable[str],
    *,
    seconds: float = PROBE_SECONDS,
    expects_json: bool = True,
) -> ProbeResult:
    """Test a key at its provider. Never raises for what network and provider do; the result says it.

    ``provider`` is where the key goes (``egress.placed``). ``egress`` is the secret's egress set; before a secret is saved, the
    one it would get. Raises ``Invalid`` for a provider that has no test call or whose base URL is none and ``EgressRefused`` if
    the call's origin is not in ``egress``: then nothing was sent.
    """
    test = provider.test
    if test is None:
        raise Invalid(f"There is no connection test for {provider.display_name}.", hint="Save the secret without one.")
    origin = origin_of(test.base_url or provider.base_url)
    require_bound(origin, egress)
    request = _test_request(provider, test, origin, value)
    target = Target.of_owner(origin, provider.owner_id)
    answer = await ask(upstream, target, request, seconds, most=MAX_BODY_BYTES, is_head=test.method == "HEAD")
    if answer.failure is not None:
        return failed(answer.failure, answer.latency_ms)
    status, models, message = _verdict(answer.status, bytes(answer.body), expects_json=expects_json)
    return ProbeResult(status, answer.latency_ms, models, redacted(message, value), answer.status)


def failed(error: KeybearerError, latency_ms: float) -> ProbeResult:
    """The verdict where no answer came."""
    return ProbeResult(_failure_status(error), latency_ms, message=f"{error.message} {error.hint}".strip())


def _test_request(provider: Provider, test: TestCall, origin: Origin, value: SecretBytes) -> bytes:
    headers = [(name.encode(), text.encode()) for name, text in provider.headers]
    headers += [(b"accept", b"application/json"), (b"accept-encoding", b"identity"), (b"user-agent", _USER_AGENT)]
    headers += _auth_headers(provider.apis[test.dialect], value)
    if test.body:
        headers.append((b"content-type", b"application/json"))
    root = b"" if test.base_url else provider.roots[test.dialect]
    return build_request(test.method.encode(), root + test.path.encode(), origin.authority, headers, test.body.encode())


def _auth_headers(api: Api, value: SecretBytes) -> list[tuple[bytes, bytes]]:
    match api.auth.style:
        case "bearer":
            return [(b"authorization", b"Bearer " + value.reveal())]
        case "header":
            return [(api.auth.header.encode(), value.reveal())]
        case "none":
            return []


def _failure_status(error: KeybearerError) -> ProbeStatus:
    match error:
        case UpstreamUnresolved():
            return "dns"
        case UpstreamTls():
            return "tls"
        case UpstreamTimeout():
            return "timeout"
        case UpstreamMalformed():
            return "error"
        case UpstreamError():
            return "unreachable"
        case _:  # egress refused, too many connections, stopping
            return "unreachable"


def _verdict(http_status: int, body: bytes, *, expects_json: bool = True) -> tuple[ProbeStatus, tuple[str, ...], str]:
    """Judge an answer: status, model names, the provider's words."""
    try:
        content: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = None
    if 200 <= http_status < 300:  # noqa: PLR2004  # the class of success
        if content is None and body and expects_json:
            return "error", (), "The provider answered, but not with JSON. Is the base URL right?"
        if not (isinstance(content, dict) and content.get("ok") is False):
            return "ok", _models(content), ""
        # Slack's answers are all 200; ``error`` says what is wrong (docs.slack.dev/reference/methods/auth.test).
    message = _message(content) or plain_text(content, body) or f"The provider answered with status {http_status}."
    return refusal_status(http_status, content, message), (), message


def refusal_status(http_status: int, content: Any, message: str) -> ProbeStatus:
    """Codes are more exact than the HTTP status: OpenAI's 429 may mean no credit, Google's 400 a wrong key."""
    for code in _codes(content):
        if code in _BY_CODE:
            return _BY_CODE[code]
    lowered = message.lower()
    for words, status in _BY_WORDS:
        if words in lowered:
            return status
    return _BY_STATUS.get(http_status, "error")


def _error_object(content: Any) -> dict[str, Any]:
    """``{"error": {…}}``, Google's list around it, or the top level itself."""
    if isinstance(content, list) and content:
        content = content[0]
    if not isinstance(content, dict):
        return {}
    error = content.get("error")
    return error if isinstance(error, dict) else content


def _codes(content: Any) -> Iterator[str]:
    error = _error_object(content)
    details = error.get("details")
    whole = error.get("error") if error.get("ok") is False else None
    reasons = [detail.get("reason") for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []
    for code in (*reasons, whole, error.get("code"), error.get("type"), error.get("status")):
        if isinstance(code, str):
            yield code.lower()


def _message(content: Any) -> str:
    error = _error_object(content)
    found = (error.get(name) for name in ("message", "error", "detail", "msg"))
    return next((text for text in found if isinstance(text, str) and text), "")


def plain_text(content: Any, body: bytes) -> str:
    text = body[: _MAX_MESSAGE * 4].decode("utf-8", "replace").strip()
    return "" if content is not None or text.startswith("<") else text


def _models(content: Any) -> tuple[str, ...]:
    """Names, wherever they stand.

    ``data[].id`` (OpenAI, Anthropic), ``models[].name`` (Cohere, Gemini, whose ``models/`` is left out),
    ``modelSummaries[].modelId`` (Bedrock), or a bare list (Together).
    """
    entries = content
    if isinstance(content, dict):
        lists = (content.get(name) for name in ("data", "models", "modelSummaries"))
        entries = next((each for each in lists if isinstance(each, list)), None)
    if not isinstance(entries, list):
        return ()
    found = (entry.get("id") or entry.get("name") or entry.get("modelId") for entry in entries if isinstance(entry, dict))
    names = (name.removeprefix("models/") for name in found if isinstance(name, str) and name.isprintable())
    return tuple(dict.fromkeys(name for name in names if 0 < len(name) <= _MAX_NAME))[:MAX_MODELS]


def redacted(message: str, value: SecretBytes) -> str:
    """Put the message on one line, without the key or a part of it, and cut to a length."""
    text = Scrubber(value).whole(message.encode("utf-8", "replace")).decode("utf-8", "replace")
    if len(text) > _READ:
        text = text[:_READ].rpartition(" ")[0] or "…"  # a word that is cut may be a part of the key that is not recognised
    text = _on_one_line(text)
    key = value.reveal().decode("utf-8", "replace")
    if len(key) > _KEY_PART:
        begin, end = re.escape(key[:_KEY_PART]), re.escape(key[-_KEY_PART:])
        text = re.sub(rf"{begin}[^\s\"']*|[^\s\"']*{end}", "***", text)
    return _cut(text)


def shown(words: str) -> str:
    """Words without a key in them, on one line and cut to a length."""
    return _cut(_on_one_line(words[:_READ]))


def _on_one_line(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"

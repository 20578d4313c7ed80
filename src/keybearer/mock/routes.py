"""Which provider's operation a method and a path mean. Pure.

The paths are the real providers' own. A provider's name may stand before them (``/xai/v1/chat/completions``), which
tells apart what only the host tells apart in reality; without it, the key's prefix does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from keybearer.mock import anthropic, embeddings, gemini, media, models, objects, openai, responses
from keybearer.mock.wire import Answer, Call, ProviderError, Request

PROVIDERS = ("openai", "anthropic", "gemini", "xai", "openrouter", *models.COMPATIBLE)

Operation = Callable[[Call], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """What a request is for. ``model`` is the path's; in the other dialects it stands in the body."""

    provider: str
    dialect: str
    name: str
    operation: Operation
    model: str
    query: Mapping[str, str]
    takes: str
    """The body: ``json`` with a model, ``document``: JSON without one, ``form`` with a model, ``anything`` or ``nothing``."""


@dataclass(frozen=True, slots=True)
class _Rule:
    method: str
    path: re.Pattern[str]
    dialect: str
    provider: str
    """Empty: whichever of the OpenAI-compatible ones the prefix or the key says."""
    name: str
    operation: Operation
    takes: str


Row = tuple[str, str, str, Operation, str]
"""Method, path, name, operation, body."""

_OF_OPENAI: tuple[Row, ...] = (
    ("POST", "/images/generations", "images.generations", media.images, "json"),
    ("POST", "/images/(?:edits|variations)", "images.edits", media.images, "form"),
    ("POST", "/audio/speech", "audio.speech", media.speech, "json"),
    ("POST", "/audio/(?:transcriptions|translations)", "audio.transcriptions", media.transcription, "form"),
    ("POST", "/files", "files.create", objects.file_create, "anything"),
    ("GET", "/files", "files.list", objects.file_list, "nothing"),
    ("GET", "/files/[^/]+", "files.get", objects.file_get, "nothing"),
    ("GET", "/files/[^/]+/content", "files.content", objects.file_content, "nothing"),
    ("DELETE", "/files/[^/]+", "files.delete", objects.file_delete, "anything"),
    ("POST", "/batches", "batches.create", objects.batch_create, "document"),
    ("GET", "/batches", "batches.list", objects.batch_list, "nothing"),
    ("GET", "/batches/[^/]+", "batches.get", objects.batch_get, "nothing"),
    ("POST", "/batches/[^/]+/cancel", "batches.cancel", objects.batch_cancel, "anything"),
    ("POST", "/responses/input_tokens", "responses.input_tokens", objects.response_tokens, "json"),
    ("GET", "/responses/[^/]+", "responses.get", objects.response_get, "nothing"),
    ("GET", "/responses/[^/]+/input_items", "responses.input_items", objects.response_items, "nothing"),
    ("POST", "/responses/[^/]+/cancel", "responses.cancel", objects.response_get, "anything"),
    ("DELETE", "/responses/[^/]+", "responses.delete", objects.response_delete, "anything"),
)
_OF_ANTHROPIC: tuple[Row, ...] = (
    ("POST", "/messages/batches", "batches.create", objects.message_batch_create, "document"),
    ("GET", "/messages/batches", "batches.list", objects.message_batch_list, "nothing"),
    ("GET", "/messages/batches/[^/]+", "batches.get", objects.message_batch_get, "nothing"),
    ("GET", "/messages/batches/[^/]+/results", "batches.results", objects.message_batch_results, "nothing"),
    ("POST", "/messages/batches/[^/]+/cancel", "batches.cancel", objects.message_batch_get, "anything"),
    ("DELETE", "/messages/batches/[^/]+", "batches.delete", objects.message_batch_delete, "anything"),
)

_OF_GEMINI: tuple[Row, ...] = (
    ("POST", "/upload/v1(?:beta|alpha)?/files", "files.create", objects.gemini_upload, "anything"),
    ("GET", "/v1(?:beta|alpha)?/files", "files.list", objects.gemini_file_list, "nothing"),
    ("GET", "/v1(?:beta|alpha)?/files/[^/]+", "files.get", objects.gemini_file_get, "nothing"),
    ("DELETE", "/v1(?:beta|alpha)?/files/[^/]+", "files.delete", objects.gemini_file_delete, "anything"),
)


def _rules() -> tuple[_Rule, ...]:
    rows: list[_Rule] = []

    def add(method: str, path: str, dialect: str, provider: str, name: str, operation: Operation) -> None:
        takes = "json" if method == "POST" else "nothing"
        rows.append(_Rule(method, re.compile(path), dialect, provider, name, operation, takes))

    def add_rows(base: str, dialect: str, provider: str, added: tuple[Row, ...]) -> None:
        for method, path, name, operation, takes in added:
            rows.append(_Rule(method, re.compile(base + path), dialect, provider, name, operation, takes))

    bases = ((r"(?:/openai|/compatibility)?/v1", ""), (r"/v1beta/openai", "gemini"), (r"/api/v1", "openrouter"))
    for base, provider in bases:
        add("POST", base + r"/chat/completions", "openai", provider, "chat.completions", openai.chat)
        add("POST", base + r"/completions", "openai", provider, "completions", openai.completions)
        add("POST", base + r"/responses", "openai", provider, "responses", responses.responses)
        add("POST", base + r"/embeddings", "openai", provider, "embeddings", embeddings.embeddings)
        add("POST", base + r"/moderations", "openai", provider, "moderations", embeddings.moderations)
        add_rows(base, "openai", provider, _OF_OPENAI)
        add("GET", base + r"/models", "openai", provider, "models", models.openai_list)
        add("GET", base + r"/models/(?P<model>[^:?]+)", "openai", provider, "model", models.openai_get)
    deployment = r"/openai/deployments/(?P<model>[^/]+)"
    add("POST", deployment + r"/chat/completions", "openai", "azure", "chat.completions", openai.chat)
    add("POST", deployment + r"/embeddings", "openai", "azure", "embeddings", embeddings.embeddings)
    add_rows("/v1", "anthropic", "anthropic", _OF_ANTHROPIC)
    add("GET", r"/api/v1/(?:auth/)?key", "openai", "openrouter", "key", models.openrouter_key)
    add("POST", r"/v1/messages", "anthropic", "anthropic", "messages", anthropic.messages)
    add("POST", r"/v1/messages/count_tokens", "anthropic", "anthropic", "count_tokens", anthropic.count_tokens)
    add("GET", r"/v1/models", "anthropic", "anthropic", "models", models.anthropic_list)
    add("GET", r"/v1/models/(?P<model>[^:?]+)", "anthropic", "anthropic", "model", models.anthropic_get)
    add_rows("", "gemini", "gemini", _OF_GEMINI)
    base = r"/v1(?:beta)?/(?:models|tunedModels)"
    add("GET", base, "gemini", "gemini", "models", models.gemini_list)
    add("GET", base + r"/(?P<model>[^:?]+)", "gemini", "gemini", "model", models.gemini_get)
    for name, operation in (
        ("generateContent", gemini.generate),
        ("streamGenerateContent", gemini.stream),
        ("countTokens", gemini.count_tokens),
        ("embedContent", embeddings.embed_content),
        ("batchEmbedContents", embeddings.batch_embed_contents),
    ):
        add("POST", base + rf"/(?P<model>[^:?]+):{name}", "gemini", "gemini", name, operation)
    return tuple(rows)


RULES = _rules()


def find(request: Request, keys: Mapping[str, frozenset[str]]) -> Route:
    """Find the route of a request; ``keys`` are the accepted keys by provider.

    Raises ``ProviderError``: 404 for an unknown path, 405 for a known one with another method.
    """
    path, _, query_text = request.target.partition("?")
    prefix, path = _split_provider(path)
    fits = [(rule, found) for rule in RULES if (found := rule.path.fullmatch(path))]
    fits = [(rule, found) for rule, found in fits if not prefix or rule.provider in {"", prefix}]
    if not fits:
        raise ProviderError(404, f"Invalid URL ({request.method} {path})", "path")
    fits = [(rule, found) for rule, found in fits if rule.method == request.method]
    if not fits:
        raise ProviderError(405, f"Not allowed to {request.method} on {path}", "method")
    # Where paths collide (GET /v1/models), the header that each dialect's SDK sends decides.
    dialect = _dialect(request, {rule.dialect for rule, _ in fits}, prefix)
    rule, found = next((rule, found) for rule, found in fits if rule.dialect == dialect)
    return Route(
        provider=rule.provider or prefix or _provider_of_key(request, keys),
        dialect=dialect,
        name=rule.name,
        operation=rule.operation,
        model=unquote(found.groupdict().get("model") or ""),
        query=dict(parse_qsl(query_text, keep_blank_values=True)),
        takes=rule.takes,
    )


def guess_dialect(request: Request) -> tuple[str, str]:
    """Guess provider and dialect for errors where no route was found."""
    path = request.target
    if "/v1beta" in path or request.header("x-goog-api-key"):
        return "gemini", "gemini"
    if "/messages" in path or request.header("anthropic-version"):
        return "anthropic", "anthropic"
    return "openai", "openai"


def _split_provider(path: str) -> tuple[str, str]:
    name, slash, rest = path[1:].partition("/")
    return (name, slash + rest) if name in PROVIDERS and slash else ("", path)


def _dialect(request: Request, dialects: set[str], prefix: str) -> str:
    if len(dialects) == 1:
        return dialects.pop()
    if "gemini" in dialects and (request.header("x-goog-api-key") is not None or prefix == "gemini"):
        return "gemini"
    if "anthropic" in dialects and request.header("anthropic-version") is not None:
        return "anthropic"
    return "openai" if "openai" in dialects else min(dialects)


def _provider_of_key(request: Request, keys: Mapping[str, frozenset[str]]) -> str:
    """OpenAI, xAI and Anthropic share ``/v1/chat/completions``, each on its own host: here the key tells them apart."""
    key = (request.header("authorization") or "").removeprefix("Bearer ")
    accepted = [provider for provider in ("openai", "xai", "anthropic") if key in keys.get(provider, ())]
    prefixed = "xai" if key.startswith("xai-") else "anthropic" if key.startswith("sk-ant-") else "openai"
    return accepted[0] if accepted else prefixed

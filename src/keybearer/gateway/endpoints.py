"""The endpoints of the gateway, as a table: which paths there are, what each takes, and where its call goes.

``paths`` finds the row of a request; the documentation's list is generated from this table (``.ci/docs.py``). A path is written
relative to its *mount*, ``{id}`` standing for an object's id and a last ``*`` for one or more segments.

Sources, compared 2026-11-21: the API references of OpenAI (platform.openai.com/docs/api-reference), Anthropic
(platform.claude.com/docs/en/api), Gemini (ai.google.dev/api) and Azure OpenAI (learn.microsoft.com/azure/foundry/openai/reference).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import msgspec

from keybearer.catalog import ANTHROPIC, GEMINI, OPENAI

Takes = Literal["nothing", "json", "form", "either", "anything"]
"""A body: none, JSON, ``multipart/form-data``, one of both, or whatever the provider takes, passed on unread."""
Metering = Literal["answer", "events", "nothing"]
"""Where usage stands: in the answer, streamed or not; in event streams alone (what else comes is sound); nowhere."""


class Route(msgspec.Struct, frozen=True):
    """What method and path say of a request."""

    dialect: str
    """In which errors are answered; but for ``/p/…`` also the API that is called."""
    operation: str
    """``chat.completions``, ``messages``, ``generateContent``, ``files.get``, ``http`` …"""
    method: bytes
    """Upper case; as it goes upstream."""
    provider: str | None
    """The path's home provider, which bare model names mean; ``None``: found by the model's name."""
    suffix: bytes
    """Upstream path after the API's root; where ``model`` is set, up to the model."""
    model: str | None = None
    """Where it stands in the path."""
    tail: bytes = b""
    """Upstream path after the model."""
    query: bytes = b""
    """Without its question mark."""
    takes: Takes = "json"
    needs_model: bool = True
    body_limit: int | None = None
    """Bytes; ``None``: the server's own limit."""
    streamed: bool = False
    """The path itself asks for a stream (Gemini); otherwise the body does."""
    metering: Metering = "answer"
    local: Literal["", "models", "probe"] = ""
    """What the gateway itself answers."""
    from_base: bool = False
    """``suffix`` follows the provider's base URL, not an API's root: Azure's deployments, ``/p/…``."""
    call: bytes = b""
    """The path that the catalogue's rules for shared keys know this call by, where it is not suffix, model and tail."""


class Endpoint(NamedTuple):
    """A row of the table."""

    method: str
    path: str
    operation: str
    takes: Takes = "nothing"
    needs_model: bool = False
    metering: Metering = "nothing"


class Mount(NamedTuple):
    """Where endpoints lie, and whose they are there."""

    path: str
    provider: str | None
    upstream: str = ""
    """Upstream path that an endpoint's own follows."""
    from_base: bool = False


MODEL_CALLS: Final = (
    Endpoint("POST", "/chat/completions", "chat.completions", "json", True, "answer"),
    Endpoint("POST", "/completions", "completions", "json", True, "answer"),
    Endpoint("POST", "/responses", "responses", "json", True, "answer"),
    Endpoint("POST", "/responses/compact", "responses.compact", "json", True, "answer"),
    Endpoint("POST", "/responses/input_tokens", "responses.input_tokens", "json"),
    Endpoint("POST", "/embeddings", "embeddings", "json", True, "answer"),
    # The model of these may be left out (OpenAI API reference): then it is the provider's default.
    Endpoint("POST", "/moderations", "moderations", "json", False, "answer"),
    Endpoint("POST", "/images/generations", "images.generations", "json", False, "answer"),
    Endpoint("POST", "/images/edits", "images.edits", "either", False, "answer"),
    Endpoint("POST", "/images/variations", "images.variations", "form", False, "answer"),
    Endpoint("POST", "/audio/speech", "audio.speech", "json", True, "events"),
    Endpoint("POST", "/audio/transcriptions", "audio.transcriptions", "form", True, "answer"),
    Endpoint("POST", "/audio/translations", "audio.translations", "form", True, "answer"),
    Endpoint("POST", "/rerank", "rerank", "json", True, "answer"),
)
"""Of OpenAI's dialect: each names its model in the body."""

_ANY: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")

OPENAI_OBJECTS: Final = (
    Endpoint("POST", "/files", "files.create", "anything"),
    Endpoint("GET", "/files", "files.list"),
    Endpoint("GET", "/files/{id}", "files.get"),
    Endpoint("GET", "/files/{id}/content", "files.content"),
    Endpoint("DELETE", "/files/{id}", "files.delete", "anything"),
    Endpoint("POST", "/batches", "batches.create", "anything"),
    Endpoint("GET", "/batches", "batches.list"),
    Endpoint("GET", "/batches/{id}", "batches.get"),
    Endpoint("POST", "/batches/{id}/cancel", "batches.cancel", "anything"),
    # A stored response states the usage of the call that made it: that was counted then.
    Endpoint("GET", "/responses/{id}", "responses.get"),
    Endpoint("GET", "/responses/{id}/input_items", "responses.input_items"),
    Endpoint("POST", "/responses/{id}/cancel", "responses.cancel", "anything"),
    Endpoint("DELETE", "/responses/{id}", "responses.delete", "anything"),
    Endpoint("POST", "/conversations", "conversations.create", "anything"),
    Endpoint("GET", "/conversations/{id}", "conversations.get"),
    Endpoint("POST", "/conversations/{id}", "conversations.update", "anything"),
    Endpoint("DELETE", "/conversations/{id}", "conversations.delete", "anything"),
    Endpoint("GET", "/conversations/{id}/items", "conversations.items"),
    Endpoint("POST", "/conversations/{id}/items", "conversations.items", "anything"),
    Endpoint("GET", "/conversations/{id}/items/{id}", "conversations.items"),
    Endpoint("DELETE", "/conversations/{id}/items/{id}", "conversations.items", "anything"),
    *(
        Endpoint(method, path, name, "nothing" if method == "GET" else "anything")
        for name in ("vector_stores", "uploads", "containers", "fine_tuning")
        for path in (f"/{name}", f"/{name}/*")
        for method in _ANY
    ),
)
"""What OpenAI keeps for later."""

ANTHROPIC_CALLS: Final = (
    Endpoint("POST", "/messages", "messages", "json", True, "answer"),
    Endpoint("POST", "/messages/count_tokens", "messages.count_tokens", "json", True),
    Endpoint("POST", "/messages/batches", "messages.batches.create", "anything"),
    Endpoint("GET", "/messages/batches", "messages.batches.list"),
    Endpoint("GET", "/messages/batches/{id}", "messages.batches.get"),
    Endpoint("GET", "/messages/batches/{id}/results", "messages.batches.results"),
    Endpoint("POST", "/messages/batches/{id}/cancel", "messages.batches.cancel", "anything"),
    Endpoint("DELETE", "/messages/batches/{id}", "messages.batches.delete", "anything"),
)
ANTHROPIC_FILES: Final = tuple(endpoint for endpoint in OPENAI_OBJECTS if endpoint.path.startswith("/files"))
"""The same paths as OpenAI's; under ``/v1`` the headers tell them apart."""

GEMINI_ACTIONS: Final = ("generateContent", "streamGenerateContent", "embedContent", "batchEmbedContents", "countTokens")
GEMINI_VERSIONS: Final = ("/v1beta", "/v1alpha")
"""Beside ``/v1``, which its SDK asks for by default, and which it shares with the others."""
GEMINI_OBJECTS: Final = tuple(
    Endpoint(method, f"/{name}{path}", f"{name}.{what}", takes)
    for name, calls in (
        ("files", (("GET", "", "list"), ("GET", "/{id}", "get"), ("DELETE", "/{id}", "delete"))),
        (
            "cachedContents",
            (
                ("POST", "", "create"),
                ("GET", "", "list"),
                ("GET", "/{id}", "get"),
                ("PATCH", "/{id}", "update"),
                ("DELETE", "/{id}", "delete"),
            ),
        ),
    )
    for method, path, what in calls
    for takes in ("nothing" if method == "GET" else "anything",)
)
GEMINI_FILES: Final = tuple(endpoint for endpoint in GEMINI_OBJECTS if endpoint.path.startswith("/files"))
"""Under ``/v1`` the headers tell them apart from OpenAI's and Anthropic's; of cached contents nobody else has any."""
GEMINI_UPLOADS: Final = (Endpoint("POST", "/files", "files.create", "anything"),)

OPENAI_MOUNTS: Final = (
    Mount("/v1", None),
    Mount("/openai/v1", "openai"),
    Mount("/v1beta/openai", "gemini"),
    Mount("/gemini/v1beta/openai", "gemini"),
)
AZURE_MOUNT: Final = Mount("/openai", "azure", "/openai", from_base=True)
AZURE_DEPLOYMENT: Final = re.compile(rb"/openai/deployments/(?P<model>[A-Za-z0-9_-][A-Za-z0-9._-]{0,63})(?P<tail>/[a-z/]+)")
AZURE_TAILS: Final = {
    endpoint.path.encode(): endpoint
    for endpoint in MODEL_CALLS
    if not endpoint.path.startswith(("/responses", "/moderations", "/rerank"))
}
"""What is called at a deployment, by the path after its name."""
ANTHROPIC_MOUNTS: Final = (Mount("/v1", "anthropic"), Mount("/anthropic/v1", "anthropic"))
GEMINI_MOUNTS: Final = tuple(
    [Mount(front + version, "gemini", version) for version in GEMINI_VERSIONS for front in ("", "/gemini")]
    + [Mount("/gemini/v1", "gemini", "/v1")]
)
GEMINI_SHARED_MOUNT: Final = Mount("/v1", "gemini", "/v1")
GEMINI_UPLOAD_MOUNTS: Final = tuple(
    Mount(f"{front}/upload{version}", "gemini", f"/upload{version}")
    for version in ("/v1", *GEMINI_VERSIONS)
    for front in ("", "/gemini")
)
PROBED: Final = frozenset(
    path + slash
    for path in (b"/v1", b"/v1beta", b"/openai", b"/openai/v1", b"/anthropic", b"/anthropic/v1", b"/gemini", b"/gemini/v1beta")
    for slash in (b"", b"/")
)
"""Base URLs of SDKs, at which agents look whether somebody is there (Claude Code: ``HEAD``) before they show a token."""

_ID: Final = rb"[A-Za-z0-9_-][A-Za-z0-9._:@-]{0,199}"
_SEGMENTS: Final = _ID + rb"(?:/" + _ID + rb")*"


class Pattern(NamedTuple):
    """Endpoints whose path holds an id, at one mount."""

    path: re.Pattern[bytes]
    mount: bytes
    upstream: bytes
    routes: dict[bytes, Route]
    """By method; the suffix is the request's own."""


def route_of(dialect: str, endpoint: Endpoint, mount: Mount) -> Route:
    """An endpoint at a mount, as a route; its suffix is of use where the path has no id."""
    takes = endpoint.takes
    return Route(
        dialect,
        endpoint.operation,
        endpoint.method.encode(),
        mount.provider,
        (mount.upstream + endpoint.path).encode(),
        takes=takes,
        needs_model=endpoint.needs_model,
        body_limit=0 if takes == "nothing" else None,
        metering=endpoint.metering,
        from_base=mount.from_base,
        call=endpoint.path.encode() if mount.from_base else b"",
    )


def groups() -> Iterator[tuple[str, tuple[Mount, ...], tuple[Endpoint, ...]]]:
    """All of the table but what collides by header, models, actions and deployments: dialect, mounts, endpoints."""
    yield OPENAI, OPENAI_MOUNTS, MODEL_CALLS + OPENAI_OBJECTS
    yield OPENAI, (AZURE_MOUNT,), tuple(call for call in MODEL_CALLS if call.path.startswith("/responses")) + OPENAI_OBJECTS
    yield ANTHROPIC, ANTHROPIC_MOUNTS, ANTHROPIC_CALLS
    yield ANTHROPIC, ANTHROPIC_MOUNTS[1:], ANTHROPIC_FILES
    yield GEMINI, GEMINI_MOUNTS, GEMINI_OBJECTS
    yield GEMINI, (GEMINI_SHARED_MOUNT,), tuple(endpoint for endpoint in GEMINI_OBJECTS if endpoint not in GEMINI_FILES)
    yield GEMINI, GEMINI_UPLOAD_MOUNTS, GEMINI_UPLOADS


def tables() -> tuple[dict[tuple[bytes, bytes], Route], tuple[Pattern, ...]]:
    """The routes whose path is fixed, by method and path as the client spells it, and those with an id in it."""
    fixed: dict[tuple[bytes, bytes], Route] = {}
    found: dict[tuple[str, str], Pattern] = {}
    for dialect, mounts, endpoints in groups():
        for mount in mounts:
            for endpoint in endpoints:
                made = route_of(dialect, endpoint, mount)
                methods = (b"GET", b"HEAD") if made.method == b"GET" else (made.method,)
                for method in methods:
                    made = msgspec.structs.replace(made, method=method)
                    if "{id}" in endpoint.path or "*" in endpoint.path:
                        key = (mount.path, endpoint.path)
                        pattern = found.setdefault(key, _pattern(mount, endpoint.path))
                        pattern.routes[method] = made
                    else:
                        fixed[method, (mount.path + endpoint.path).encode()] = made
    return fixed, tuple(found.values())


def _pattern(mount: Mount, path: str) -> Pattern:
    parts = re.split(r"(\{id\}|\*)", mount.path + path)
    text = b"".join({"{id}": _ID, "*": _SEGMENTS}.get(part, re.escape(part.encode())) for part in parts)
    return Pattern(re.compile(text), mount.path.encode(), mount.upstream.encode(), {})

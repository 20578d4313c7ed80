"""Which paths are the gateway's, and what each of them means. Pure: raw bytes in, a ``Route`` or an error out.

Paths are compared as they are spelled. A path that is a gateway path only after decoding, after removing ``//``,
``/./``, ``..`` or ``;…``, or in another case, belongs to the gateway too, so that nothing else serves it; and the
gateway refuses it, because the provider might read it otherwise than we did.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from keybearer.catalog import ANTHROPIC, GEMINI, HTTP, OPENAI
from keybearer.errors import InvalidRequest, KeybearerError, MethodNotAllowed, RouteUnknown
from keybearer.gateway.endpoints import (
    ANTHROPIC_FILES,
    AZURE_DEPLOYMENT,
    AZURE_MOUNT,
    AZURE_TAILS,
    GEMINI_ACTIONS,
    GEMINI_FILES,
    GEMINI_SHARED_MOUNT,
    GEMINI_VERSIONS,
    PROBED,
    Mount,
    Route,
    route_of,
    tables,
)

Headers = Iterable[tuple[bytes, bytes]]
"""Names in lower case."""

_FIRST: Final = frozenset({b"v1", b"v1beta", b"v1alpha", b"openai", b"anthropic", b"gemini", b"upload", b"p"})
_PREFIXES: Final = tuple(b"/" + name + b"/" for name in sorted(_FIRST))
_SEGMENT: Final = rb"[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*"
_PLAIN: Final = re.compile(rb"/(?:" + _SEGMENT + rb"(?:/" + _SEGMENT + rb")*/?)?")
_DECODINGS: Final = 4  # '%25252576…': nobody honest nests escapes; what is still escaped then is claimed

_OPENAI_PATHS: Final = (
    b"/openai",
    b"/p/",
    b"/v1/chat",
    b"/v1/responses",
    b"/anthropic/v1/chat",
    b"/v1beta/openai",
    b"/gemini/v1beta/openai",
)
_QUERY: Final = re.compile(rb"[!-~]*")
_CREDENTIAL_NAMES: Final = frozenset(
    {b"key", b"$key", b"api_key", b"api-key", b"apikey", b"access_token", b"$access_token", b"oauth_token", b"$oauth_token"}
)
_OVERRIDES: Final = frozenset(
    {
        b"$httpmethod",
        b"$httpheaders",
        b"$req",
        b"$ct",
        b"_method",
        b"x-http-method-override",
        b"x-http-method",
        b"x-method-override",
    }
)
"""By which Google's APIs (cloud.google.com/apis/docs/system-parameters, compared 2026-11-21), and frameworks that providers use, take
another method, headers or body than those that were checked."""
_PATH_MODEL: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,=:@-]+(?:/[A-Za-z0-9._~!$&'()*+,=:@-]+)*")
_HARMLESS_ESCAPE: Final = re.compile(rb"%(?:2[Ff]|3[Aa]|40)")  # '/', ':' and '@', which SDKs escape inside a model's name


def is_gateway_path(target: bytes) -> bool:
    """Whether the gateway answers this request target, however it is spelled. A query is ignored. Never raises."""
    if target.startswith(_PREFIXES):
        return True
    path = target.partition(b"?")[0]
    if _PLAIN.fullmatch(path):
        return path[1:].partition(b"/")[0].lower() in _FIRST
    return _is_hidden(path)


def route(method: bytes, target: bytes, headers: Headers) -> Route:
    """What a request on a gateway path means. ``target`` is the raw request target, query included.

    ``headers`` decide only where providers' paths collide. Raises ``RouteUnknown``, ``MethodNotAllowed``, ``InvalidRequest``.
    """
    found = _STATIC.get((method, target))
    if found is not None and found.operation not in _COLLIDING:
        return found
    path, mark, query = target.partition(b"?")
    if mark:
        _check_query(query)
    found = _STATIC.get((method, path))
    if found is None or found.operation in _COLLIDING:
        # Only where paths collide do headers count, so that the answers for all other paths can be remembered.
        collides = path.startswith(_COLLIDING_PATHS)
        found = _dynamic(method, path, _dialect_by_header(headers) if collides else OPENAI)
    if found is None:
        raise _unknown(method, path)
    return msgspec.structs.replace(found, query=query) if query else found


def is_probe(method: bytes, path: bytes) -> bool:
    """Whether a request only asks if somebody is there: at a dialect's base, and answered to strangers, too."""
    return path in PROBED and method in {b"GET", b"HEAD"}


def dialect_of(target: bytes, headers: Headers = ()) -> str:
    """The dialect in which to answer an error on this path, also where there is no such route. Never raises."""
    path = target.partition(b"?")[0].lower()
    if path.startswith(_OPENAI_PATHS):
        return OPENAI
    if path.startswith((b"/anthropic", b"/v1/messages")):
        return ANTHROPIC
    if path.startswith((b"/gemini", b"/v1beta", b"/v1alpha", b"/v1/cachedcontents", b"/upload")):
        return GEMINI
    if path.startswith(b"/v1/models/") and path.rpartition(b":")[2] in _LOWER_ACTIONS:
        return GEMINI
    return _dialect_by_header(headers)


def _dialect_by_header(headers: Headers) -> str:
    """Where paths collide: ``x-goog-api-key`` means Gemini, ``anthropic-version`` Anthropic, else OpenAI."""
    names = {name for name, _ in headers}
    if b"x-goog-api-key" in names:
        return GEMINI
    return ANTHROPIC if b"anthropic-version" in names else OPENAI


# --- hidden spellings -------------------------------------------------------------------------------------------------


def _is_hidden(path: bytes) -> bool:
    """Whether some reader could take ``path`` for a gateway path: decoded, resolved, in another case."""
    for _ in range(_DECODINGS):
        if any(_first(segments) in _FIRST for segments in _resolutions(path)):
            return True
        decoded = unquote_to_bytes(path)
        if decoded == path:
            return False
        path = decoded
    return True


def _resolutions(path: bytes) -> tuple[list[bytes], list[bytes]]:
    """The path's segments without dots and parameters, once with empty segments dropped before dots count and once after."""
    segments = [part.partition(b";")[0].strip().lower() for part in path.replace(b"\\", b"/").split(b"/")[1:]]
    return _resolve([part for part in segments if part]), [part for part in _resolve(segments) if part]


def _resolve(segments: list[bytes]) -> list[bytes]:
    resolved: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            del resolved[-1:]
        elif segment != b".":
            resolved.append(segment)
    return resolved


def _first(segments: list[bytes]) -> bytes:
    return segments[0].partition(b"?")[0].partition(b"#")[0] if segments else b""


# --- the table --------------------------------------------------------------------------------------------------------

_ACTIONS: Final = {name.encode(): name for name in GEMINI_ACTIONS}
_LOWER_ACTIONS: Final = frozenset(name.lower() for name in _ACTIONS)
_VERSIONS: Final = tuple(version.encode() for version in GEMINI_VERSIONS)
_COLLIDING: Final = frozenset({"files.create", "files.list"})
"""What the table has for OpenAI, and headers may make Anthropic's."""
_COLLIDING_PATHS: Final = (b"/v1/models", b"/v1/files")

_MODEL_PATHS: Final[tuple[tuple[bytes, str | None, str | None, bytes], ...]] = (
    # path before the model, dialect (None: by header), home provider, upstream path before the model
    (b"/v1/models/", None, None, b"/models/"),
    (b"/openai/v1/models/", OPENAI, "openai", b"/models/"),
    (b"/anthropic/v1/models/", ANTHROPIC, "anthropic", b"/models/"),
    (b"/v1beta/openai/models/", OPENAI, "gemini", b"/models/"),
    (b"/gemini/v1beta/openai/models/", OPENAI, "gemini", b"/models/"),
    (b"/gemini/v1/models/", GEMINI, "gemini", b"/v1/models/"),
    *((version + b"/models/", GEMINI, "gemini", version + b"/models/") for version in _VERSIONS),
    *((b"/gemini" + version + b"/models/", GEMINI, "gemini", version + b"/models/") for version in _VERSIONS),
)


def _list(dialect: str, method: bytes, provider: str | None, suffix: bytes) -> Route:
    return Route(
        dialect,
        "models",
        method,
        provider,
        suffix,
        takes="nothing",
        needs_model=False,
        body_limit=0,
        metering="nothing",
        local="" if provider else "models",
    )


def _probe(dialect: str, method: bytes) -> Route:
    return Route(dialect, "probe", method, None, b"", takes="nothing", needs_model=False, body_limit=0, local="probe")


def _table() -> dict[tuple[bytes, bytes], Route]:
    """Every route without a model or an id in its path, by method and path as spelled by the client."""
    table, _ = _TABLES
    table = {
        # Its model may be left out, so it is OpenAI's whatever the name.
        key: msgspec.structs.replace(found, provider=found.provider or OPENAI) if found.operation == "moderations" else found
        for key, found in table.items()
    }
    chat = table[b"POST", b"/v1/chat/completions"]
    table[b"POST", b"/anthropic/v1/chat/completions"] = msgspec.structs.replace(chat, provider="anthropic")
    mounts = ((b"/openai/v1", "openai"), (b"/v1beta/openai", "gemini"), (b"/gemini/v1beta/openai", "gemini"))
    for method in (b"GET", b"HEAD"):
        for mount, provider in mounts:
            table[method, mount + b"/models"] = _list(OPENAI, method, provider, b"/models")
        azure = _list(OPENAI, method, AZURE_MOUNT.provider, b"/openai/models")
        table[method, b"/openai/models"] = msgspec.structs.replace(azure, from_base=True, call=b"/models")
        table[method, b"/anthropic/v1/models"] = _list(ANTHROPIC, method, "anthropic", b"/models")
        table[method, b"/gemini/v1/models"] = _list(GEMINI, method, "gemini", b"/v1/models")
        for version in _VERSIONS:
            for front in (b"", b"/gemini"):
                table[method, front + version + b"/models"] = _list(GEMINI, method, "gemini", version + b"/models")
        for path in PROBED:
            table[method, path] = _probe(dialect_of(path), method)
    return table


_TABLES: Final = tables()
_STATIC: Final = _table()
_LISTS: Final = {
    (method, dialect): found
    for method in (b"GET", b"HEAD")
    for dialect, found in (
        (OPENAI, _list(OPENAI, method, None, b"/models")),
        (ANTHROPIC, _list(ANTHROPIC, method, "anthropic", b"/models")),
        (GEMINI, _list(GEMINI, method, "gemini", b"/v1/models")),
    )
}
_METHODS: Final[dict[bytes, str]] = {
    path: ", ".join(sorted(known.decode() for known, other in _STATIC if other == path)) for _, path in _STATIC
} | {b"/v1/models": "GET, HEAD"}
_PATTERNS: Final = _TABLES[1]
_FILES: Final = {
    dialect: {(endpoint.method.encode(), endpoint.operation): route_of(dialect, endpoint, mount) for endpoint in endpoints}
    for dialect, mount, endpoints in (
        (ANTHROPIC, Mount("/v1", "anthropic"), ANTHROPIC_FILES),
        (GEMINI, GEMINI_SHARED_MOUNT, GEMINI_FILES),
    )
}


@lru_cache(maxsize=1024)
def _dynamic(method: bytes, path: bytes, by_header: str) -> Route | None:
    """Routes that are no table look-up: what several dialects have, and paths with a model, an id or a provider in them."""
    if path == b"/v1/models":
        return _LISTS.get((method, by_header))
    if path.startswith(b"/p/"):
        return _passed(method, path)
    for before, dialect, provider, suffix in _MODEL_PATHS:
        if path.startswith(before):
            name = path[len(before) :]
            if dialect is None or dialect == GEMINI:
                action = _gemini_action(method, name, provider, suffix)
                if action is not None:
                    return action
            return _one_model(method, name, (dialect or by_header, provider, suffix))
    if path.startswith(b"/openai/deployments/"):
        return _deployed(method, path)
    found = _STATIC.get((method, path)) or _with_id(method, path)
    return _files_by_header(found, by_header) if found is not None and path.startswith(b"/v1/files") else found


def _with_id(method: bytes, path: bytes) -> Route | None:
    """A path with an object's id in it, spelled plainly. Raises ``MethodNotAllowed``."""
    fits = [pattern for pattern in _PATTERNS if pattern.path.fullmatch(path)]
    for pattern in fits:
        found = pattern.routes.get(method)
        if found is not None:
            own = path[len(pattern.mount) :]
            return msgspec.structs.replace(found, suffix=pattern.upstream + own, call=own if found.from_base else b"")
    if not fits:
        return None
    allowed = ", ".join(sorted({known.decode() for pattern in fits for known in pattern.routes}))
    raise MethodNotAllowed(f"{_printable(path)} does not take {_printable(method)}.", hint=f"Use {allowed}.")


def _files_by_header(found: Route, by_header: str) -> Route | None:
    """``/v1/files`` is OpenAI's, Anthropic's and Gemini's, who takes new ones elsewhere and gives none back."""
    if by_header == OPENAI:
        return found
    other = _FILES[by_header].get((b"GET" if found.method == b"HEAD" else found.method, found.operation))
    if other is None:
        return None
    suffix = b"/v1" + found.suffix if by_header == GEMINI else found.suffix
    return msgspec.structs.replace(other, method=found.method, suffix=suffix)


def _deployed(method: bytes, path: bytes) -> Route | None:
    """Azure: ``/openai/deployments/{deployment}/chat/completions``; the deployment's name is the model's."""
    found = AZURE_DEPLOYMENT.fullmatch(path)
    endpoint = AZURE_TAILS.get(found["tail"]) if found is not None else None
    if found is None or endpoint is None:
        return None
    if method != b"POST":
        raise MethodNotAllowed(f"{endpoint.operation} does not take {_printable(method)}.", hint="Use POST.")
    made = route_of(OPENAI, endpoint, AZURE_MOUNT)
    before = b"/openai/deployments/"
    return msgspec.structs.replace(made, suffix=before, model=found["model"].decode(), tail=found["tail"], call=found["tail"])


def _passed(method: bytes, path: bytes) -> Route | None:
    """``/p/{provider}/…``: any path of a provider, spelled so that no reader can take it for another."""
    found = _PASSED.fullmatch(path)
    if found is None or not _is_plain(found["path"]):
        raise RouteUnknown(
            "The path after /p/ is not spelled plainly.",
            hint="Write /p/{provider}/ and the provider's own path, without '//', '..', ';' and escapes that are not needed.",
        )
    if method not in _PASSED_METHODS:
        raise MethodNotAllowed(f"{_printable(method)} is not passed on.", hint=f"Use {', '.join(_PASSED_SHOWN)}.")
    return Route(
        OPENAI,
        HTTP,
        method,
        found["provider"].decode(),
        found["path"],
        takes="anything",
        needs_model=False,
        metering="nothing",
        from_base=True,
    )


_PASSED_SHOWN: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_PASSED_METHODS: Final = frozenset(name.encode() for name in _PASSED_SHOWN)
_CHARACTERS: Final = rb"[A-Za-z0-9._~!$&'()*+,=:@/-]*+"
_PASSED: Final = re.compile(
    rb"/p/(?P<provider>[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?)(?P<path>(?!.*/[/.])/"
    # of the possessive groups that every Python gets right (``usage.skim``)
    + (_CHARACTERS + rb"(?:%[0-9A-Fa-f][0-9A-Fa-f]" + _CHARACTERS + rb")*+")
    + rb")"
)
_ESCAPABLE: Final = frozenset(b" !\"$&'()*+,:<=>@[]^`{|}")
"""ASCII characters that may be escaped: those that mean nothing in a path, or that careful clients escape."""


def _is_plain(path: bytes) -> bool:
    """Whether each escape is of a character that has to be escaped, or may be, and changes nothing when it is not: no '/', '.', '%'."""
    decoded = unquote_to_bytes(path)
    try:
        text = decoded.decode()
    except UnicodeDecodeError:
        return False
    escaped = {bytes.fromhex(code.decode()) for code in re.findall(rb"%([0-9A-Fa-f]{2})", path)}
    return text.isprintable() and all(code[0] in _ESCAPABLE or code >= b"\x80" for code in escaped)


def _gemini_action(method: bytes, name: bytes, provider: str | None, suffix: bytes) -> Route | None:
    """``{model}:{action}``; ``None`` where there is no such action."""
    model, _, action = name.rpartition(b":")
    operation = _ACTIONS.get(action)
    if operation is None or not model:
        return None
    if method != b"POST":
        raise MethodNotAllowed(f"{operation} does not take {_printable(method)}.", hint="Use POST.")
    return Route(
        GEMINI,
        operation,
        method,
        "gemini",
        suffix if provider else b"/v1" + suffix,
        model=_path_model(model),
        tail=b":" + action,
        streamed=operation == "streamGenerateContent",
        metering="nothing" if operation == "countTokens" else "answer",
    )


def _one_model(method: bytes, name: bytes, where: tuple[str, str | None, bytes]) -> Route:
    dialect, provider, suffix = where
    if dialect == GEMINI and b":" in name:
        raise RouteUnknown(f"The gateway has no Gemini method {_printable(name.rpartition(b':')[2])}.")
    if method not in {b"GET", b"HEAD"}:
        raise MethodNotAllowed(f"A model's description does not take {_printable(method)}.", hint="Use GET.")
    if provider is None and dialect != OPENAI:
        provider = dialect
        suffix = b"/v1/models/" if dialect == GEMINI else suffix
    return Route(
        dialect,
        "models.get",
        method,
        provider,
        suffix,
        model=_path_model(name),
        takes="nothing",
        body_limit=0,
        metering="nothing",
    )


def _path_model(raw: bytes) -> str:
    """A model's name out of a path. Only '/', ':' and '@' may be escaped: whatever else is, the provider might read otherwise."""
    name = _HARMLESS_ESCAPE.sub(lambda escape: bytes.fromhex(escape[0][1:].decode()), raw)
    if not _PATH_MODEL.fullmatch(name) or any(part in {b".", b".."} for part in name.split(b"/")):
        raise RouteUnknown(
            "The model's name in the path is not spelled plainly.",
            hint="Write it without escapes, for example /v1beta/models/gemini-2.5-flash:generateContent.",
        )
    return name.decode("ascii")


# --- refusals ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _check_query(query: bytes) -> None:
    if not _QUERY.fullmatch(query) or b"#" in query:
        raise InvalidRequest("The query has characters that do not belong there.", hint="Percent-encode them.")
    for part in re.split(rb"[&;]", query):
        name = unquote_to_bytes(part.partition(b"=")[0].replace(b"+", b" ")).strip().lower()
        if name in _OVERRIDES:
            raise InvalidRequest(
                "The query asks for another method, headers or body than the request has.", hint="Send it as it is."
            )
        if name in _CREDENTIAL_NAMES:
            raise InvalidRequest(
                "Credentials in a URL are never accepted: URLs end up in logs and histories.",
                hint="Send the Keybearer token as 'Authorization: Bearer kb_…', x-api-key or x-goog-api-key. "
                "If it was sent in the URL, revoke it.",
            )


def _unknown(method: bytes, path: bytes) -> KeybearerError:
    allowed = _METHODS.get(path)
    if allowed is not None:
        return MethodNotAllowed(f"{_printable(path)} does not take {_printable(method)}.", hint=f"Use {allowed}.")
    canonical = b"/" + b"/".join(_resolutions(unquote_to_bytes(path))[0])
    if canonical != path and (canonical in _METHODS or _PLAIN.fullmatch(path) is None):
        return RouteUnknown(
            "The gateway has no such path: it is not spelled canonically.",
            hint=f"Write it as {_printable(canonical)}." if canonical in _METHODS else "Write it without escapes, '//' and '..'.",
        )
    return RouteUnknown(f"The gateway has no route {_printable(method)} {_printable(path)}.")


def _printable(raw: bytes) -> str:
    """A caller's bytes for an error message: ASCII, cut short."""
    text = raw[:120].decode("ascii", "replace")
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in text)

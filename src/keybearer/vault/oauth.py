"""What an OAuth token carries beside its value: client, refresh token, token endpoint, scopes (RFC 6749). Pure.

All of it is sealed, as one document in an envelope of its own; what is shown are previews by the rules of values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlsplit

from keybearer.access.fields import Fields, has_control
from keybearer.catalog import preview
from keybearer.domain import SecretBytes, SecretType
from keybearer.errors import EnvelopeError, FieldError, KeyRefused
from keybearer.vault.values import is_masked

PART_LIMIT = 16 * 1024
"""Bytes of one part."""
SCOPES_LIMIT = 100


@dataclass(frozen=True, slots=True)
class OAuth:
    """What refreshing a token takes. ``None``: not known. Redacts itself: each part is secret bytes."""

    client_id: SecretBytes | None = None
    client_secret: SecretBytes | None = None
    refresh_token: SecretBytes | None = None
    token_endpoint: SecretBytes | None = None
    """An ``https`` URL."""
    scopes: SecretBytes | None = None
    """Separated by spaces."""

    def sealable(self) -> SecretBytes:
        """The document that is sealed."""
        return SecretBytes(json.dumps(_texts(self)).encode())

    def previews(self) -> dict[str, str]:
        """What may be shown of each part that is there: of scopes their number, of the endpoint scheme and host."""
        return {name: _preview(name, text) for name, text in _texts(self).items()}


PARTS = tuple(part.name for part in fields(OAuth))


def opened(document: SecretBytes) -> OAuth:
    """The parts from what was sealed. Raises ``EnvelopeError``."""
    try:
        parts = json.loads(document.reveal())
        return OAuth(**{name: SecretBytes(parts[name].encode()) for name in PARTS if name in parts})
    except (ValueError, TypeError, AttributeError):
        raise EnvelopeError from None


def changed(before: OAuth | None, given: Mapping[str, Any]) -> OAuth | None:
    """The parts after a change: what is given takes the place of what was; blank keeps it, ``None`` takes it away.

    ``given``: ``SecretBytes`` by name, scopes as a list of texts. Returns ``None`` where nothing is left. Raises ``Invalid`` with all
    that is wrong, ``KeyRefused`` for a masked part.
    """
    before = before or OAuth()
    checks = Fields()
    checks.unknown(f"oauth_{name}" for name in given.keys() - set(PARTS))
    parts: dict[str, SecretBytes | None] = {}
    for name in PARTS:
        if name not in given:
            continue
        raw = given[name]
        if raw is None:
            parts[name] = None
            continue
        text = _scopes(checks, raw) if name == "scopes" else _text(checks, name, raw)
        if name == "scopes" or text:
            parts[name] = SecretBytes(text.encode()) if text else None
        if text and name != "scopes" and is_masked(text, SecretType.OAUTH_TOKEN, before.previews().get(name, "")):
            raise KeyRefused(
                "This is a masked value, not the value itself.",
                fields=(FieldError(f"oauth.{name}", "is masked; leave it blank to keep it"),),
            )
    after = replace(before, **parts)
    if after.token_endpoint is not None and _text_of(after.token_endpoint) != _text_of(before.token_endpoint):
        # Else whoever may change a secret, but not read it, would be sent the grant by naming an endpoint of theirs.
        for name in ("refresh_token", "client_secret"):
            if getattr(before, name) is not None and getattr(after, name) is getattr(before, name):
                checks.wrong(f"oauth.{name}", "must be entered again for another token endpoint")
    checks.check()
    return after if _texts(after) else None


def _text_of(part: SecretBytes | None) -> bytes:
    return b"" if part is None else part.reveal()


def _texts(oauth: OAuth) -> dict[str, str]:
    parts = {name: getattr(oauth, name) for name in PARTS}
    return {name: part.reveal().decode() for name, part in parts.items() if part is not None}


def _preview(name: str, text: str) -> str:
    if name == "scopes":
        return str(len(text.split()))
    return preview(text, SecretType.CONNECTION_STRING if name == "token_endpoint" else SecretType.OAUTH_TOKEN)


def _text(checks: Fields, name: str, value: SecretBytes) -> str:
    field, raw = f"oauth.{name}", value.reveal()
    if len(raw) > PART_LIMIT:
        checks.wrong(field, f"has {len(raw)} bytes; at most {PART_LIMIT} are allowed")
        return ""
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        checks.wrong(field, "is not valid Unicode text")
        return ""
    if has_control(text):
        checks.wrong(field, "has control or other invisible characters")
        return ""
    if text and name == "token_endpoint" and not _is_endpoint(text):
        checks.wrong(field, "is not an https:// URL")
        return ""
    return text


def _scopes(checks: Fields, values: Any) -> str:
    """Scopes as RFC 6749 (3.3) writes them: printable ASCII without spaces, quotes and backslashes, each once."""
    scopes = checks.words("oauth.scopes", values, SCOPES_LIMIT, 500)
    if any(not scope.isascii() or set(' "\\') & set(scope) for scope in scopes):
        checks.wrong("oauth.scopes", "has a scope with characters that no scope has")
    return " ".join(scopes)


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname) and parts.username is None and port != 0 and text.isascii()

"""What a key looks like: format checks (V14), detection of the provider, previews (V3). Pure; no value is kept or logged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from keybearer.catalog.provider import KeyPattern, Provider
from keybearer.domain import SecretType

KEY_LIMIT: Final = 16 * 1024
"""Characters; no provider's key is longer, and it has to fit into one header."""

_LONG, _LONG_SHOWN = 24, 4
_SHORT, _SHORT_SHOWN = 12, 2
_KEYBEARER_TOKEN: Final = re.compile(r"kb_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}")
_MASK: Final = re.compile(r"[*.xX•…]+|.{1,8}(?:\*{3,}|\.{3}|•{3,}|…).{0,8}")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{0,30}", re.IGNORECASE)
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """What is to be said of a value before it is saved: why it cannot be a key, or what is odd about it."""

    refused: str | None = None
    warnings: tuple[str, ...] = ()


def detect(providers: Iterable[Provider], value: str) -> tuple[str, ...]:
    """The names of the providers whose key formats fit ``value``; exactly one: unambiguous.

    Forms that providers share (``loose_patterns``) do not count: DeepSeek's keys begin with ``sk-``, and so do many others'.
    """
    return tuple(provider.name for provider in providers if _fits(provider.key_patterns, value))


def check_key(
    provider: Provider, value: str, others: Iterable[Provider] = (), secret_type: SecretType = SecretType.API_KEY
) -> KeyCheck:
    """Check a value that is to be stored for ``provider``; ``others`` are named where it looks like theirs.

    Refused is what is surely wrong. A form that is merely unknown is a warning, because formats change. Nothing is expected of
    types that are neither keys nor what the provider takes by default, nor of tokens that come with more than themselves (JSON).
    """
    if secret_type is SecretType.API_KEY:
        refused = _surely_wrong(value)
        if refused is None:
            refused = next((known.reason for known in provider.refused_patterns if known.pattern.fullmatch(value)), None)
        if refused is not None:
            return KeyCheck(refused=refused)
    is_document = secret_type is SecretType.OAUTH_TOKEN and value.lstrip().startswith("{")
    if is_document or secret_type not in {SecretType.API_KEY, provider.secret_type}:
        return KeyCheck()
    forms = (*provider.key_patterns, *provider.loose_patterns)
    if _fits(forms, value) or not (forms or provider.is_predefined):
        return KeyCheck()
    swapped = [other for other in others if other.name != provider.name and detect((other,), value)]
    if swapped:
        names = " or ".join(other.display_name for other in swapped)
        return KeyCheck(warnings=(f"This looks like a key of {names}, not of {provider.display_name}.",))
    return KeyCheck(warnings=(f"This does not look like a key of {provider.display_name}.",)) if forms else KeyCheck()


def _fits(forms: Iterable[KeyPattern], value: str) -> bool:
    """Whether a value is of one of these forms. No form has a line break; patterns would try very long to find one of theirs before it."""
    return "\n" not in value and any(known.pattern.fullmatch(value) for known in forms)


def preview(value: str, secret_type: SecretType) -> str:
    """What a listing may show: ``abcd…wxyz`` from 24 characters on, ``ab…yz`` from 12, below that nothing.

    Of a connection string only scheme and host, and not even the host where it could be a part of the password.
    """
    if secret_type is SecretType.CONNECTION_STRING:
        return _preview_connection(value)
    if len(value) >= _LONG:
        return f"{value[:_LONG_SHOWN]}…{value[-_LONG_SHOWN:]}"
    if len(value) >= _SHORT:
        return f"{value[:_SHORT_SHOWN]}…{value[-_SHORT_SHOWN:]}"
    return ""


def _surely_wrong(value: str) -> str | None:
    if not value:
        return "The key is empty."
    if len(value) > KEY_LIMIT:
        return f"The key is longer than {KEY_LIMIT} characters."
    if any(character.isspace() for character in value):
        return "The key has white space or a line break inside."
    if _MASK.fullmatch(value):
        return "This is a masked key: copy the key itself."
    if not value.isascii():
        return "The key has characters that no key has, such as typographic quotes or invisible ones."
    if not value.isprintable():
        return "The key has control characters inside."
    if _KEYBEARER_TOKEN.fullmatch(value):
        return "This is a Keybearer access token, not a provider's key."
    return None


def _preview_connection(value: str) -> str:
    """Scheme and host. A password may hold '/', '?', '#' or '@': then what parses as the host need not be the host."""
    scheme, separator, rest = value.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return ""
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if "@" in rest[len(authority) :] or authority.count("@") > 1:
        return f"{scheme}://…"
    try:
        host = urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return f"{scheme}://…"
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" if _HOST.fullmatch(shown) else f"{scheme}://…"

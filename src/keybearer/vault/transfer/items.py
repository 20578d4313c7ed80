"""What a file to be imported holds, item by item; and whose key an item is, by its name or its look. Pure.

Nothing of a value is ever in a place, a label or a problem. A name is shown only where it can be no value itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from keybearer.catalog import Catalog, Registry
from keybearer.domain import SecretBytes, SecretType
from keybearer.vault.drafts import DEFAULT_NAME

Kind = Literal["secret", "model"]
Format = Literal["env", "json", "csv"]
Progress = Callable[[str, int, int], None]
"""Told what is done, how many rows or items of it are, and of how many."""

CONTENT_LIMIT = 4 * 1024 * 1024
"""Bytes of one file."""
ITEMS_LIMIT = 2_000

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,199}", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9_./ -]{1,300}", re.ASCII)
_GENERIC = frozenset({"key", "api_key", "apikey", "api-key", "token", "value", "secret", "access_token", "url", "dsn"})


def unwatched(what: str, done: int, total: int) -> None:
    """A ``Progress`` that nobody sees."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to be imported."""

    place: str
    variable: str = ""
    """The name it has in the file: a variable's, or a path."""
    value: SecretBytes | None = None
    provider: str = ""
    """As the file says; empty: it does not."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says: those of ``NewSecret`` or ``NewModel``, read from text."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What readers of old formats need beside the ciphertext: ``user_id``, ``salt``."""
    kind: Kind = "secret"
    problem: str = ""
    """Why it cannot be read; then nothing else counts."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which secret an item is to become."""

    provider: str
    secret_type: SecretType | None
    name: str


def target_of(providers: Registry, catalog: Catalog, item: Item, value: str) -> Target | None:
    """Say whose key an item is: by what the file says, a well-known variable's name, a path, or the value's form.

    ``None``: nothing tells. The usual variable of a provider becomes ``default``; any other keeps its own name, so that two of one
    file do not meet.
    """
    secret_type = item.fields.get("secret_type")
    named = str(item.fields.get("name") or "")
    if item.provider:
        return Target(item.provider, secret_type, named or _own_name(item.variable))
    by_name = _by_variable(providers, item.variable) or _by_path(providers, item.variable)
    if by_name is not None:
        return Target(by_name[0], secret_type, named or by_name[1])
    detected = catalog.detect(value)
    if len(detected) == 1:
        return Target(detected[0], secret_type, named or _own_name(item.variable))
    return None


def shown(catalog: Catalog, name: str) -> str:
    """A name from a file as a report may repeat it; empty where it might be a value in the wrong place."""
    if not _PATH.fullmatch(name) or any(catalog.detect(part) for part in re.split(r"[/ ]", name)):
        return ""
    return name


def _by_variable(providers: Registry, variable: str) -> tuple[str, str] | None:
    """The provider of a variable, and the secret's name. ``APP_OPENAI_API_KEY`` and ``OPENAI_API_KEY_2`` are OpenAI's, too."""
    wanted = variable.rpartition("/")[2].upper()
    best: tuple[int, str, str] | None = None
    for provider in providers.providers.values():
        for place, known in enumerate(provider.variables):
            is_same = wanted == known
            if not (is_same or wanted.endswith("_" + known) or wanted.startswith(known + "_")):
                continue
            rank = len(known) + (1000 if is_same else 0)
            if best is None or rank > best[0]:
                best = (rank, provider.name, DEFAULT_NAME if is_same and place == 0 else _own_name(variable))
    return best[1:] if best else None


def _by_path(providers: Registry, path: str) -> tuple[str, str] | None:
    """``llm/openai/api_key``: the provider is a part of the path, and what comes after it says nothing of its own."""
    parts = path.split("/")
    for place in range(len(parts) - 1, -1, -1):
        name = parts[place].lower()
        if name in providers.providers and len(parts) > 1:
            rest = [part for part in parts[place + 1 :] if part.lower() not in _GENERIC]
            return name, "/".join(rest).lower() or DEFAULT_NAME
    return None


def _own_name(variable: str) -> str:
    return variable.lower() or DEFAULT_NAME

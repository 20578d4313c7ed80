"""Reading JSON and CSV files to be imported. Pure.

JSON: an object of names and values; a list of secrets; or an object with ``secrets`` and ``models``, as an export has them. CSV: a row
of headings, then a row for each secret. A field that is not known is refused: a misspelled ``expires_at`` must not mean "never". Of one
name that stands twice in an object both are read, and so found.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from keybearer.access.fields import secret_value
from keybearer.domain import SecretType
from keybearer.errors import FieldError, Invalid
from keybearer.vault.transfer.items import Item, Kind

_VALUE = ("value", "api_key", "apiKey", "key")
_ALIASES = {"type": "secret_type", "keyName": "name", "isActive": "is_active", "label": "name"}
_NAMES = ("variable", "env", "path")
_FACTS = ("user_id", "salt")
_FOREIGN = frozenset({"id", "created_at", "updated_at", "version", "preview", "owner_kind", "state"})
"""What exports say beside, and an import has no use for."""
_SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_json(text: str) -> Iterator[Item]:
    """Yield the items of a JSON document. Raises ``Invalid`` where it is none."""
    try:
        document = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        raise _broken("is no JSON document") from None
    if isinstance(document, list):
        yield from _listed("secrets", document, "secret")
    elif isinstance(document, _Pairs) and document.keys() & {"secrets", "models"} and _are_lists(document):
        for name, value in document.pairs:
            if name in {"secrets", "models"}:
                yield from _listed(name, value, "secret" if name == "secrets" else "model")
            elif name not in {"format", "version", "exported_at"}:
                yield Item("the document", problem="has a field beside secrets and models that is not known")
    elif isinstance(document, _Pairs):
        yield from (_flat(number, name, value) for number, (name, value) in enumerate(document.pairs, 1))
    else:
        raise _broken("is neither an object nor a list")


def read_csv(text: str) -> Iterator[Item]:
    """Yield the items of a CSV file (RFC 4180). Raises ``Invalid`` where it has no row of headings."""
    lines = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    headings: list[str] | None = None
    number = 0
    while True:
        try:
            row = next(lines, None)
        except csv.Error:
            yield Item(f"row {number}", problem="is broken: a quotation mark is never closed, or a field is too long")
            return  # where the next row begins cannot be told
        if row is None:
            break
        if headings is None:
            headings = [heading.strip() for heading in row]
            if not {*_VALUE} & set(headings) or len(set(headings)) != len(headings):
                raise _broken("has no row of headings with one named value")
        elif any(cell.strip() for cell in row):
            yield _of_row(f"row {number}", headings, row)
        number += 1
    if headings is None:
        raise _broken("is empty")


class _Pairs(dict[str, Any]):
    """An object as it is written, names that stand twice included."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _are_lists(document: Mapping[str, Any]) -> bool:
    return all(isinstance(document[name], list) for name in ("secrets", "models") if name in document)


def _flat(number: int, name: str, value: Any) -> Item:
    place = f"entry {number}"
    if isinstance(value, str):
        return Item(place, name, secret_value(value)) if value.strip() else Item(place, name, problem="is empty")
    if isinstance(value, dict):  # parts of a ciphertext
        return Item(place, name, secret_value(json.dumps(value)))
    return Item(place, name, problem="is no text")


def _listed(name: str, listed: list[Any], kind: Kind) -> Iterator[Item]:
    for number, entry in enumerate(listed):
        place = f"{name}[{number}]"
        if not isinstance(entry, _Pairs):
            yield Item(place, kind=kind, problem="is no object")
        elif len(entry.pairs) != len(entry):
            yield Item(place, kind=kind, problem="has a field twice")
        else:
            yield _of_object(place, entry, kind)


def _of_row(place: str, headings: list[str], row: list[str]) -> Item:
    if len(row) != len(headings):
        return Item(place, problem=f"has {len(row)} fields where there are {len(headings)} headings")
    entry = {heading: cell for heading, cell in zip(headings, row, strict=True) if cell.strip()}
    return _of_object(place, entry, "secret")


def _of_object(place: str, entry: Mapping[str, Any], kind: Kind) -> Item:
    given = {_ALIASES.get(name, name): value for name, value in entry.items() if value is not None and name not in _FOREIGN}
    variable = next((str(given.pop(name)) for name in _NAMES if isinstance(given.get(name), str)), "")
    facts = {name: str(given.pop(name)) for name in _FACTS if isinstance(given.get(name), str | int)}
    provider = given.pop("provider", "")
    values = [given.pop(name) for name in _VALUE if name in given]
    readers = _SECRET_READERS if kind == "secret" else _MODEL_READERS
    problem, fields = "", {}
    if not isinstance(provider, str) or len(values) > 1 or (kind == "secret" and not values):
        problem = "needs one value, and a provider that is text"
    for name, value in given.items():
        read = readers.get(name)
        try:
            fields[name] = read(value) if read is not None else _unknown()
        except (ValueError, TypeError, KeyError):
            problem = problem or (f"has {name} that is not of its form" if read else "has a field that is not known")
    value = values[0] if values else None
    if isinstance(value, dict):
        value = json.dumps(value)
    if value is not None and not isinstance(value, str):
        problem = problem or "has a value that is no text"
    if kind == "secret" and isinstance(value, str) and not value.strip():
        problem = problem or "is empty"
    if problem:
        return Item(place, variable, kind=kind, problem=problem)
    sealed = secret_value(value) if value else None
    return Item(place, variable, sealed, provider, fields, facts, kind)


def _unknown() -> Any:
    raise ValueError


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _words(value: Any) -> tuple[str, ...]:
    """A list, or text in which each ends at a comma or semicolon, as cells have it."""
    listed = value.replace(";", ",").split(",") if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
        raise TypeError
    return tuple(word.strip() for word in listed if word.strip())


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _switch(value: Any) -> bool:
    if isinstance(value, str):
        return _SWITCHES[value.lower()]
    if not isinstance(value, bool):
        raise TypeError
    return value


def _time(value: Any) -> datetime:
    return datetime.fromisoformat(_text(value))


def _object(value: Any) -> dict[str, Any]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise TypeError
    return dict(found)


def _oauth(value: Any) -> dict[str, Any]:
    """The parts of an OAuth token, as the vault takes them."""
    parts = _object(value)
    return {name: list(_words(part)) if name == "scopes" else secret_value(_text(part)) for name, part in parts.items()}


def _texts(value: Any) -> dict[str, str]:
    return {name: _text(part) for name, part in _object(value).items()}


_SECRET_READERS: Mapping[str, Callable[[Any], Any]] = {
    "secret_type": lambda value: SecretType(_text(value)),
    "name": _text,
    "description": _text,
    "tags": _words,
    "priority": _number,
    "allowed_models": _words,
    "expires_at": _time,
    "rotation_period": _number,
    "health_check_every": _number,
    "is_active": _switch,
    "fetchable": _switch,
    "fallback_allowed": _switch,
    "oauth": _oauth,
    "parameters": _texts,
}
_MODEL_READERS: Mapping[str, Callable[[Any], Any]] = {
    "name": _text,
    "display_name": _text,
    "kind": _text,
    "base_url": _text,
    "auth_style": _text,
    "auth_header": _text,
    "parameters": _object,
    "aliases": _words,
}


def _broken(message: str) -> Invalid:
    return Invalid(f"The content {message}.", fields=(FieldError("content", message),))

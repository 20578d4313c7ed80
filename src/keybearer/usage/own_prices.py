"""What an operator says that models cost here: read from YAML, strictly, in dollars a million tokens. Pure.

::

    azure/my-gpt: {input: 2.5, output: 10, cached: 1.25}
    house/llama-4: {input: 0.2, output: 0.6}
    ollama/*: {input: 0, output: 0}

The name is the provider's and, after the first slash, the model's as usage records have it; ``*`` stands for all models of the
provider that are not named themselves.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from decimal import Decimal
from typing import Any, Final

import yaml

from keybearer.errors import SettingsInvalid
from keybearer.usage.prices import Rates, rates_of

_KINDS: Final = frozenset({"input", "output", "cached", "cache_write", "long_cache_write", "reasoning"})
_NUMBER: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,12})?")
_HINT: Final = "Write 'provider/model: {input: 2.5, output: 10}' in dollars a million tokens; see docs/prices.md."


def read(text: str) -> dict[str, Rates]:
    """The prices by ``provider/model``; empty for an empty text. Raises ``SettingsInvalid``, which names the entry that is wrong."""
    try:
        said = yaml.load(text, Loader=_Strict)  # noqa: S506  # texts, lists and mappings of them, and nothing else
    except (yaml.YAMLError, RecursionError) as error:
        raise _wrong(f"is no YAML{_place(error)}") from None
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise _wrong("is no list of 'provider/model: {…}'")
    return {name: _rates(name, entry) for name, entry in _named(said)}


class _Strict(yaml.BaseLoader):
    """All texts, so that numbers are read here and exactly; of two entries of one name nobody could tell which counts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002  # the base's
        names = [getattr(key, "value", None) for key, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{_shown(twice)} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _named(said: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    for name in said:
        provider, slash, model = name.partition("/") if isinstance(name, str) else ("", "", "")
        if not (provider and slash and model) or name != name.strip() or provider != provider.lower():
            raise _wrong(f"has {_shown(name)}, which is no 'provider/model'")
    return list(said.items())


def _rates(name: str, entry: Any) -> Rates:
    if not isinstance(entry, dict) or not entry:
        raise _wrong(f"says no prices of {_shown(name)}")
    unknown = next((kind for kind in entry if kind not in _KINDS), None)
    if unknown is not None:
        raise _wrong(f"has {_shown(unknown)} for {_shown(name)}; known are {', '.join(sorted(_KINDS))}")
    if "input" not in entry:
        raise _wrong(f"has no price of input for {_shown(name)}")
    return rates_of({kind: _dollars(name, kind, price) for kind, price in entry.items()})


def _dollars(name: str, kind: str, price: Any) -> Decimal:
    if not isinstance(price, str) or not _NUMBER.fullmatch(price):
        raise _wrong(f"has a price of {kind} for {_shown(name)} that is no number of dollars")
    return Decimal(price)


def _shown(found: object) -> str:
    return ascii(found)[:80]


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    where = "" if mark is None else f" in line {mark.line + 1}"
    return where if problem is None else f"{where}: {problem}"


def _wrong(what: str) -> SettingsInvalid:
    return SettingsInvalid(f"KEYBEARER_PRICES {what}.", hint=_HINT)

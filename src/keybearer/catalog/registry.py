"""Which provider a model's name means, for one user. Pure; the answers are remembered, because the gateway asks for each call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from keybearer.catalog.provider import Model, Provider
from keybearer.errors import FieldError, Invalid, ModelAmbiguous, ModelUnknown, ProviderUnknown

MODEL_NAME_LIMIT: Final = 200
"""Characters; longer names are refused before they are looked up, stored or sent."""

_REMEMBERED: Final = 1_000  # names come from callers: bounded, so that nobody fills memory with invented ones
_SHOWN: Final = 60


class Entry(NamedTuple):
    """A registered model: the provider as it is called for it, its name there, and further names."""

    provider: Provider
    name: str
    aliases: tuple[str, ...] = ()


class Registry:
    """The providers that one user can name: the predefined ones and the user's own; and their registered models.

    A custom provider never hides a predefined one: the name ``openai`` means OpenAI for everybody. Of ``registered`` entries the
    first of a name or alias counts: an owner's own come before what is everybody's. An alias is never ``provider/…``.
    """

    __slots__ = ("_by_model", "_found", "_registered", "aliases", "providers")

    def __init__(self, providers: Iterable[Provider], registered: Iterable[Entry] = ()) -> None:
        by_name: dict[str, Provider] = {}
        for provider in sorted(providers, key=lambda provider: not provider.is_predefined):
            by_name.setdefault(provider.name, provider)
        self.providers: Mapping[str, Provider] = MappingProxyType(by_name)
        self._by_model: dict[str, list[Provider]] = {}
        for provider in by_name.values():
            for model in provider.models:
                self._by_model.setdefault(model.name, []).append(provider)
        self._registered: dict[tuple[str, str], Provider] = {}
        aliases: dict[str, tuple[str, str]] = {}
        for entry in registered:
            self._registered.setdefault((entry.provider.name, entry.name), entry.provider)
            for alias in entry.aliases:
                aliases.setdefault(alias, (entry.provider.name, entry.name))
        self.aliases: Mapping[str, tuple[str, str]] = MappingProxyType(aliases)
        """Further names: of which provider's model, by its name."""
        self._found: dict[tuple[str | None, str], tuple[Provider, str]] = {}

    def get(self, name: str) -> Provider:
        """The provider of that name. Raises ``ProviderUnknown``."""
        try:
            return self.providers[name]
        except KeyError:
            raise ProviderUnknown(f"No provider is named {_shown(name)}.") from None

    def models(self) -> Iterator[tuple[Provider, Model]]:
        """All registered models, by provider."""
        return ((provider, model) for provider in self.providers.values() for model in provider.models)

    def locate(self, name: str, home: str | None = None) -> tuple[Provider, str]:
        """The provider that ``name`` means, and the model's name as that provider wants it.

        ``provider/model`` always means that provider; an alias means its model; any other bare name means ``home`` where the
        path has one, else the one provider that has such a model. For a registered model the provider is as it is called for
        that one. Raises ``ModelUnknown``, ``ModelAmbiguous``, ``Invalid`` (not a name).
        """
        found = self._found.get((home, name))
        if found is None:
            found = self._locate(name, home)
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[home, name] = found
        return found

    def _locate(self, name: str, home: str | None) -> tuple[Provider, str]:
        check_model_name(name)
        provider, model = self._by_name(name, home)
        return self._registered.get((provider.name, model), provider), model

    def _by_name(self, name: str, home: str | None) -> tuple[Provider, str]:
        prefix, slash, rest = name.partition("/")
        if slash and rest and prefix in self.providers:
            provider = self.providers[prefix]
            # 'openrouter/auto' is what OpenRouter itself calls that model: its own names stay whole.
            return provider, name if any(model.name == name for model in provider.models) else rest
        alias = self.aliases.get(name)
        if alias is not None and alias[0] in self.providers:
            return self.providers[alias[0]], alias[1]
        if home is not None:
            return self.get(home), name
        candidates = self._by_model.get(name) or [
            provider
            for provider in self.providers.values()
            if any(pattern.fullmatch(name) for pattern in provider.model_patterns)
        ]
        if not candidates:
            raise ModelUnknown(f"No provider is known for the model {_shown(name)}.")
        if len(candidates) > 1:
            choice = ", ".join(f"'{provider.name}/{name}'" for provider in candidates)
            raise ModelAmbiguous(f"Several providers have a model {_shown(name)}.", hint=f"Name one of {choice}.")
        return candidates[0], name


def check_model_name(name: str) -> None:
    """Raise ``Invalid`` for what cannot be a model's name: empty, too long, or with white space or control characters."""
    if not name:
        problem = "must not be empty"
    elif len(name) > MODEL_NAME_LIMIT:
        problem = f"has {len(name)} characters; at most {MODEL_NAME_LIMIT} are allowed"
    elif not name.isprintable() or any(character.isspace() for character in name):
        problem = "has white space, control or other invisible characters"
    else:
        return
    raise Invalid(
        f"The model's name {problem}.",
        hint="Send the model's name as the provider writes it, for example 'openai/gpt-5'.",
        fields=(FieldError("model", problem),),
    )


def _shown(name: str) -> str:
    """A caller's name for an error message, cut short."""
    return f"'{name}'" if len(name) <= _SHOWN else f"'{name[:_SHOWN]}…'"

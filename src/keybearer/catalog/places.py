"""Where a provider is for one key: hosts that hold an account's own name, and hosts that go by the key's prefix. Pure.

A place is chosen once, as a key is stored, and is sealed with it as its egress set; from then on the set says where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from keybearer.catalog.provider import Parameter, Provider
from keybearer.errors import FieldError, Invalid


def is_fixed(provider: Provider) -> bool:
    """Whether the provider is at the same place for every key."""
    return not provider.parameters and not provider.places


def at(provider: Provider, value: str, parameters: Mapping[str, str]) -> Provider:
    """The provider where this key goes. Raises ``Invalid`` for parameters that are missing, unknown or not of their form."""
    wrong = [
        FieldError(f"parameters.{parameter.name}", f"is not of the form of {parameter.example}")
        if parameter.name in parameters
        else FieldError(f"parameters.{parameter.name}", f"is required: {parameter.label}, for example {parameter.example}")
        for parameter in provider.parameters
        if not parameter.pattern.fullmatch(parameters.get(parameter.name, ""))
    ]
    known = {parameter.name for parameter in provider.parameters}
    if parameters.keys() - known:
        wrong.append(FieldError("parameters", f"has fields that {provider.display_name} does not take"))
    if wrong:
        raise Invalid(f"{wrong[0].field} {wrong[0].message}.", fields=tuple(wrong))
    place = next((place for place in provider.places if place.key_pattern.fullmatch(value)), None)
    return _settled(provider, place.base_url if place else provider.base_url, parameters)


def candidates(provider: Provider, hosts: Iterable[str]) -> Iterable[Provider]:
    """All that the provider may be, given the hosts that a key is bound to: each place, or the template filled in from a host."""
    if not provider.parameters:
        for base_url in (provider.base_url, *(place.base_url for place in provider.places)):
            yield _settled(provider, base_url, {})
        return
    template = _host_of(provider.base_url)
    for host in hosts:
        parameters = _read(template, host, provider.parameters)
        if parameters is not None:
            yield _settled(provider, provider.base_url, parameters)


def parameters_of(provider: Provider, egress: Iterable[str]) -> dict[str, str]:
    """The parameters with which a key of this egress set was stored; empty where they cannot be told."""
    template = _host_of(provider.base_url)
    for origin in egress:
        found = _read(template, origin.partition("://")[2].rpartition(":")[0], provider.parameters)
        if found is not None:
            return found
    return {}


def _settled(provider: Provider, base_url: str, parameters: Mapping[str, str]) -> Provider:
    """The provider with every address written out."""
    test = provider.test
    if test is not None and test.base_url:
        test = replace(test, base_url=_filled(test.base_url, parameters))
    return replace(provider, base_url=_filled(base_url, parameters), test=test, parameters=(), places=())


def _filled(template: str, parameters: Mapping[str, str]) -> str:
    for name, value in parameters.items():
        template = template.replace(f"{{{name}}}", value)
    return template


def _host_of(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def _read(template: str, host: str, parameters: tuple[Parameter, ...]) -> dict[str, str] | None:
    """The parameters that make ``host`` of the template; ``None``: it is none of it."""
    (parameter,) = parameters
    before, _, after = template.partition(f"{{{parameter.name}}}")
    if not (host.startswith(before) and host.endswith(after)) or len(host) <= len(before) + len(after):
        return None
    value = host[len(before) : len(host) - len(after)]
    return {parameter.name: value} if parameter.pattern.fullmatch(value) else None

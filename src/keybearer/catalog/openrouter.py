"""OpenRouter in place of another provider: it serves their chats under full names, ``vendor/model``. Pure.

Only models of the vendors themselves: an aggregator's or a cloud's are whoever's they are. Whether OpenRouter has such a model is what its
list says (``gateway.openrouter``); nothing is guessed from similar names.
Source: openrouter.ai/docs/api-reference/list-available-models, compared 2026-11-21.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from keybearer.catalog.provider import OPENAI, Provider

OPENROUTER: Final = "openrouter"
VENDORS: Final = {
    "anthropic": "anthropic",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "gemini": "google",
    "mistral": "mistralai",
    "openai": "openai",
    "xai": "x-ai",
}
"""Our names of providers to OpenRouter's of their vendors."""


class StandIn(NamedTuple):
    """Where a chat goes instead, and what its model is called there."""

    provider: Provider
    model: str


def stand_in(wanted: Provider, model: str, openrouter: Provider) -> StandIn | None:
    """OpenRouter in place of ``wanted``; ``None``: it cannot stand in for that one, or not at an address of somebody's own."""
    vendor = VENDORS.get(wanted.name)
    if vendor is None or not model or not wanted.is_predefined or OPENAI not in openrouter.apis:
        return None
    registered = wanted.registered
    if registered is not None:  # its defaults go along
        openrouter = replace(openrouter, registered=replace(registered, secret_id=None))
    return StandIn(openrouter, f"{vendor}/{model}")

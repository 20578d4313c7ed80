"""What pages call things that records know by their id."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from keybearer.domain import Caller
from keybearer.services import Services
from keybearer.vault.secrets import SecretFilter

NAMED = 200
"""Things of one kind that a page calls by name; others by their id."""


async def secret_names(services: Services, caller: Caller) -> dict[UUID, str]:
    """The names of secrets that somebody sees: their own, their teams', and what is shared with them. With the provider where need be."""
    listed = (await services.secrets.list(caller, SecretFilter(owner="all"), limit=NAMED)).items
    named = Counter(secret.name for secret in listed)
    named["default"] += 1  # says nothing, though there be one only
    return {secret.id: secret.name if named[secret.name] == 1 else f"{secret.provider} / {secret.name}" for secret in listed}


async def user_names(services: Services, caller: Caller) -> dict[UUID, str]:
    """The addresses of people, for administrators; to others nobody's."""
    if not caller.is_admin:
        return {}
    found, _ = await services.users.page(caller, None, NAMED)
    return {user.id: user.email for user in found}

"""What people type turned into ids, with what they may see."""

from __future__ import annotations

from uuid import UUID

from keybearer.client import Client
from keybearer.errors import Conflict, NotFound


def team_id(api: Client, key: str) -> str:
    """The id of a team given by id or name. Raises ``NotFound``, ``Conflict`` (several of that name)."""
    if _is_id(key):
        return key
    found = [team["id"] for team in api.pages("/teams") if team["name"] == key]
    if not found:
        raise NotFound("You are in no team of this name.", hint="See 'keybearer team list'.")
    if len(found) > 1:
        raise Conflict("You are in several teams of this name.", hint="Name it by its id; see 'keybearer team list'.")
    return str(found[0])


def member_id(api: Client, team: str, key: str) -> str:
    """The id of a member given by id or e-mail address. Raises ``NotFound``."""
    if _is_id(key):
        return key
    for member in api.pages(f"/teams/{team}/members"):
        if member["email"] == key.strip().lower():
            return str(member["user_id"])
    raise NotFound("Nobody in this team has that address.", hint="See 'keybearer team members'.")


def _is_id(key: str) -> bool:
    try:
        UUID(key)
    except ValueError:
        return False
    return True

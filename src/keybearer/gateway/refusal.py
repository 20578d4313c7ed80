"""What goes on record of a call that was refused before a key was chosen."""

from __future__ import annotations

from keybearer.access.tokens import parse
from keybearer.audit.refusals import Refusal, cut
from keybearer.domain import Client
from keybearer.errors import KeybearerError
from keybearer.gateway.fields import Fields
from keybearer.gateway.ready import Admission


def refusal(
    error: KeybearerError, fields: Fields, client: Client, wanted: tuple[str, str], admission: Admission | None
) -> Refusal:
    """Tell who called from where, why they were turned away, and what for; of a token its id, if it has one.

    ``wanted``: provider and model, as far as the call came.
    """
    provider, model = wanted
    detail = cut({"provider": provider, "model": model, "workflow": fields.workflow, "node": fields.node})
    if admission is not None:
        grant = admission.grant
        return Refusal("gateway.refuse", error.code, client, grant.user_id, grant.token_id, detail=detail)
    return Refusal("gateway.refuse", error.code, client, token_id=_token_id(fields), detail=detail)


def known(fields: Fields) -> bytes:
    """Return the digest that the caller's token is known by; empty where there is no one token."""
    try:
        return fields.digest
    except KeybearerError:
        return b""


def _token_id(fields: Fields) -> str:
    """Return the id of what has a token's form and checksum: anything else may be another service's key."""
    try:
        return parse(fields.token)
    except KeybearerError:
        return ""

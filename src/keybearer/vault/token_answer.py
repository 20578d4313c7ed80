"""Refreshing an OAuth token: the request, what an answer means, and when to ask again (RFC 6749, 5 and 6). Pure.

An endpoint is another's: its answer is bounded by whoever read it, believed in nothing but its form, and never repeated in its words.
"""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote_plus, urlencode

from keybearer.access.fields import has_control
from keybearer.domain import SecretBytes
from keybearer.errors import UpstreamMalformed
from keybearer.vault.oauth import PART_LIMIT, OAuth
from keybearer.vault.values import VALUE_LIMIT

FINAL = {
    "invalid_grant": "The refresh token has ended or was revoked: connect again.",
    "invalid_client": "The client id or secret is wrong.",
    "unauthorized_client": "This client may not refresh tokens.",
    "unsupported_grant_type": "The token endpoint refreshes no tokens.",
    "invalid_scope": "The scopes are more than what was granted.",
}
"""Errors that asking again does not mend (RFC 6749, 5.2), in our words."""
ASSUMED = timedelta(hours=1)
"""After which a token is refreshed whose end is not told; it is not taken for expired."""
LONGEST, SHORTEST = timedelta(days=365), timedelta(seconds=30)
MARGIN = timedelta(minutes=5)
"""Before its end a token is refreshed; of short-lived ones a fifth of their life."""
_SLOWEST = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an endpoint granted."""

    access: SecretBytes
    refresh: SecretBytes | None
    """``None``: the one so far stays good."""
    expires_at: datetime | None
    """``None``: the endpoint did not say."""
    refresh_at: datetime


class Refused(Exception):
    """The endpoint says no, for good; the text is ours, and for people."""


def can_refresh(oauth: OAuth | None) -> bool:
    """Whether there is all that refreshing takes."""
    return oauth is not None and oauth.refresh_token is not None and oauth.token_endpoint is not None


def request_of(oauth: OAuth) -> tuple[SecretBytes, SecretBytes | None]:
    """The form to post, and the value of an ``Authorization`` header where the client has a secret (RFC 6749, 2.3.1)."""
    form = {"grant_type": "refresh_token", "refresh_token": _text(oauth.refresh_token)}
    if oauth.scopes is not None:
        form["scope"] = _text(oauth.scopes)
    authorization = None
    if oauth.client_id is not None and oauth.client_secret is not None:
        pair = f"{quote_plus(_text(oauth.client_id))}:{quote_plus(_text(oauth.client_secret))}"
        authorization = SecretBytes(b"Basic " + b64encode(pair.encode()))
    elif oauth.client_id is not None:
        form["client_id"] = _text(oauth.client_id)
    return SecretBytes(urlencode(form).encode()), authorization


def read(status: int, body: bytes, now: datetime) -> Tokens:
    """What an answer grants. Raises ``Refused`` for good, ``UpstreamMalformed`` for what may be better another time."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    fields: dict[str, Any] = found if isinstance(found, dict) else {}
    # Some say so with a status of 200. What has no token and one of these codes is refused, whatever the status.
    code = fields.get("error")
    if isinstance(code, str) and code in FINAL and 200 <= status < 500:  # noqa: PLR2004  # HTTP
        raise Refused(f"{FINAL[code]} ({code})")
    if status != 200:  # noqa: PLR2004  # RFC 6749, 5.1: no other grants; and no redirect is followed
        raise UpstreamMalformed(f"The token endpoint answered with status {status}.")
    access = _token(fields, "access_token", VALUE_LIMIT)
    if access is None or str(fields.get("token_type", "bearer")).lower() != "bearer":
        raise UpstreamMalformed("The token endpoint's answer holds no bearer token.")
    lifetime = _lifetime(fields.get("expires_in"))
    if lifetime is None:
        return Tokens(access, _token(fields, "refresh_token", PART_LIMIT), None, now + ASSUMED)
    margin = min(MARGIN, lifetime / 5)
    return Tokens(access, _token(fields, "refresh_token", PART_LIMIT), now + lifetime, now + max(lifetime - margin, SHORTEST))


def pause(attempts: int) -> timedelta:
    """After so many failures in a row, how long to wait."""
    return min(timedelta(seconds=5 * (1 << min(attempts, 12))), _SLOWEST)


def _text(part: SecretBytes | None) -> str:
    return "" if part is None else part.reveal().decode()


def _token(fields: dict[str, Any], name: str, most: int) -> SecretBytes | None:
    """A token; ``None`` where there is none. What no header could carry is none."""
    value = fields.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or has_control(value) or not value.isascii() or len(value) > most or value != value.strip():
        raise UpstreamMalformed(f"The token endpoint's answer has no usable {name}.")
    return SecretBytes(value.encode())


def _lifetime(given: object) -> timedelta | None:
    """Seconds, which some send as text; what is no time is as if it had not been sent."""
    if isinstance(given, str) and given.isdecimal() and len(given) <= 12:  # noqa: PLR2004  # of seconds: 30,000 years
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < float("inf"):
        return None
    return timedelta(seconds=min(given, LONGEST.total_seconds()))

"""Whether a provider may be at a base URL at all.

What its name resolves to is checked again at every connection, by ``gateway.upstream``.
"""

from __future__ import annotations

from ipaddress import ip_address

from keybearer.errors import EgressRefused, FieldError, Invalid
from keybearer.gateway.egress import EgressPolicy, origin_of


def check_base_url(policy: EgressPolicy, url: str, *, admin_defined: bool) -> None:
    """Raise ``Invalid`` for a URL keys are surely not sent to: no URL, plain http or a private address that nobody allowed.

    Only administrators may define providers at private hosts, and only at those that the operator allowed.
    """
    try:
        origin = origin_of(url)
        address = _address(origin.host)
        if address is not None:
            policy.may_connect(origin, address, admin_defined=admin_defined)
    except (Invalid, EgressRefused) as error:
        raise _wrong(error.message, error.hint) from None
    if origin.scheme != "https" and not admin_defined:
        raise _wrong("Keys are not sent over plain http.", "Use https://.")


def _address(host: str) -> str | None:
    """The address that a host is, or surely resolves to (RFC 6761: names under localhost)."""
    if host == "localhost" or host.endswith(".localhost"):
        return "127.0.0.1"
    try:
        return str(ip_address(host))
    except ValueError:
        return None


def _wrong(message: str, hint: str) -> Invalid:
    return Invalid(message, hint=hint, fields=(FieldError("base_url", message),))

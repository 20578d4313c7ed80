"""TLS to others: one place that says how servers are verified."""

from __future__ import annotations

import ssl
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from keybearer.errors import SettingsInvalid

Context = TypeVar("Context", bound=ssl.SSLContext)


@lru_cache(maxsize=4)
def for_http(ca_file: Path | None) -> ssl.SSLContext:
    """The context of HTTP/1.1, shared: not to be changed. ``ca_file``: PEM file of further authorities."""
    context = verified(ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def verified(ca_file: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer, verified. Not ``create_default_context``: that would write session keys to ``SSLKEYLOGFILE``.

    Raises ``SettingsInvalid`` for a ``ca_file`` that cannot be read.
    """
    return verifying(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ca_file)


def verifying(context: Context, ca_file: Path | None) -> Context:
    """A new client's context, made to verify. Raises ``SettingsInvalid``."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsInvalid(f"KEYBEARER_EGRESS_CA_FILE: cannot read {ca_file}: {error.strerror or error}.") from None
    return context

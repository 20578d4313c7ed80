"""Signing messages as Standard Webhooks says (standardwebhooks.com): id, time and body, with HMAC-SHA-256."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime

from standardwebhooks.webhooks import Webhook

from keybearer.domain import SecretBytes

_PREFIX = "whsec_"


def signed_headers(secret: SecretBytes, message_id: str, at: datetime, body: bytes) -> list[tuple[bytes, bytes]]:
    """The three headers of a signed message. A secret is ``whsec_`` and base64; any other text is taken as it is."""
    text = secret.reveal().decode("utf-8", "replace")
    signature = Webhook(_key(text)).sign(message_id, at, body.decode())
    return [
        (b"webhook-id", message_id.encode()),
        (b"webhook-timestamp", str(int(at.timestamp())).encode()),
        (b"webhook-signature", signature.encode()),
    ]


def _key(text: str) -> str:
    encoded = text.removeprefix(_PREFIX)
    try:
        if text.startswith(_PREFIX) and base64.b64decode(encoded, validate=True):
            return encoded
    except (binascii.Error, ValueError):
        pass
    return base64.b64encode(text.encode()).decode()

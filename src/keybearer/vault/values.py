"""What a value must look like before it is sealed. Pure; no message holds any part of a value."""

from __future__ import annotations

import re

from keybearer.access.fields import has_control
from keybearer.catalog import Catalog, Provider, preview
from keybearer.domain import SecretBytes, SecretType
from keybearer.errors import FieldError, Invalid, KeyDoubtful, KeyRefused

VALUE_LIMIT = 64 * 1024
"""Bytes of UTF-8."""

_MASKED_ANYWHERE = re.compile(r"\*{3,}|…|•")
_MASKED_WHOLE = re.compile(r"\S{0,8}(?:\*{3,}|…|•+|\.{3,})\S{0,8}")


def text_of(value: SecretBytes, secret_type: SecretType) -> str:
    """The value as text; without the white space around it that copying brings along, but for ``custom`` ones.

    Raises ``Invalid`` for what is no text or too long.
    """
    raw = value.reveal()
    if len(raw) > VALUE_LIMIT:
        raise Invalid.of("value", f"has {len(raw)} bytes; at most {VALUE_LIMIT} are allowed")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid.of("value", "is not valid Unicode text") from None
    return text if secret_type is SecretType.CUSTOM else text.strip()


def check(
    catalog: Catalog, provider: Provider | None, secret_type: SecretType, text: str, *, shown: str = "", save_anyway: bool = False
) -> None:
    """Check a value for a provider (``None``: one that is not in the registry). ``shown``: the preview of the value so far.

    Raises ``KeyRefused`` for what is surely wrong, ``KeyDoubtful`` for what looks wrong unless ``save_anyway``, ``Invalid``.
    """
    if not text.strip():
        raise Invalid.of("value", "is required")
    if is_masked(text, secret_type, shown):
        raise KeyRefused(
            "This is a masked value, not the value itself.",
            fields=(FieldError("value", "is masked; leave it blank to keep the value"),),
        )
    if provider is not None:
        found = catalog.check_key(provider, text, secret_type)
        if found.refused is not None:
            raise KeyRefused(found.refused, fields=(FieldError("value", found.refused),))
        if found.warnings and not save_anyway:
            raise KeyDoubtful(found.warnings[0], fields=tuple(FieldError("value", warning) for warning in found.warnings))
    if has_control(text, lines=secret_type is SecretType.CUSTOM):
        raise KeyRefused("The value has control or other invisible characters.", fields=(_CONTROL,))


def preview_of(text: str, secret_type: SecretType) -> str:
    """What listings show of the value."""
    return preview(text, secret_type)


_CONTROL = FieldError("value", "has control or other invisible characters")


def is_masked(text: str, secret_type: SecretType, shown: str) -> bool:
    """Whether a text is what a listing shows of a value (``shown``: of the one so far) and not a value."""
    if shown and text == shown:
        return True
    if secret_type is SecretType.CUSTOM:
        return _MASKED_WHOLE.fullmatch(text) is not None
    return _MASKED_ANYWHERE.search(text) is not None or _MASKED_WHOLE.fullmatch(text) is not None

"""Why a stored key may not serve a call."""

from __future__ import annotations

from keybearer.errors.base import KeybearerError


class KeyUnusable(KeybearerError):
    """Your key for this provider cannot be used."""

    code = "key_unusable"
    status = 403
    default_hint = "Look at it in the Secrets Vault."


class KeyMissing(KeyUnusable):
    """You have no key for this provider."""

    code = "key_missing"
    status = 404
    default_hint = "Add one in the Secrets Vault."


class KeyInactive(KeyUnusable):
    """Your key for this provider is switched off."""

    code = "key_inactive"
    default_hint = "Activate it in the Secrets Vault, or add another."


class KeyExpired(KeyUnusable):
    """Your key for this provider has expired."""

    code = "key_expired"
    default_hint = "Enter a new value, or change its expiry in the Secrets Vault."


class KeyFailed(KeyUnusable):
    """The provider refused your key."""

    code = "key_failed"
    default_hint = "Test it in the Secrets Vault and enter a new value."


class KeyUnreadable(KeyUnusable):
    """Your stored key cannot be read: enter it again."""

    code = "key_unreadable"
    default_hint = "Enter it again in the Secrets Vault; docs/troubleshooting.md lists the causes."


class ReferenceDenied(KeyUnusable):
    """The store refuses to hand out the secret that yours points to."""

    code = "reference_denied"
    default_hint = "Check that the server's identity may read it there."


class ReferenceMissing(KeyUnusable):
    """There is nothing where your secret points to."""

    code = "reference_missing"
    default_hint = "Check the reference; it may have been deleted or renamed in its store."


class ReferenceWrong(KeyUnusable):
    """What your secret points to is no usable value."""

    code = "reference_wrong"
    default_hint = "Check the reference's key, and what its store holds there."


class EgressRefused(KeybearerError):
    """The key may not be sent to this address."""

    code = "egress_refused"
    status = 403
    default_hint = "Keys go only to the hosts bound to them: look at the secret, and at its provider's address."

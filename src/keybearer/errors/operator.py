"""What ends a start or a command: for whoever runs the deployment."""

from __future__ import annotations

from keybearer.errors.base import KeybearerError


class OperatorError(KeybearerError):
    """The server cannot start or the command cannot run."""

    code = "operator"


class SettingsInvalid(OperatorError):
    """A setting is wrong."""

    code = "settings_invalid"
    default_hint = "See docs/settings.md."


class RootKeyError(OperatorError):
    """The root key is missing or wrong."""

    code = "root_key"
    default_hint = (
        "Restore the root key from your backup; see docs/troubleshooting.md. A new one cannot open what the old one sealed."
    )


class KmsDenied(RootKeyError):
    """The key management service refuses."""

    code = "kms_denied"
    default_hint = "Check that the key exists and is enabled, and that this server's identity may encrypt and decrypt with it."


class DatabaseError(OperatorError):
    """The database cannot be used."""

    code = "database"


class AuditBroken(OperatorError):
    """The audit trail does not verify."""

    code = "audit_broken"
    default_hint = "Keep the data as it is and see docs/troubleshooting.md."


class BackupError(OperatorError):
    """The backup cannot be used."""

    code = "backup"
    default_hint = "Nothing was changed. Take another backup; see docs/backup.md."


class EnvelopeError(OperatorError):
    """The sealed value does not open."""

    code = "envelope"

"""From the settings to the stores that references point into: what may be asked is decided here, by the operator alone."""

from __future__ import annotations

from keybearer import config
from keybearer.config import Settings
from keybearer.domain import SecretBytes
from keybearer.errors import SettingsInvalid
from keybearer.vault.external import External
from keybearer.vault.references import Leaves
from keybearer.vault.stores import Environment, Store


def external_of(settings: Settings) -> External:
    """Build what fetches values that are kept elsewhere. Asks no store yet. Raises ``SettingsInvalid``."""
    leaves = Leaves(settings.reference_sources, settings.reference_environment, settings.reference_prefixes)
    environment = config.server_environment() if settings.reference_environment else {}
    allowed = {name: environment[name] for name in settings.reference_environment if name in environment}
    stores: dict[str, Store] = {
        "env": Environment({name: SecretBytes(text.encode("utf-8", "surrogateescape")) for name, text in allowed.items()})
    }
    if "aws" in settings.reference_sources:
        from keybearer.vault.stores import aws  # noqa: PLC0415  # most deployments point nowhere

        stores["aws"] = aws.SecretsManager(endpoint=settings.aws_secrets_endpoint, timeout=settings.reference_timeout)
    if "openbao" in settings.reference_sources:
        stores["openbao"] = _openbao(settings)
    return External(leaves, stores)


def _openbao(settings: Settings) -> Store:
    # It brings an HTTP client, which takes 70 ms of a start that does not need it.
    from keybearer.crypto.kms.openbao import Access  # noqa: PLC0415
    from keybearer.vault.stores import openbao  # noqa: PLC0415

    if not settings.openbao_address or (settings.openbao_token is None and not settings.openbao_role_id):
        raise SettingsInvalid(
            "KEYBEARER_REFERENCE_SOURCES names openbao, but the server has no way to it.",
            hint="Set KEYBEARER_OPENBAO_ADDRESS, and KEYBEARER_OPENBAO_TOKEN or KEYBEARER_OPENBAO_ROLE_ID with its secret id.",
        )
    token, secret_id = settings.openbao_token, settings.openbao_secret_id
    access = Access(
        settings.openbao_address,
        None if token is None else SecretBytes(token.get_secret_value().encode()),
        settings.openbao_role_id,
        None if secret_id is None else SecretBytes(secret_id.get_secret_value().encode()),
        settings.openbao_namespace,
        settings.openbao_ca_file,
    )
    return openbao.KeyValue(access, timeout=settings.reference_timeout)

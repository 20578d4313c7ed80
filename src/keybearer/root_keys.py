"""From the settings to the keyring: which providers this process has, and which of them holds the root key of its database."""

from __future__ import annotations

from pydantic import SecretStr

from keybearer.config import PREFIX, Settings
from keybearer.crypto.keyring import Keyring, held_by
from keybearer.crypto.kms.providers import Options, Providers
from keybearer.domain import SecretBytes
from keybearer.errors import RootKeyError, SettingsInvalid
from keybearer.store.db import Database


async def providers_of(settings: Settings) -> Providers:
    """Return the root key providers of the settings, the one that is needed now made; make the key file at a first start only.

    Before anything is migrated or changed: a lost key stops the start here. Raises ``RootKeyError``.
    """
    options, default = options_of(settings), settings.root_key_provider.value
    providers = Providers(options, default)
    try:
        providers.get(default)
    except RootKeyError:
        # The database is asked only now: opening it takes a part of every start.
        held = await held_by(settings.sqlalchemy_url)
        providers = Providers(options, default, holder=held or default, may_create=held is None)
        try:
            providers.get(providers.holder)
        except RootKeyError as error:
            if providers.holder == default:
                raise
            message = f"The root key of this database is held by {providers.holder}, not by {default}. {error.message}"
            raise RootKeyError(message, hint=error.hint) from None
    return providers


async def open_keyring(db: Database, providers: Providers) -> Keyring:
    """Open the keyring, or found the deployment. Raises ``RootKeyError`` with what to do, ``Unavailable``."""
    return await Keyring.open(db, providers.get(providers.holder), providers.get)


def options_of(settings: Settings) -> Options:
    """The settings that providers need, as plain values."""
    return Options(
        key_file=settings.root_key_path,
        key=_secret("ROOT_KEY", settings.root_key),
        passphrase=_secret("ROOT_KEY_PASSPHRASE", settings.root_key_passphrase),
        aws_keys=settings.aws_kms_key,
        aws_region=settings.aws_region,
        aws_endpoint=settings.aws_kms_endpoint,
        gcp_keys=settings.gcp_kms_key,
        gcp_endpoint=settings.gcp_kms_endpoint,
        openbao_address=settings.openbao_address,
        openbao_token=_secret("OPENBAO_TOKEN", settings.openbao_token),
        openbao_role_id=settings.openbao_role_id,
        openbao_secret_id=_secret("OPENBAO_SECRET_ID", settings.openbao_secret_id),
        openbao_namespace=settings.openbao_namespace,
        openbao_ca_file=settings.openbao_ca_file,
        openbao_mount=settings.openbao_transit_mount,
        openbao_keys=settings.openbao_transit_key,
        timeout=settings.kms_timeout,
    )


def _secret(name: str, value: SecretStr | None) -> SecretBytes | None:
    try:
        return None if value is None else SecretBytes(value.get_secret_value().encode())
    except UnicodeEncodeError:
        pass  # raised below: this error holds the text
    raise SettingsInvalid(f"{PREFIX}{name} is not UTF-8.")

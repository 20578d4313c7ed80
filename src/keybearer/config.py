"""Settings: read once, from the environment, a ``.env`` file and ``*_FILE`` variants. The only reader of ``os.environ``.

``docs/settings.md`` is generated from the descriptions below (``make docs``) and checked in CI.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from keybearer.errors import SettingsInvalid

PREFIX = "KEYBEARER_"


class Fallback(StrEnum):
    """Whose keys may serve where a user has none."""

    NONE = "none"
    SYSTEM = "system"
    OPENROUTER = "openrouter"


class RootKeyProvider(StrEnum):
    """Where the root key comes from, or what wraps it."""

    FILE = "file"
    ENV = "env"
    PASSPHRASE = "passphrase"
    AWS_KMS = "aws-kms"
    GCP_KMS = "gcp-kms"
    OPENBAO = "openbao"


class Durability(StrEnum):
    """What a use must survive before the key leaves."""

    JOURNAL = "journal"
    FSYNC = "fsync"
    DATABASE = "database"


class Settings(BaseSettings):
    """All settings, frozen. Every name is prefixed with ``KEYBEARER_``; ``NAME_FILE`` reads the value from a file."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True)

    data_dir: Path = Field(Path("data"), description="Directory of the database, the root key file and the journal (mode 0700).")
    host: str = Field("127.0.0.1", description="Address to bind. Any other than loopback needs TLS or a declared proxy.")
    port: int = Field(8787, ge=0, le=65535, description="Port to bind; 0 picks a free one.")
    workers: int = Field(1, ge=1, le=64, description="Worker processes. More than one is refused without PostgreSQL.")
    database_url: str = Field(
        "", repr=False, description="`postgresql+psycopg://…` for the runtime role; empty: SQLite in the data directory."
    )
    database_direct_url: str = Field(
        "", repr=False, description="PostgreSQL as the owner role, not through a pooler: for migrations and LISTEN."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Valkey or Redis in which several workers and machines count limits together: "
        "`rediss://user:password@host:6379/0`; `?ca=FILE` names the authorities it is signed by; `redis://` without TLS.",
    )
    root_key: SecretStr | None = Field(
        None, description="32 bytes as base64, base64url or hex, for `KEYBEARER_ROOT_KEY_PROVIDER=env`."
    )
    root_key_provider: RootKeyProvider = Field(RootKeyProvider.FILE, description="Where the root key comes from.")
    root_key_file: Path | None = Field(None, description="The root key file; default `root.key` in the data directory.")
    root_key_passphrase: SecretStr | None = Field(
        None, description="At least 20 characters, for `KEYBEARER_ROOT_KEY_PROVIDER=passphrase`."
    )
    kms_timeout: float = Field(10.0, gt=0, le=120, description="Seconds that one call of a key management service may take.")
    aws_kms_key: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Ids, ARNs or aliases of AWS KMS keys; the first wraps, the others only unwrap; comma-separated."
    )
    aws_region: str = Field("", description="AWS region; default: where boto3 finds one.")
    aws_kms_endpoint: str = Field(
        "", description="Another endpoint for AWS KMS, for example a VPC's; `http://` on loopback only."
    )
    gcp_kms_key: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Google Cloud KMS keys as `projects/…/locations/…/keyRings/…/cryptoKeys/…`; the first wraps; comma-separated.",
    )
    gcp_kms_endpoint: str = Field(
        "", description="Another endpoint for Google Cloud KMS; `http://` on loopback only, for an emulator."
    )
    openbao_address: str = Field("", description="OpenBao or HashiCorp Vault: `https://host:8200`; `http://` on loopback only.")
    openbao_namespace: str = Field("", description="Namespace in OpenBao.")
    openbao_ca_file: Path | None = Field(None, description="PEM file of the certificate authorities that sign for OpenBao.")
    openbao_token: SecretStr | None = Field(None, description="Token for OpenBao; or use an AppRole.")
    openbao_role_id: str = Field("", description="AppRole's role id for OpenBao.")
    openbao_secret_id: SecretStr | None = Field(None, description="AppRole's secret id for OpenBao.")
    openbao_transit_mount: str = Field("transit", description="Path at which OpenBao's Transit engine is mounted.")
    openbao_transit_key: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names of Transit keys; the first wraps, the others only unwrap; comma-separated."
    )
    public_url: str = Field("", description="The URL under which people reach the server; default: the bound address.")
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Addresses or CIDRs of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; comma-separated.",
    )
    tls_certificate: Path | None = Field(None, description="PEM certificate chain to serve HTTPS with.")
    tls_private_key: Path | None = Field(None, description="PEM private key to serve HTTPS with.")
    egress_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Private hosts, `host:port` or CIDRs that providers defined by administrators may reach; comma-separated."
    )
    connection_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Private hosts, `host:port` or CIDRs that everybody's connection strings and webhooks may name; comma-separated.",
    )
    egress_ca_file: Path | None = Field(None, description="PEM file of further certificate authorities to trust for providers.")
    reference_sources: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Stores that secrets may point into, with this server's identity: `aws`, `openbao`; empty: none; comma-separated.",
    )
    reference_environment: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Environment variables that system secrets may point to; comma-separated."
    )
    reference_prefixes: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="What everybody, not only administrators, may point below, with `{owner}` for their (or their team's) id: "
        "`openbao:secret/people/{owner}/`; comma-separated.",
    )
    reference_timeout: float = Field(5.0, gt=0, le=60, description="Seconds that one call of such a store may take.")
    aws_secrets_endpoint: str = Field(
        "", description="Another endpoint for AWS Secrets Manager, for example a VPC's; `http://` on loopback only."
    )
    fallback: Fallback = Field(
        Fallback.NONE,
        description="Whose keys may serve users that have none, if they agree: `none`, `system`, or `openrouter`, which includes `system`.",
    )
    prices: str = Field(
        "",
        description="What models cost in this deployment, where the price list is wrong or does not know them: YAML as in "
        "`docs/prices.md`, mostly from a file, `KEYBEARER_PRICES_FILE`.",
    )
    audit_durability: Durability = Field(
        Durability.JOURNAL,
        description="What a use survives before the key leaves: `journal` a killed process, `fsync` power loss, `database` the machine.",
    )
    audit_checkpoints: str = Field(
        "",
        repr=False,
        description="Where signed checkpoints of the audit trail go: a file to append to, or an `https://` URL to post to.",
    )
    audit_retention_days: int = Field(
        0,
        ge=0,
        le=36500,
        description="Days after which audit records keep only their place and digest, so that proofs stay valid; 0: never.",
    )
    audit_seal_seconds: float = Field(
        30.0, ge=1, le=3600, description="Seconds until what has arrived in the audit trail is sealed and a checkpoint signed."
    )
    outage_grace: float = Field(
        0.0, ge=0, le=3600, description="Seconds for which cached keys serve on without a database; delays revocation by as much."
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body on gateway paths, in bytes.")
    max_buffered_bytes: int = Field(
        512 * 2**20, ge=2**20, description="Largest sum of buffered request bodies in one process, in bytes."
    )
    upstream_timeout: float = Field(
        600.0, gt=0, description="Seconds a provider may take until its first byte, and between bytes."
    )
    connect_timeout: float = Field(10.0, gt=0, description="Seconds to connect to a provider, TLS included.")
    session_idle_hours: float = Field(24.0, gt=0, description="Hours without use after which a session ends.")
    session_absolute_hours: float = Field(24.0 * 14, gt=0, description="Hours after which a session ends in any case.")
    restore_days: float = Field(
        7.0, ge=0, le=3650, description="Days for which a deleted secret can be restored; 0: deleting purges at once."
    )
    versions_kept: int = Field(
        5, ge=0, le=1000, description="Earlier versions kept of each secret, for rolling back; 0: a new value overwrites the old."
    )
    versions_days: float = Field(30.0, ge=0, le=3650, description="Days after which an earlier version is removed.")
    expiring_days: float = Field(14.0, ge=0, le=3650, description="Days before its end from which a secret is shown as expiring.")
    health_check_every: float = Field(
        0.0,
        ge=0,
        le=8760,
        description="Hours between two connection tests of each key whose owner did not choose; 0: only where owners want them.",
    )
    reminder_days: Annotated[tuple[int, ...], NoDecode] = Field(
        (30, 7, 1),
        description="Days before a secret expires, or should be replaced, on which people are reminded; comma-separated.",
    )
    reminder_seconds: float = Field(60.0, ge=1, le=86400, description="Seconds between two looks for what is to be reminded of.")
    smtp_url: str = Field(
        "",
        repr=False,
        description="The mail server for reminders: `smtps://user:password@host`, `smtp+starttls://…` or `smtp://…`; empty: no mail.",
    )
    mail_from: str = Field("", description="Sender of reminders, for example `Keybearer <keys@example.com>`.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least severe log level to print.")
    log_json: bool = Field(default=False, description="Print logs as JSON lines.")

    @field_validator(
        "trusted_proxies",
        "egress_allow",
        "connection_allow",
        "aws_kms_key",
        "gcp_kms_key",
        "openbao_transit_key",
        "reference_sources",
        "reference_environment",
        "reference_prefixes",
        "reminder_days",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        """Comma-separated text to a tuple."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("aws_kms_endpoint", "aws_secrets_endpoint", "gcp_kms_endpoint", "openbao_address")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        """The unwrapped root key, or a secret, comes back on this connection: TLS, or it does not leave the machine."""
        parts = urlsplit(value)
        if value and (parts.scheme not in {"https", "http"} or not parts.hostname):
            raise ValueError("is not https://host:port")
        if parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError("http:// is for loopback only")
        return value.rstrip("/")

    @property
    def root_key_path(self) -> Path:
        """Where the root key file lies."""
        return self.root_key_file or self.data_dir / "root.key"

    @property
    def journal_dir(self) -> Path:
        """Where this machine's journals lie."""
        return self.data_dir / "journal"

    @property
    def sqlalchemy_url(self) -> str:
        """The database's URL; SQLite in the data directory where none is set."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.resolve() / 'keybearer.db'}"


def load(**overrides: Any) -> Settings:
    """Read the settings once; ``overrides`` (from the command line) win. Raises ``SettingsInvalid``."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**(_from_files() | given))
    except ValidationError as error:
        problems = "; ".join(
            f"{PREFIX}{'_'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}" for problem in error.errors()
        )
        raise SettingsInvalid(problems) from None  # the cause would hold the values


def _from_files() -> dict[str, str]:
    """``KEYBEARER_X_FILE=path`` gives ``x`` the file's content, for container secrets. ``root_key_file`` is a setting itself."""
    found: dict[str, str] = {}
    for name in Settings.model_fields:
        variable = f"{PREFIX}{name.upper()}_FILE"
        if name == "root_key" or variable not in os.environ:
            continue
        try:
            found[name] = Path(os.environ[variable]).read_text(encoding="utf-8").strip()
        except OSError as error:
            message = f"{variable}: cannot read {os.environ[variable]}: {error.strerror}"
            raise SettingsInvalid(message) from None
        except UnicodeDecodeError:
            raise SettingsInvalid(f"{variable}: {os.environ[variable]} is no UTF-8 text") from None
    return found


def export(settings: Settings) -> None:
    """Hand settings given on the command line to worker processes, which read the environment anew."""
    for name in ("data_dir", "host", "port", "workers", "public_url"):
        os.environ[PREFIX + name.upper()] = str(getattr(settings, name))


def client_environment() -> tuple[str, str]:
    """``KEYBEARER_URL`` and ``KEYBEARER_TOKEN`` for the client commands and the SDK; empty where unset."""
    return os.environ.get(f"{PREFIX}URL", ""), os.environ.get(f"{PREFIX}TOKEN", "")


def kv_environment() -> tuple[str, str]:
    """Token and namespace for reading OpenBao's or Vault's KV engine, from their own variables; empty where unset."""
    tokens = (os.environ.get(name, "") for name in ("BAO_TOKEN", "VAULT_TOKEN"))
    namespaces = (os.environ.get(name, "") for name in ("BAO_NAMESPACE", "VAULT_NAMESPACE"))
    return next(filter(None, tokens), ""), next(filter(None, namespaces), "")


def server_environment() -> dict[str, str]:
    """Return this process's environment without our own settings: what an administrator may import keys from."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def with_process_environment(added: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with ``added``, for a child process; nothing of ours is changed."""
    return {**os.environ, **added}

"""The root key providers of this process, each made when it is first asked for.

Which one unwraps is said by the root key's row; which one wraps a new deployment's root key, by the settings. While a root key
moves from one provider to another, both are configured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from keybearer.crypto.kms import Wrapper, aws, env, file, gcp, passphrase
from keybearer.domain import SecretBytes
from keybearer.errors import RootKeyError

_Value = TypeVar("_Value")

OPENBAO = "openbao"
NAMES = (file.PROVIDER, env.PROVIDER, passphrase.PROVIDER, aws.PROVIDER, gcp.PROVIDER, OPENBAO)


@dataclass(frozen=True, slots=True)
class Options:
    """What the settings say of all providers, as plain values."""

    key_file: Path
    key: SecretBytes | None = None
    passphrase: SecretBytes | None = None
    aws_keys: tuple[str, ...] = ()
    aws_region: str = ""
    aws_endpoint: str = ""
    gcp_keys: tuple[str, ...] = ()
    gcp_endpoint: str = ""
    openbao_address: str = ""
    openbao_token: SecretBytes | None = None
    openbao_role_id: str = ""
    openbao_secret_id: SecretBytes | None = None
    openbao_namespace: str = ""
    openbao_ca_file: Path | None = None
    openbao_mount: str = "transit"
    openbao_keys: tuple[str, ...] = ()
    timeout: float = 10.0
    """Seconds for one call of a service."""


class Providers:
    """Gives the wrapper of a provider by name. ``may_create``: nothing is founded yet, so a key file may be made."""

    def __init__(self, options: Options, default: str, *, holder: str = "", may_create: bool = False) -> None:
        self.default = default
        """What wraps the root key of a new deployment."""
        self.holder = holder or default
        """What holds the root key of the deployment that is there, as far as it was asked."""
        self._options = options
        self._may_create = may_create
        self._made: dict[str, Wrapper] = {}

    def get(self, provider: str) -> Wrapper:
        """Return the wrapper, asking no service yet. Raises ``RootKeyError`` where the settings do not have what it needs."""
        if provider not in self._made:
            self._made[provider] = self._make(provider)
        return self._made[provider]

    def _make(self, provider: str) -> Wrapper:
        options = self._options
        match provider:
            case file.PROVIDER:
                return file.obtain(options.key_file, may_create=self._may_create and provider == self.default)
            case env.PROVIDER:
                return env.parse(_required(options.key, provider, env.VARIABLE).reveal().decode())
            case passphrase.PROVIDER:
                return passphrase.parse(_required(options.passphrase, provider, passphrase.VARIABLE).reveal().decode())
            case aws.PROVIDER:
                keys = _required(options.aws_keys, provider, "KEYBEARER_AWS_KMS_KEY")
                return aws.AwsKms(keys, region=options.aws_region, endpoint=options.aws_endpoint, timeout=options.timeout)
            case gcp.PROVIDER:
                keys = _required(options.gcp_keys, provider, "KEYBEARER_GCP_KMS_KEY")
                return gcp.GcpKms(keys, endpoint=options.gcp_endpoint, timeout=options.timeout)
            case _ if provider == OPENBAO:
                return _openbao(options)
        raise RootKeyError(f"There is no root key provider {provider!r}.", hint=f"There are: {', '.join(NAMES)}.")


def _openbao(options: Options) -> Wrapper:
    # It brings an HTTP client, which takes 70 ms of a start that does not need it.
    from keybearer.crypto.kms import openbao  # noqa: PLC0415

    address = _required(options.openbao_address or None, OPENBAO, "KEYBEARER_OPENBAO_ADDRESS")
    keys = _required(options.openbao_keys, OPENBAO, "KEYBEARER_OPENBAO_TRANSIT_KEY")
    if options.openbao_token is None and not options.openbao_role_id:
        raise _missing(OPENBAO, "KEYBEARER_OPENBAO_TOKEN or KEYBEARER_OPENBAO_ROLE_ID")
    access = openbao.Access(
        address,
        options.openbao_token,
        options.openbao_role_id,
        options.openbao_secret_id,
        options.openbao_namespace,
        options.openbao_ca_file,
    )
    return openbao.Transit(access, keys, mount=options.openbao_mount, timeout=options.timeout)


def _required(value: _Value | None, provider: str, variable: str) -> _Value:
    if value is None or value == ():
        raise _missing(provider, variable)
    return value


def _missing(provider: str, variable: str) -> RootKeyError:
    return RootKeyError(
        f"The root key provider '{provider}' needs {variable}, which is not set.",
        hint=f"Set {variable} (or {variable}_FILE) as it was when the root key was wrapped; docs/keys.md tells which are needed.",
    )

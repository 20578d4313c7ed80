"""What an access token allows of a request: pure decisions, each raising why not."""

from __future__ import annotations

from keybearer.catalog import Provider
from keybearer.domain import Grant, Scope
from keybearer.errors import AddressRefused, Forbidden, ModelNotAllowed, ProviderNotAllowed, ScopeMissing
from keybearer.gateway.body import Document
from keybearer.gateway.client_address import Network, parse_address
from keybearer.gateway.form import Form


def check_scope(grant: Grant, acts_as: bytes | None, scope: Scope = Scope.GATEWAY_USE) -> None:
    """The token may use the gateway (or what ``scope`` says), and acts for its own user. Raises ``ScopeMissing`` or ``Forbidden``."""
    if scope not in grant.scopes:
        raise ScopeMissing(f"The access token lacks the scope '{scope}'.")
    if acts_as is not None:
        if Scope.USERS_ACT_AS not in grant.scopes:
            raise ScopeMissing(f"'x-keybearer-user' needs the scope '{Scope.USERS_ACT_AS}'.")
        raise Forbidden("Acting for other users is not available yet.", hint="Leave 'x-keybearer-user' out.")


def check_address(networks: tuple[Network, ...], client: str) -> None:
    """The request comes from an address of the token's allowlist. Raises ``AddressRefused``, also where there is no address."""
    address = parse_address(client)
    if address is None or not any(address in network for network in networks):
        raise AddressRefused


def check_model(grant: Grant, provider: Provider, model: str, operation: str) -> None:
    """Provider and model are among the token's. Raises ``ProviderNotAllowed`` or ``ModelNotAllowed``.

    A token that is limited to models makes no call that names none, except to list them.
    """
    if grant.allowed_providers is not None and provider.name not in grant.allowed_providers:
        raise ProviderNotAllowed(f"The access token may not use {provider.display_name}.")
    if grant.allowed_models is not None and operation != "models" and f"{provider.name}/{model}" not in grant.allowed_models:
        raise ModelNotAllowed("The access token may not use this model.")


def check_one_model(document: Document | Form | None) -> None:
    """A call that is limited to certain models names no others to fall back to. Raises ``ModelNotAllowed``. Forms have no field for it."""
    if isinstance(document, Document) and document.names_further_models():
        raise ModelNotAllowed(
            "The access token or key is limited to certain models, and the body lets the provider choose others.",
            hint="Leave out 'models', 'fallbacks', 'route' and 'preset'.",
        )

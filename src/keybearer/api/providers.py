"""``/providers``: predefined ones and custom ones, with what of them this caller can use."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter

from keybearer.access import policy
from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.registry_schemas import NewProviderModel, NewProviderRequest, ProviderAnswer, ProviderChange, ProviderModel
from keybearer.api.schemas import TestAnswer
from keybearer.api.secrets import check_stored, secret_bytes, tuples
from keybearer.domain import Scope
from keybearer.vault.providers import NewProvider

router = APIRouter(prefix="/providers", tags=["providers"])


@router.get("")
async def list_providers(caller: CurrentCaller, services: CurrentServices) -> list[ProviderAnswer]:
    """List all providers that the caller can name."""
    return [ProviderAnswer.model_validate(view) for view in await services.providers.list(caller)]


@router.get("/with-keys")
async def list_with_keys(caller: CurrentCaller, services: CurrentServices) -> list[ProviderAnswer]:
    """List the providers for which the caller has a usable key."""
    views = await services.providers.list(caller)
    return [ProviderAnswer.model_validate(view) for view in views if view.has_api_key]


@router.post("", status_code=201)
async def create_provider(body: NewProviderRequest, caller: CurrentCaller, services: CurrentServices) -> ProviderAnswer:
    """Make a custom provider; ``api_key`` becomes the caller's own secret named ``default``."""
    policy.require(caller, Scope.PROVIDERS_WRITE)
    given = body.given()
    if body.api_key is not None:
        given["api_key"] = secret_bytes(body.api_key)
    return ProviderAnswer.model_validate(await services.providers.create(caller, NewProvider(**tuples(given))))


@router.get("/{provider_id}")
async def get_provider(provider_id: str, caller: CurrentCaller, services: CurrentServices) -> ProviderAnswer:
    """Show one provider."""
    return ProviderAnswer.model_validate(await services.providers.get(caller, provider_id))


@router.put("/{provider_id}")
async def change_provider(
    provider_id: str, body: ProviderChange, caller: CurrentCaller, services: CurrentServices
) -> ProviderAnswer:
    """Change only the fields given. Of a predefined provider only administrators change the base URL."""
    policy.require(caller, Scope.PROVIDERS_WRITE)
    given = body.given()
    if body.api_key is not None:
        given["api_key"] = secret_bytes(body.api_key)
    return ProviderAnswer.model_validate(await services.providers.update(caller, provider_id, tuples(given)))


@router.delete("/{provider_id}", status_code=204)
async def delete_provider(provider_id: str, caller: CurrentCaller, services: CurrentServices) -> None:
    """Delete a custom provider with its owner's models and their own keys; other secrets for it stay."""
    policy.require(caller, Scope.PROVIDERS_WRITE)
    await services.providers.delete(caller, provider_id)


@router.get("/{provider_id}/models")
async def list_models(provider_id: str, caller: CurrentCaller, services: CurrentServices) -> list[ProviderModel]:
    """List a provider's models."""
    return [ProviderModel.model_validate(model) for model in await services.providers.models(caller, provider_id)]


@router.post("/{provider_id}/models", status_code=201)
async def add_model(provider_id: str, body: NewProviderModel, caller: CurrentCaller, services: CurrentServices) -> ProviderModel:
    """Add a model to a provider."""
    policy.require(caller, Scope.MODELS_WRITE)
    return ProviderModel.model_validate(await services.providers.add_model(caller, provider_id, body.name, body.display_name))


@router.delete("/models/{model_id}", status_code=204)
async def delete_model(model_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """Remove a model that was added."""
    policy.require(caller, Scope.MODELS_WRITE)
    await services.models.delete(caller, model_id)


@router.post("/{provider_id}/test")
async def test_provider(provider_id: str, caller: CurrentCaller, services: CurrentServices) -> TestAnswer:
    """Test the connection with the key that a call would use."""
    policy.require(caller, Scope.SECRETS_USE)
    provider = await services.providers.find(caller, provider_id)
    policy.require_provider(caller, provider.name)
    await services.secrets.tests.take(caller)
    (credential, *_) = await services.resolver.resolve(caller.user_id, caller.token_id, provider, "")
    await services.secrets.note_test(caller, credential)
    return await check_stored(services, provider, credential)

"""``/models``: registered models, with their own addresses and keys, aliases and defaults."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query

from keybearer.access import policy
from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.registry_schemas import ModelAnswer, ModelChange, NewModelRequest, TemplateAnswer
from keybearer.api.schemas import Limit, Page, Request, TestAnswer
from keybearer.api.secrets import check_stored, run_test, secret_bytes, tuples
from keybearer.catalog import Provider
from keybearer.domain import Caller, KeySource, Scope
from keybearer.services import Services
from keybearer.vault.descriptions import NewModel
from keybearer.vault.sealed import egress_for

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
async def list_models(
    caller: CurrentCaller,
    services: CurrentServices,
    *,
    provider: Annotated[str | None, Query(max_length=64)] = None,
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(max_length=1000)] = None,
) -> Page[ModelAnswer]:
    """List the registered models that the caller's calls can name: one's own and everybody's."""
    found, following = await services.models.list(caller, provider, cursor, limit)
    return Page(items=[ModelAnswer.model_validate(model) for model in found], next_cursor=following)


@router.get("/templates")
async def list_templates(caller: CurrentCaller, services: CurrentServices) -> Page[TemplateAnswer]:
    """List the well-known models, all on one page."""
    del caller  # signed in is enough
    return Page(items=[TemplateAnswer.model_validate(template) for template in services.models.templates()], next_cursor=None)


@router.post("", status_code=201)
async def create_model(body: NewModelRequest, caller: CurrentCaller, services: CurrentServices) -> ModelAnswer:
    """Register a model; ``api_key`` becomes its own, bound to its address, and serves nothing else."""
    return ModelAnswer.model_validate(await services.models.create(caller, NewModel(**_given(body))))


@router.post("/test")
async def test_unsaved(body: NewModelRequest, caller: CurrentCaller, services: CurrentServices) -> TestAnswer:
    """Test a model before it is saved; without a key, with what a call would use."""
    policy.require(caller, Scope.MODELS_WRITE)
    new = NewModel(**_given(body))
    provider = await services.models.draft(caller, new)
    if new.api_key is None or not new.api_key.reveal().strip():
        return await _test_resolved(services, caller, provider, new.name)
    policy.require_provider(caller, provider.name)
    await services.secrets.tests.take(caller)
    answer = await run_test(services, provider, new.api_key, egress_for(provider, new.api_key, {}))
    return _with_model(answer, new.name)


@router.get("/{model_id}")
async def get_model(model_id: UUID, caller: CurrentCaller, services: CurrentServices) -> ModelAnswer:
    """Show one registered model."""
    return ModelAnswer.model_validate(await services.models.get(caller, model_id))


@router.patch("/{model_id}")
async def change_model(model_id: UUID, body: ModelChange, caller: CurrentCaller, services: CurrentServices) -> ModelAnswer:
    """Change only the fields given; an empty key keeps the old one."""
    return ModelAnswer.model_validate(await services.models.update(caller, model_id, _given(body)))


@router.delete("/{model_id}", status_code=204)
async def delete_model(model_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """Delete a model with its own key."""
    await services.models.delete(caller, model_id)


@router.post("/{model_id}/test")
async def test_model(model_id: UUID, caller: CurrentCaller, services: CurrentServices) -> TestAnswer:
    """Test a model with the key that a call would use."""
    provider, name = await services.models.provider_of(caller, model_id)
    return await _test_resolved(services, caller, provider, name)


async def _test_resolved(services: Services, caller: Caller, provider: Provider, name: str) -> TestAnswer:
    """Test with what resolution finds, on record like any use."""
    policy.require(caller, Scope.SECRETS_USE)
    policy.require_provider(caller, provider.name)
    await services.secrets.tests.take(caller)
    (credential, *_) = await services.resolver.resolve(caller.user_id, caller.token_id, provider, name)
    await services.secrets.note_test(caller, credential)
    if credential.source is KeySource.MODEL and credential.secret_version == 0:  # it has none: there is no secret to mark
        return _with_model(await run_test(services, provider, credential.value, credential.egress), name)
    return _with_model(await check_stored(services, provider, credential), name)


def _with_model(answer: TestAnswer, name: str) -> TestAnswer:
    """Say so where the provider lists its models and this one is not among them: a misspelled name is found before its first call."""
    if answer.status == "ok" and answer.models and name not in answer.models:
        return answer.model_copy(update={"message": "The connection works, but the provider does not list this model."})
    return answer


def _given(body: Request) -> dict[str, Any]:
    given = tuples(body.given())
    if given.get("api_key") is not None:
        given["api_key"] = secret_bytes(given["api_key"])
    return given

"""The pages of providers and models: all of them at a glance, with or without a key; adding and testing."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import Response

from keybearer.access import policy
from keybearer.access.fields import secret_value
from keybearer.api.authentication import CurrentServices
from keybearer.console.forms import Text, split_tags
from keybearer.console.pages import CurrentVisitor, Visitor, go, render
from keybearer.domain import Scope
from keybearer.errors import KeybearerError
from keybearer.services import Services
from keybearer.vault.descriptions import NewModel
from keybearer.vault.providers import NewProvider

router = APIRouter(include_in_schema=False)

LISTED = 200
"""Models shown on the page; more are found by the API."""
CATEGORIES = (("model", "Models"), ("integration", "Integrations"), ("database", "Databases"))


async def _providers_page(services: Services, visitor: Visitor, status: int = 200, **values: Any) -> Response:
    listed = await services.providers.list(visitor.caller)
    groups = [(title, [view for view in listed if view.category == name]) for name, title in CATEGORIES]
    blank = {"name": "", "display_name": "", "base_url": "", "models": ""}
    values["draft"] = blank | values.get("draft", {})
    return render("providers.html", status=status, **visitor.shown, page="/providers", groups=groups, **values)


@router.get("/providers")
async def providers_page(visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Show all providers and whether one has a key for each."""
    return await _providers_page(services, visitor)


@router.post("/providers")
async def add_provider(
    visitor: CurrentVisitor,
    services: CurrentServices,
    name: Text = "",
    display_name: Text = "",
    base_url: Text = "",
    api_key: Text = "",
    models: Text = "",
) -> Response:
    """Add a custom provider."""
    policy.require(visitor.caller, Scope.PROVIDERS_WRITE)
    try:
        key = secret_value(api_key) if api_key else None
        new = NewProvider(name, base_url, display_name, key, split_tags(models))
        await services.providers.create(visitor.caller, new)
    except KeybearerError as error:
        draft = {"name": name, "display_name": display_name, "base_url": base_url, "models": models}
        return await _providers_page(services, visitor, error.status, draft=draft, error=error)
    return go("/providers", "added")


@router.post("/providers/{provider_id}/delete")
async def delete_provider(provider_id: str, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Delete a custom provider."""
    policy.require(visitor.caller, Scope.PROVIDERS_WRITE)
    await services.providers.delete(visitor.caller, provider_id)
    return go("/providers", "deleted")


async def _models_page(services: Services, visitor: Visitor, status: int = 200, **values: Any) -> Response:
    listed, _ = await services.models.list(visitor.caller, limit=LISTED)
    providers = sorted(await services.providers.list(visitor.caller), key=lambda view: view.display_name.lower())
    blank = {"provider": "", "name": "", "display_name": "", "base_url": "", "aliases": "", "kind": "chat"}
    values["draft"] = blank | values.get("draft", {})
    return render(
        "models.html",
        status=status,
        **visitor.shown,
        page="/models",
        models=listed,
        providers=[view for view in providers if view.category == "model"],
        templates=services.models.templates(),
        **values,
    )


@router.get("/models")
async def models_page(visitor: CurrentVisitor, services: CurrentServices, template: str = "") -> Response:
    """Show the registered models; ``template`` (``provider/name``) fills the form."""
    chosen = next((each for each in services.models.templates() if f"{each.provider}/{each.name}" == template), None)
    if chosen is None:
        return await _models_page(services, visitor)
    draft = {"provider": chosen.provider, "name": chosen.name, "display_name": chosen.display_name, "kind": chosen.kind}
    return await _models_page(services, visitor, draft=draft)


@router.get("/models/{model_id}")
async def model_page(model_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Show one model."""
    return await _model_page(services, visitor, model_id)


async def _model_page(services: Services, visitor: Visitor, model_id: UUID, error: KeybearerError | None = None) -> Response:
    model = await services.models.get(visitor.caller, model_id)
    status = error.status if error else 200
    return render("model.html", status=status, **visitor.shown, page="/models", model=model, error=error)


@router.post("/models")
async def add_model(
    visitor: CurrentVisitor,
    services: CurrentServices,
    provider: Text = "",
    name: Text = "",
    display_name: Text = "",
    kind: Text = "chat",
    base_url: Text = "",
    api_key: Text = "",
    aliases: Text = "",
    save_anyway: Text = "",
) -> Response:
    """Register a model; an empty key means: the provider's secret."""
    policy.require(visitor.caller, Scope.MODELS_WRITE)
    try:
        new = NewModel(
            provider=provider,
            name=name.strip(),
            display_name=display_name,
            kind=kind,
            base_url=base_url.strip() or None,
            api_key=secret_value(api_key) if api_key else None,
            aliases=split_tags(aliases),
            save_anyway=bool(save_anyway),
        )
        await services.models.create(visitor.caller, new)
    except KeybearerError as error:
        draft = {"provider": provider, "name": name, "display_name": display_name, "kind": kind}
        draft |= {"base_url": base_url, "aliases": aliases}
        return await _models_page(services, visitor, error.status, draft=draft, error=error)
    return go("/models", "added")


@router.post("/models/{model_id}")
async def change_model(
    model_id: UUID,
    visitor: CurrentVisitor,
    services: CurrentServices,
    display_name: Text = "",
    base_url: Text = "",
    api_key: Text = "",
    aliases: Text = "",
    save_anyway: Text = "",
) -> Response:
    """Change a model; an empty key keeps the old one."""
    policy.require(visitor.caller, Scope.MODELS_WRITE)
    fields: dict[str, Any] = {"display_name": display_name, "base_url": base_url.strip() or None, "aliases": split_tags(aliases)}
    if api_key:
        fields |= {"api_key": secret_value(api_key), "save_anyway": bool(save_anyway)}
    try:
        await services.models.update(visitor.caller, model_id, fields)
    except KeybearerError as error:
        return await _model_page(services, visitor, model_id, error)
    return go(f"/models/{model_id}", "saved")


@router.post("/models/{model_id}/delete")
async def delete_model(model_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Delete a model with its own key."""
    policy.require(visitor.caller, Scope.MODELS_WRITE)
    await services.models.delete(visitor.caller, model_id)
    return go("/models", "deleted")

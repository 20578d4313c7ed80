"""``/secrets``: a person's keys, never their values."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import SecretStr

from keybearer.access import policy
from keybearer.access.fields import secret_value
from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.records import AuditAnswer, UsageAnswer, audit_answer, usage_answer
from keybearer.api.schemas import (
    Detect,
    Detected,
    HealthAnswer,
    Limit,
    NewSecretRequest,
    OAuthParts,
    Page,
    ReferenceParts,
    Restoration,
    RevealAnswer,
    Rollback,
    Rotation,
    SecretAnswer,
    SecretChange,
    SecretTest,
    ShareAnswer,
    TestAnswer,
    UnsavedSecretTest,
    VersionAnswer,
)
from keybearer.catalog import Provider
from keybearer.domain import SYSTEM_OWNER_ID, Credential, Scope, Secret, SecretBytes, SecretType
from keybearer.gateway.prober import TestOptions
from keybearer.gateway.verdict import ProbeResult
from keybearer.services import Services
from keybearer.vault.drafts import NOTHING, NewSecret
from keybearer.vault.sealed import egress_for
from keybearer.vault.secrets import SecretFilter, Standing

router = APIRouter(prefix="/secrets", tags=["secrets"])


def answer_of(services: Services, secret: Secret) -> SecretAnswer:
    """Show a secret without its value."""
    derived: dict[str, Any] = {
        "owner_kind": secret.owner.kind,
        "owner_id": secret.owner.id,
        "has_api_key": True,
        "state": services.secrets.standing(secret),
        "oauth": None if secret.oauth is None else dict(secret.oauth),
        "reference": None if secret.reference is None else dict(secret.reference),
        "purged_at": None if secret.deleted_at is None else secret.deleted_at + services.secrets.retention.restorable,
        "encryption_key_id": secret.key_id,
        "shares": [ShareAnswer.model_validate(share) for share in secret.shares],
        "health": HealthAnswer.model_validate(services.credentials.health(secret.id, secret.version)),
    }
    return SecretAnswer(**derived, **{name: getattr(secret, name) for name in SecretAnswer.model_fields.keys() - derived.keys()})


@router.get("")
async def list_secrets(
    caller: CurrentCaller,
    services: CurrentServices,
    *,
    provider: str | None = None,
    secret_type: SecretType | None = None,
    name: Annotated[str | None, Query(max_length=200)] = None,
    tag: Annotated[str | None, Query(max_length=200)] = None,
    search: Annotated[str | None, Query(max_length=200, description="Part of name, provider or description.")] = None,
    is_active: bool | None = None,
    state: Annotated[Standing | None, Query(description="Without it: all but deleted ones.")] = None,
    owner: Annotated[
        Literal["own", "team", "all", "system", "everyone"],
        Query(description="`team`: teams' and shared ones; `all`: one's own too. The last two are for administrators."),
    ] = "own",
    team_id: Annotated[UUID | None, Query(description="Only this team's, and what is shared with it.")] = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[SecretAnswer]:
    """List one's secrets."""
    wanted = SecretFilter(
        owner=owner,
        team_id=team_id,
        provider=provider,
        secret_type=secret_type,
        name=name,
        tag=tag,
        text=search,
        is_active=is_active,
        state=state,
    )
    page = await services.secrets.list(caller, wanted, cursor=cursor, limit=limit)
    return Page(items=[answer_of(services, secret) for secret in page.items], next_cursor=page.next_cursor)


@router.post("", status_code=201)
async def create_secret(body: NewSecretRequest, caller: CurrentCaller, services: CurrentServices) -> SecretAnswer:
    """Store a secret. Its value is sealed and never answered back."""
    given = body.given() | value_of(body.value) | reference_of(body.reference) | oauth_of(body.oauth)
    return answer_of(services, await services.secrets.create(caller, NewSecret(**tuples(given))))


def secret_bytes(value: SecretStr) -> SecretBytes:
    """Take a value as it came; the vault refuses what is no text."""
    return secret_value(value.get_secret_value())


def value_of(value: SecretStr | None) -> dict[str, Any]:
    """The value, as the vault takes it; what is missing is refused there by name."""
    return {"value": NOTHING if value is None else secret_bytes(value)}


def reference_of(reference: ReferenceParts | str | None) -> dict[str, Any]:
    """The reference, if one was given, as the vault takes it."""
    if reference is None:
        return {}
    return {"reference": reference.model_dump(exclude_none=True) if isinstance(reference, ReferenceParts) else reference}


def oauth_of(parts: OAuthParts | None) -> dict[str, Any]:
    """The parts of an OAuth token that were given, as the vault takes them."""
    if parts is None:
        return {}
    given = parts.given()
    return {"oauth": {name: secret_bytes(part) if isinstance(part, SecretStr) else part for name, part in given.items()}}


def tuples(given: dict[str, Any]) -> dict[str, Any]:
    """Lists to tuples: the domain's dataclasses are frozen."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


@router.post("/detect")
async def detect(body: Detect, caller: CurrentCaller, services: CurrentServices) -> Detected:
    """Guess which provider a pasted value belongs to. Nothing is stored or logged."""
    del caller  # signed in is enough
    return Detected(providers=list(services.catalog.detect(body.value.get_secret_value())))


@router.post("/test")
async def test_unsaved(body: UnsavedSecretTest, caller: CurrentCaller, services: CurrentServices) -> TestAnswer:
    """Test a value before it is saved, with the provider's cheap call."""
    policy.require(caller, Scope.SECRETS_WRITE)
    await services.secrets.tests.take(caller)
    provider = await services.providers.find(caller, body.provider)
    policy.require_provider(caller, provider.name)
    if body.system:
        policy.require_admin(caller)
    given: dict[str, Any] = value_of(body.value) | reference_of(body.reference)
    whose = NewSecret(provider.name, secret_type=provider.secret_type, system=body.system, team_id=body.team_id, **given)
    value = await services.secrets.pointing.look(caller, whose)
    owner = SYSTEM_OWNER_ID if body.system else None
    return await run_test(services, provider, value, egress_for(provider, value, body.parameters), owner, options_of(body))


@router.get("/{secret_id}")
async def get_secret(secret_id: UUID, caller: CurrentCaller, services: CurrentServices) -> SecretAnswer:
    """Show one secret, without its value."""
    return answer_of(services, await services.secrets.get(caller, secret_id))


@router.patch("/{secret_id}")
async def change_secret(secret_id: UUID, body: SecretChange, caller: CurrentCaller, services: CurrentServices) -> SecretAnswer:
    """Change only the fields given; a blank value keeps the old one."""
    given = body.given() | reference_of(body.reference) | oauth_of(body.oauth)
    if body.value is not None:
        given |= value_of(body.value)
    return answer_of(services, await services.secrets.update(caller, secret_id, tuples(given)))


@router.delete("/{secret_id}", status_code=204)
async def delete_secret(secret_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """Delete a secret; it stops working everywhere within a second. For a stated time it can be restored."""
    await services.secrets.delete(caller, secret_id)


@router.post("/{secret_id}/restore")
async def restore_secret(
    secret_id: UUID, caller: CurrentCaller, services: CurrentServices, body: Restoration | None = None
) -> SecretAnswer:
    """Bring a deleted secret back."""
    return answer_of(services, await services.secrets.trash.restore(caller, secret_id, None if body is None else body.name))


@router.post("/{secret_id}/purge", status_code=204)
async def purge_secret(secret_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """Remove a secret, deleted or not, with all its versions, at once and for good."""
    await services.secrets.trash.purge(caller, secret_id)


@router.get("/{secret_id}/versions")
async def list_versions(
    secret_id: UUID, caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[VersionAnswer]:
    """List the versions that are kept, the newest first."""
    found, following = await services.secrets.versions.list(caller, secret_id, cursor, limit)
    return Page(items=[VersionAnswer.model_validate(version) for version in found], next_cursor=following)


@router.post("/{secret_id}/rotate")
async def rotate_secret(secret_id: UUID, body: Rotation, caller: CurrentCaller, services: CurrentServices) -> SecretAnswer:
    """Put a new value in force; for a while the one before serves where the provider refuses the new one."""
    overlap = timedelta(seconds=body.overlap_seconds)
    value, save_anyway = secret_bytes(body.value), body.save_anyway
    rotated = await services.secrets.versions.rotate(caller, secret_id, value, overlap=overlap, save_anyway=save_anyway)
    return answer_of(services, rotated)


@router.post("/{secret_id}/refresh")
async def refresh_secret(secret_id: UUID, caller: CurrentCaller, services: CurrentServices) -> SecretAnswer:
    """Refresh an OAuth token at once; what went wrong stands in `refresh_problem`."""
    return answer_of(services, await services.secrets.refresher.now(caller, secret_id))


@router.post("/{secret_id}/rollback")
async def roll_back_secret(
    secret_id: UUID, caller: CurrentCaller, services: CurrentServices, body: Rollback | None = None
) -> SecretAnswer:
    """Put an earlier value in force again, as a new version."""
    return answer_of(
        services, await services.secrets.versions.rollback(caller, secret_id, None if body is None else body.version)
    )


@router.post("/{secret_id}/reveal")
async def reveal_secret(secret_id: UUID, caller: CurrentCaller, services: CurrentServices) -> RevealAnswer:
    """Hand out the value of a secret that is `fetchable`: to a person who has just signed in, or a token that could fetch it."""
    await services.sessions.require_fresh(caller, "secret.reveal", str(secret_id))
    found = await services.secrets.reveal(caller, secret_id)
    shown = found.secret
    value = found.value.reveal().decode()
    return RevealAnswer(id=shown.id, provider=shown.provider, name=shown.name, version=shown.version, value=value)


@router.post("/{secret_id}/test")
async def check_secret(
    secret_id: UUID, caller: CurrentCaller, services: CurrentServices, body: SecretTest | None = None
) -> TestAnswer:
    """Test a stored secret: with the provider's cheap call, or by signing in to the server that a connection string names."""
    secret = await services.secrets.get(caller, secret_id)
    policy.require_provider(caller, secret.provider)
    policy.require_among(caller, secret.allowed_tokens)
    await services.secrets.tests.take(caller, str(secret_id))
    credential = await services.secrets.credential(caller, secret_id)
    provider = await services.checker.provider_of(credential, secret.model_id)  # as whose it is sees it, whoever tests
    return await check_stored(services, provider, credential, options_of(body))


@router.post("/{secret_id}/confirm-egress")
async def confirm_egress(secret_id: UUID, caller: CurrentCaller, services: CurrentServices) -> SecretAnswer:
    """Let the secret go where its provider is now: the owner's consent after a base URL was changed."""
    return answer_of(services, await services.secrets.confirm_egress(caller, secret_id))


def options_of(body: SecretTest | None) -> TestOptions:
    """How a test was asked for."""
    return TestOptions() if body is None else TestOptions(body.method, body.path, body.url)


async def check_stored(
    services: Services, provider: Provider, credential: Credential, options: TestOptions | None = None
) -> TestAnswer:
    """Test a stored key, whose use is on record, and keep what the provider says of it."""
    return _test_answer(await services.checker.check(provider, credential, options or TestOptions()))


async def run_test(
    services: Services,
    provider: Provider,
    value: SecretBytes,
    egress: Iterable[str],
    owner: UUID | None = None,
    options: TestOptions | None = None,
) -> TestAnswer:
    """Run the connection test on the same path as real use, frozen like it. Raises ``Frozen``."""
    await services.credentials.check_not_frozen()
    found = await services.prober.test(provider, value, egress, owner, options or TestOptions())
    return _test_answer(found)


def _test_answer(found: ProbeResult) -> TestAnswer:
    return TestAnswer(status=found.status, latency_ms=found.latency_ms, models=list(found.models), message=found.message)


@router.get("/{secret_id}/access-log")
async def access_log(
    secret_id: UUID, caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[AuditAnswer]:
    """List who used or changed this secret, newest first."""
    policy.require(caller, Scope.AUDIT_READ)
    await services.secrets.get(caller, secret_id)
    return await audit_answer(services, caller, limit=limit, cursor=cursor, secret_id=secret_id)


@router.get("/{secret_id}/usage")
async def usage(
    secret_id: UUID, caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[UsageAnswer]:
    """List what this secret was used for and what it cost, newest first."""
    policy.require(caller, Scope.USAGE_READ)
    await services.secrets.get(caller, secret_id)
    return await usage_answer(services, caller, limit=limit, cursor=cursor, secret_id=secret_id)

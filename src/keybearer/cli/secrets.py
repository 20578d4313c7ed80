"""``keybearer secret``: everything about one's secrets, over HTTP. A value comes from standard input, never from the command line."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from keybearer.cli.names import team_id
from keybearer.cli.output import AsJson, print_json, print_rows, say
from keybearer.cli.use import client, read_value
from keybearer.errors import Invalid

secrets = typer.Typer(help="Your secrets: list, add, test, change, rotate, delete, restore.", no_args_is_help=True)

COLUMNS = (
    "id",
    "provider",
    "secret_type",
    "name",
    "preview",
    "state",
    "health",
    "tags",
    "expires_at",
    "usage_count",
    "last_used_at",
)
VERSION_COLUMNS = ("version", "state", "preview", "created_at", "retired_at")
LOG_COLUMNS = ("at", "action", "operation", "outcome", "model", "workflow", "ip")
USAGE_COLUMNS = ("at", "model", "operation", "outcome", "input_tokens", "output_tokens", "cost_usd")

SecretId = Annotated[str, typer.Argument(help="The secret's id.")]
SaveAnyway = Annotated[bool, typer.Option("--save-anyway", help="Save although the format looks wrong.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Repeatable.")]
Models = Annotated[list[str] | None, typer.Option("--allow-model", help="Only for this model; repeatable.")]
Tokens = Annotated[list[str] | None, typer.Option("--allow-token", help="Only with the access token of this id; repeatable.")]
Description = Annotated[str | None, typer.Option(help="What it is for.")]
Priority = Annotated[int | None, typer.Option(min=0, max=1000, help="Lower is tried first.")]
Expires = Annotated[str | None, typer.Option(help="When it ends, for example 2030-01-31T12:00:00Z; 'never' lifts an end.")]
Rotation = Annotated[str | None, typer.Option(help="Days after which the value should be replaced; 'never' lifts that.")]
Fetchable = Annotated[bool | None, typer.Option("--fetchable/--not-fetchable", help="Whether the value may be read again.")]
CheckHours = Annotated[
    str | None, typer.Option(help="Hours between two tests on a schedule; 'never', or 'default' for what the deployment does.")
]
OAuth = Annotated[
    bool,
    typer.Option(
        "--oauth", help="Standard input is JSON: value, client_id, client_secret, refresh_token, token_endpoint, scopes."
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(help="Where the value is kept instead: aws:REGION/NAME#KEY, openbao:MOUNT/PATH#KEY or env:NAME."),
]
NEVER = "never"


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(secrets, name="secret")


@secrets.command("list")
def secret_list(
    *,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    secret_type: Annotated[str | None, typer.Option("--type", help="Only this type, for example api_key.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    state: Annotated[
        str | None, typer.Option(help="active, inactive, expiring, expired, failed, unreadable or deleted; else all but deleted.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="Part of name, provider or description.")] = None,
    as_json: AsJson = False,
) -> None:
    """List your secrets, without values."""
    query = {"provider": provider, "secret_type": secret_type, "tag": tag, "state": state, "search": search}
    with client() as api:
        found = sorted(api.pages("/secrets", query=query), key=lambda row: (row["provider"], row["secret_type"], row["name"]))
    print_rows(found if as_json else [row | {"health": _health(row["health"])} for row in found], COLUMNS, as_json=as_json)


def _health(found: dict[str, Any]) -> str:
    """How a key fares, in one word and a time; as far as the server's process that answered knows."""
    return found["state"] if found["until"] is None else f"{found['state']} until {found['until']}"


@secrets.command("show")
def secret_show(secret_id: SecretId) -> None:
    """Show one secret as JSON, without its value."""
    with client() as api:
        print_json(api.request("GET", f"/secrets/{secret_id}"))


@secrets.command("add")
def secret_add(
    provider: Annotated[str, typer.Argument(help="For example openai.")],
    *,
    name: Annotated[str, typer.Option(help="Unique for this provider.")] = "default",
    team: Annotated[str | None, typer.Option(help="Make it this team's: its name or id.")] = None,
    secret_type: Annotated[str | None, typer.Option("--type", help="For example connection_string; else the provider's.")] = None,
    description: Description = None,
    tag: Tags = None,
    priority: Priority = None,
    allow_model: Models = None,
    allow_token: Tokens = None,
    expires: Expires = None,
    rotation_days: Rotation = None,
    check_hours: CheckHours = None,
    fetchable: Fetchable = None,
    oauth: OAuth = False,
    reference: Reference = None,
    save_anyway: SaveAnyway = False,
    as_json: AsJson = False,
) -> None:
    """Store a secret; its value is read from standard input, unless it is kept elsewhere."""
    rules = _given(description, tag, priority, allow_model, allow_token, expires, rotation_days, fetchable)
    draft = {
        "provider": provider,
        "name": name,
        "save_anyway": save_anyway,
        **rules,
        **_checked(check_hours),
        **_entered(oauth=oauth, reference=reference),
    }
    if secret_type is not None:
        draft["secret_type"] = secret_type
    with client() as api:
        if team is not None:
            draft["team_id"] = team_id(api, team)
        made = api.request("POST", "/secrets", json=draft)
    _tell(made, f"Stored {made['provider']} “{made['name']}” as {made['id']}.", as_json=as_json)


@secrets.command("update")
def secret_update(
    secret_id: SecretId,
    *,
    name: Annotated[str | None, typer.Option(help="Unique for its provider.")] = None,
    description: Description = None,
    tag: Tags = None,
    priority: Priority = None,
    allow_model: Models = None,
    allow_token: Tokens = None,
    allow_all: Annotated[bool, typer.Option("--allow-all", help="For all models, with all access tokens.")] = False,
    expires: Expires = None,
    rotation_days: Rotation = None,
    check_hours: CheckHours = None,
    fetchable: Fetchable = None,
    value: Annotated[bool, typer.Option("--value", help="Read a new value from standard input.")] = False,
    oauth: OAuth = False,
    reference: Reference = None,
    save_anyway: SaveAnyway = False,
    as_json: AsJson = False,
) -> None:
    """Change what is given; everything else stays as it is."""
    change = _given(description, tag, priority, allow_model, allow_token, expires, rotation_days, fetchable)
    change |= _checked(check_hours)
    if name is not None:
        change["name"] = name
    if allow_all:
        change |= {"allowed_models": None, "allowed_tokens": None}
    if value or oauth or reference is not None:
        change |= {**_entered(oauth=oauth, reference=reference), "save_anyway": save_anyway}
    with client() as api:
        changed = api.request("PATCH", f"/secrets/{secret_id}", json=change)
    _tell(changed, "Changed.", as_json=as_json)


@secrets.command("test")
def secret_test(secret_id: SecretId, *, as_json: AsJson = False) -> None:
    """Test a secret with the provider's cheap call; exits 1 unless it works."""
    with client() as api:
        result = api.request("POST", f"/secrets/{secret_id}/test")
    _tell(result, f"{result['status']}: {result['message']} ({result['latency_ms']:.0f} ms)", as_json=as_json)
    if result["status"] != "ok":
        raise typer.Exit(1)


@secrets.command("reminders")
def secret_reminders(*, as_json: AsJson = False) -> None:
    """List what expires, should be replaced or was refused, as far as you were reminded of it, newest first."""
    with client() as api:
        rows = api.request("GET", "/me/notifications")["items"]
    print_rows(rows, ("kind", "provider", "name", "due_at", "days", "read_at", "secret_id"), as_json=as_json)


@secrets.command("refresh")
def secret_refresh(secret_id: SecretId, *, as_json: AsJson = False) -> None:
    """Refresh an OAuth token at once; exits 1 unless that worked."""
    with client() as api:
        found = api.request("POST", f"/secrets/{secret_id}/refresh")
    problem = found["refresh_problem"]
    _tell(found, problem or f"Version {found['version']} is in force.", as_json=as_json)
    if problem:
        raise typer.Exit(1)


@secrets.command("rotate")
def secret_rotate(
    secret_id: SecretId,
    *,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=720, help="For how long the value before serves where the provider refuses the new one.")
    ] = 0.0,
    save_anyway: SaveAnyway = False,
    as_json: AsJson = False,
) -> None:
    """Put a new value in force, read from standard input."""
    body = {"value": read_value(), "overlap_seconds": round(overlap_hours * 3600), "save_anyway": save_anyway}
    with client() as api:
        rotated = api.request("POST", f"/secrets/{secret_id}/rotate", json=body)
    _tell(rotated, f"Version {rotated['version']} is in force.", as_json=as_json)


@secrets.command("versions")
def secret_versions(secret_id: SecretId, *, as_json: AsJson = False) -> None:
    """List the versions that are kept."""
    with client() as api:
        print_rows(api.pages(f"/secrets/{secret_id}/versions"), VERSION_COLUMNS, as_json=as_json)


@secrets.command("rollback")
def secret_rollback(
    secret_id: SecretId,
    *,
    version: Annotated[int | None, typer.Option(help="Which; else the one before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put an earlier value in force again, as a new version."""
    with client() as api:
        back = api.request("POST", f"/secrets/{secret_id}/rollback", json={"version": version})
    _tell(back, f"Version {back['version']} is in force.", as_json=as_json)


@secrets.command("reveal")
def secret_reveal(secret_id: SecretId, *, as_json: AsJson = False) -> None:
    """Print the value of a secret that is fetchable, on record. The token needs the scope secrets:read."""
    with client() as api:
        shown = api.request("POST", f"/secrets/{secret_id}/reveal")
    _tell(shown, shown["value"], as_json=as_json)


@secrets.command("fetch")
def secret_fetch(
    secret_id: Annotated[str | None, typer.Argument(help="The secret's id; else name a provider.")] = None,
    *,
    provider: Annotated[str | None, typer.Option(help="The first that serves for this provider.")] = None,
    secret_type: Annotated[str | None, typer.Option("--type", help="For example connection_string; else the provider's.")] = None,
    name: Annotated[str | None, typer.Option(help="The one of this name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the value of a fetchable secret of yours or your team's, on record as a use. The token needs the scope secrets:read."""
    with client() as api:
        fetched = api.fetch_secret(secret_id, provider=provider, secret_type=secret_type, name=name)
    _tell(fetched, fetched["value"], as_json=as_json)


@secrets.command("disable")
def secret_disable(secret_id: SecretId) -> None:
    """Switch a secret off, everywhere within a second."""
    with client() as api:
        api.request("PATCH", f"/secrets/{secret_id}", json={"is_active": False})
    say("Disabled.")


@secrets.command("enable")
def secret_enable(secret_id: SecretId) -> None:
    """Switch a secret on again."""
    with client() as api:
        api.request("PATCH", f"/secrets/{secret_id}", json={"is_active": True})
    say("Enabled.")


@secrets.command("delete")
def secret_delete(secret_id: SecretId) -> None:
    """Delete a secret. For a stated time it can be restored."""
    with client() as api:
        api.request("DELETE", f"/secrets/{secret_id}")
    say(f"Deleted. 'keybearer secret restore {secret_id}' brings it back.")


@secrets.command("restore")
def secret_restore(
    secret_id: SecretId,
    *,
    name: Annotated[str | None, typer.Option(help="Another name, where the old one is taken.")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a deleted secret back."""
    with client() as api:
        back = api.request("POST", f"/secrets/{secret_id}/restore", json={"name": name})
    _tell(back, f"Restored “{back['name']}”.", as_json=as_json)


@secrets.command("purge")
def secret_purge(secret_id: SecretId, *, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Remove a secret with all its versions, at once and for good."""
    if not yes:
        typer.confirm("Nothing can bring it back. Purge it?", abort=True)
    with client() as api:
        api.request("POST", f"/secrets/{secret_id}/purge")
    say("Purged.")


@secrets.command("access-log")
def secret_access_log(secret_id: SecretId, *, as_json: AsJson = False) -> None:
    """List who used or changed a secret, newest first."""
    with client() as api:
        print_rows(api.pages(f"/secrets/{secret_id}/access-log"), LOG_COLUMNS, as_json=as_json)


@secrets.command("usage")
def secret_usage(secret_id: SecretId, *, as_json: AsJson = False) -> None:
    """List what a secret was used for and what it cost, newest first."""
    with client() as api:
        print_rows(api.pages(f"/secrets/{secret_id}/usage"), USAGE_COLUMNS, as_json=as_json)


def _given(
    description: str | None,
    tags: list[str] | None,
    priority: int | None,
    models: list[str] | None,
    tokens: list[str] | None,
    expires: str | None,
    rotation_days: str | None,
    fetchable: bool | None,  # noqa: FBT001  # an option's value
) -> dict[str, Any]:
    """The fields that options gave; ``never`` is a value, and so ``None`` where the API has it."""
    plain = {
        "description": description,
        "tags": tags,
        "priority": priority,
        "allowed_models": models,
        "allowed_tokens": tokens,
        "expires_at": expires,
        "rotation_period": rotation_days,
        "fetchable": fetchable,
    }
    return {name: None if value == NEVER else value for name, value in plain.items() if value is not None and value != []}


def _checked(hours: str | None) -> dict[str, Any]:
    """How often a secret is tested, if that was said."""
    return {} if hours is None else {"health_check_every": {NEVER: 0, "default": None}.get(hours, hours)}


def _entered(*, oauth: bool, reference: str | None) -> dict[str, Any]:
    """A reference, or what standard input holds: a value, or with ``oauth`` a JSON object of a token's parts."""
    if reference is not None:
        return {"reference": reference}
    if not oauth:
        return {"value": read_value()}
    try:
        parts = json.loads(sys.stdin.read())
    except ValueError:
        parts = None
    if not isinstance(parts, dict):
        raise Invalid("Standard input is no JSON object.", hint='{"value": "…", "refresh_token": "…", "token_endpoint": "…"}')
    value = {"value": parts.pop("value")} if "value" in parts else {}
    return {**value, "oauth": parts}


def _tell(answer: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        say(text)

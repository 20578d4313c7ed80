"""``keybearer team``: teams, their members, and secrets shared with them, over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from keybearer.cli.names import member_id, team_id
from keybearer.cli.output import AsJson, print_json, print_rows, say
from keybearer.cli.use import client

teams = typer.Typer(help="Teams: their members, and the secrets shared with them.", no_args_is_help=True)

Team = Annotated[str, typer.Argument(help="The team's name or id.")]
Person = Annotated[str, typer.Argument(help="The member's e-mail address or id.")]
SecretId = Annotated[str, typer.Argument(help="The secret's id.")]

TEAM_COLUMNS = ("id", "name", "role", "priority", "accepted_at")
MEMBER_COLUMNS = ("user_id", "email", "name", "role", "accepted_at")
SECRET_COLUMNS = ("id", "provider", "name", "preview", "owner_kind", "access", "shared_by", "state")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(teams, name="team")


@teams.command("list")
def team_list(*, as_json: AsJson = False) -> None:
    """List your teams in the order in which their keys serve you, then invitations."""
    with client() as api:
        print_rows(api.pages("/teams"), TEAM_COLUMNS, as_json=as_json)


@teams.command("create")
def team_create(name: Annotated[str, typer.Argument(help="What it is called.")], *, as_json: AsJson = False) -> None:
    """Make a team; you are its owner."""
    with client() as api:
        _print(api.request("POST", "/teams", json={"name": name}), as_json=as_json, told="Made team {name} as {id}.")


@teams.command("rename")
def team_rename(team: Team, name: Annotated[str, typer.Argument(help="Its new name.")], *, as_json: AsJson = False) -> None:
    """Give a team another name."""
    with client() as api:
        changed = api.request("PATCH", f"/teams/{team_id(api, team)}", json={"name": name})
    _print(changed, as_json=as_json, told="It is called {name} now.")


@teams.command("priority")
def team_priority(
    team: Team, priority: Annotated[int, typer.Argument(help="0 to 1000; the lower one's keys serve first.")]
) -> None:
    """Say which of your teams' keys serve you first."""
    with client() as api:
        api.request("PATCH", f"/teams/{team_id(api, team)}", json={"priority": priority})
    say("Set.")


@teams.command("delete")
def team_delete(team: Team, *, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """End a team with all that is its own, everywhere within a second."""
    with client() as api:
        found = team_id(api, team)
        if not yes:
            typer.confirm("Its keys are destroyed and cannot be restored. Delete it?", abort=True)
        api.request("DELETE", f"/teams/{found}")
    say("Deleted.")


@teams.command("members")
def team_members(team: Team, *, as_json: AsJson = False) -> None:
    """List who is in a team, or invited to it."""
    with client() as api:
        print_rows(api.pages(f"/teams/{team_id(api, team)}/members"), MEMBER_COLUMNS, as_json=as_json)


@teams.command("invite")
def team_invite(
    team: Team,
    email: Annotated[str, typer.Argument(help="Of somebody who has an account.")],
    *,
    role: Annotated[str, typer.Option(help="owner, admin or member.")] = "member",
) -> None:
    """Invite somebody; they are in the team once they accept."""
    with client() as api:
        made = api.request("POST", f"/teams/{team_id(api, team)}/members", json={"email": email, "role": role})
    say(f"{made['email']} is {'in the team' if made['accepted_at'] else 'invited'}.")


@teams.command("accept")
def team_accept(team: Team) -> None:
    """Accept an invitation."""
    with client() as api:
        joined = api.request("POST", f"/teams/{team_id(api, team)}/accept")
    say(f"You are in {joined['name']}.")


@teams.command("leave")
def team_leave(team: Team) -> None:
    """Leave a team, or decline an invitation; what you share with it is shared no longer."""
    with client() as api:
        api.request("POST", f"/teams/{team_id(api, team)}/leave")
    say("Left.")


@teams.command("role")
def team_role(team: Team, person: Person, role: Annotated[str, typer.Argument(help="owner, admin or member.")]) -> None:
    """Give a member another role."""
    with client() as api:
        found = team_id(api, team)
        api.request("PATCH", f"/teams/{found}/members/{member_id(api, found, person)}", json={"role": role})
    say("Changed.")


@teams.command("remove")
def team_remove(team: Team, person: Person) -> None:
    """Send somebody away, or take back an invitation, everywhere within a second."""
    with client() as api:
        found = team_id(api, team)
        api.request("DELETE", f"/teams/{found}/members/{member_id(api, found, person)}")
    say("Removed.")


@teams.command("secrets")
def team_secrets(team: Team, *, as_json: AsJson = False) -> None:
    """List a team's secrets and those shared with it, without values."""
    with client() as api:
        found = team_id(api, team)
        rows = list(api.pages(f"/teams/{found}/secrets"))
    for row in rows if not as_json else ():
        row["shared_by"] = next((share["shared_by_name"] for share in row["shares"] if share["team_id"] == found), None)
    print_rows(rows, SECRET_COLUMNS, as_json=as_json)


@teams.command("share")
def team_share(
    team: Team,
    secret_id: SecretId,
    *,
    manage: Annotated[bool, typer.Option("--manage", help="Let its members change it too, not only use it.")] = False,
) -> None:
    """Share one of your secrets with a team you are in."""
    with client() as api:
        grade = {"team_id": team_id(api, team), "grade": "manage" if manage else "use"}
        made = api.request("POST", f"/secrets/{secret_id}/shares", json=grade)
    say(f"Shared with {made['team_name']} {'for management' if made['grade'] == 'manage' else 'for use only'}.")


@teams.command("unshare")
def team_unshare(team: Team, secret_id: SecretId) -> None:
    """End a share, everywhere within a second."""
    with client() as api:
        api.request("DELETE", f"/secrets/{secret_id}/shares/{team_id(api, team)}")
    say("It is shared no longer.")


def _print(answer: dict[str, Any], *, as_json: bool, told: str) -> None:
    if as_json:
        print_json(answer)
    else:
        say(told.format(**answer))

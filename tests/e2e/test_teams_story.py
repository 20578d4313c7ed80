"""A team through the API, the gateway, the command line and the console, on both databases; and who tries to get in."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from tests.support import server as servers
from tests.support.provider import Provider
from tests.support.server import PASSWORD, Person, Server, json_of, until

CLEOS = "sk-proj-kbtest-cleos-0123456789abcdefghijklmno"
TEAMS = "sk-proj-kbtest-teams-0123456789abcdefghijklmno"
MEMBERS_SCOPES = ("gateway:use", "secrets:use", "secrets:write", "secrets:read", "teams:write", "usage:read", "audit:read")


@dataclass
class Firm:
    """Cleo leads a team, bob is in it, eve is not; ada administers the deployment."""

    server: Server
    provider: Provider
    people: dict[str, Person]
    tokens: dict[str, str]
    team: str

    def chat(self, name: str) -> httpx2.Response:
        body = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
        headers = {"authorization": f"Bearer {self.tokens[name]}"}
        return httpx2.post(f"{self.server.url}/v1/chat/completions", json=body, headers=headers)

    def command(self, name: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A client command of somebody's."""
        env = self.server.environment | {"KEYBEARER_URL": self.server.url, "KEYBEARER_TOKEN": self.tokens[name]}
        command = [sys.executable, "-m", "keybearer", *arguments]
        return subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def firm(request: pytest.FixtureRequest, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firm]:
    settings: dict[str, Any] = {"egress_allow": "127.0.0.1"}
    workers: tuple[str, ...] = ()
    if request.param == "postgresql":
        settings["database_url"], settings["database_direct_url"] = request.getfixturevalue("postgresql_urls")
        workers = ("--workers", "2")
    with servers.running(tmp_path_factory.mktemp("firm") / "data", *workers, **settings) as server:
        ada = servers.set_up(server)
        ada.call("PUT", "/providers/openai", json={"base_url": provider.base_url("openai")})
        people = {"ada": ada}
        for name in ("bob", "cleo", "eve"):
            ada.call("POST", "/users", json={"email": f"{name}@example.com", "password": PASSWORD, "name": name.title()})
            people[name] = servers.sign_in(server, f"{name}@example.com")
        tokens = {name: person.token(name, MEMBERS_SCOPES) for name, person in people.items()}
        team = people["cleo"].call("POST", "/teams", json={"name": "Research"})["id"]
        people["cleo"].call("POST", f"/teams/{team}/members", json={"email": "bob@example.com"})
        people["bob"].call("POST", f"/teams/{team}/accept")
        yield Firm(server, provider, people, tokens, team)


def test_a_lent_key_serves_with_a_receipt_and_shows_itself_to_nobody(firm: Firm) -> None:
    cleo, bob = firm.people["cleo"], firm.people["bob"]
    # In every process, as soon as it has heard of what another story took away.
    until(lambda: firm.chat("bob"), lambda answer: answer.status_code == 404)
    lent = cleo.add_key("openai", CLEOS)
    made = cleo.call("POST", f"/secrets/{lent['id']}/shares", json={"team_id": firm.team, "grade": "use"})
    assert (made["team_name"], made["grade"], made["shared_by_name"]) == ("Research", "use", "Cleo")
    answer = until(lambda: firm.chat("bob"), lambda answer: answer.status_code == 200)
    assert answer.headers["x-keybearer-key-source"] == "team"
    assert answer.headers["x-keybearer-secret-id"] == lent["id"]
    assert CLEOS in firm.provider.requests()[-1]["headers"]["authorization"]

    # Bob sees it with who lent it, and what he may do; nothing else of his shows it.
    (listed,) = bob.call("GET", "/secrets?owner=team")["items"]
    assert (listed["access"], listed["owner_kind"]) == ("use", "user")
    assert [share["shared_by_name"] for share in listed["shares"]] == ["Cleo"]
    counted = {"usage_count", "last_used_at", "updated_at"}  # of the call just made, as soon as it is in the database
    (of_team,) = bob.call("GET", f"/teams/{firm.team}/secrets")["items"]
    assert {name: value for name, value in of_team.items() if name not in counted} == {
        name: value for name, value in listed.items() if name not in counted
    }
    assert bob.call("GET", "/secrets")["items"] == []
    assert CLEOS not in bob.http.get(f"/api/v1/secrets/{lent['id']}").text
    for method, path, body in (
        ("PATCH", "", {"name": "bob's"}),
        ("PATCH", "", {"value": TEAMS, "save_anyway": True}),
        ("PATCH", "", {"fetchable": True}),
        ("POST", "/rotate", {"value": TEAMS, "save_anyway": True}),
        ("POST", "/test", None),
        ("POST", "/reveal", None),
        ("POST", "/purge", None),
        ("DELETE", "", None),
        ("POST", "/shares", {"team_id": firm.team, "grade": "manage"}),
    ):
        refused = bob.http.request(method, f"/api/v1/secrets/{lent['id']}{path}", json=body)
        assert refused.status_code in {403, 405}, (method, path, refused.status_code, refused.text)
        assert CLEOS not in refused.text

    # Who paid is on record: cleo sees bob's call among what her key was used for.
    def paid() -> httpx2.Response:
        return cleo.http.get(f"/api/v1/usage?secret_id={lent['id']}")

    found = until(paid, lambda answer: bool(answer.json()["items"])).json()["items"]
    assert {row["key_source"] for row in found} == {"team"}
    assert {row["user_id"] for row in found} == {bob.call("GET", "/me")["user"]["id"]}
    cleo.call("DELETE", f"/secrets/{lent['id']}/shares/{firm.team}")
    time.sleep(1.0)
    assert [firm.chat("bob").status_code for _ in range(8)] == [404] * 8
    cleo.call("DELETE", f"/secrets/{lent['id']}")


def test_a_teams_key_is_tested_where_the_teams_calls_go_whoever_tests(firm: Firm) -> None:
    cleo, bob = firm.people["cleo"], firm.people["bob"]
    bob.call("POST", "/providers", json={"name": "acme", "base_url": "https://bob.invalid/v1"})
    team = cleo.call("POST", "/teams", json={"name": "Acme"})["id"]
    cleo.call("POST", f"/teams/{team}/members", json={"email": "bob@example.com", "role": "admin"})
    bob.call("POST", f"/teams/{team}/accept")
    cleo.call("POST", "/providers", json={"name": "acme", "base_url": "https://team.invalid/v1", "team_id": team})
    key = cleo.add_key("acme", CLEOS, team_id=team)
    for person in (cleo, bob):  # a provider of bob's own has the same name
        found = person.call("POST", f"/secrets/{key['id']}/test")
        assert found["status"] == "dns"
        assert found["message"].startswith("The name team.invalid could not be resolved.")
    cleo.call("DELETE", f"/teams/{team}")
    bob.call("DELETE", "/providers/acme")


def test_strangers_get_what_unknown_ids_get(firm: Firm) -> None:
    eve, cleo = firm.people["eve"], firm.people["cleo"]
    lent = cleo.add_key("openai", CLEOS, name="foreign")
    cleo.call("POST", f"/secrets/{lent['id']}/shares", json={"team_id": firm.team, "grade": "manage"})
    cleos = cleo.call("GET", "/me")["user"]["id"]
    mine = eve.call("POST", "/teams", json={"name": "Mine"})["id"]
    for method, path, body in (
        ("GET", "/teams/{team}", None),
        ("PATCH", "/teams/{team}", {"name": "Eve's"}),
        ("PATCH", "/teams/{team}", {"priority": 0}),
        ("DELETE", "/teams/{team}", None),
        ("POST", "/teams/{team}/accept", None),
        ("POST", "/teams/{team}/leave", None),
        ("GET", "/teams/{team}/members", None),
        ("GET", "/teams/{team}/secrets", None),
        ("POST", "/teams/{team}/members", {"email": "eve@example.com", "role": "owner"}),
        ("PATCH", f"/teams/{{team}}/members/{cleos}", {"role": "member"}),
        ("DELETE", f"/teams/{{team}}/members/{cleos}", None),
        ("GET", "/secrets?team_id={team}", None),
        ("POST", "/secrets", {"provider": "openai", "value": CLEOS, "team_id": "{team}", "save_anyway": True}),
        ("POST", "/providers", {"name": "evil", "base_url": "https://evil.example", "team_id": "{team}"}),
        ("DELETE", f"/secrets/{lent['id']}/shares/{{team}}", None),
    ):
        answers = []
        for team in (firm.team, str(uuid4())):
            given = body and {name: text.format(team=team) if isinstance(text, str) else text for name, text in body.items()}
            answer = eve.http.request(method, f"/api/v1{path.format(team=team)}", json=given)
            answers.append((answer.status_code, answer.json()["code"], answer.json()["detail"]))
        assert answers[0] == answers[1], (method, path)
        assert answers[0][0] == 404, (method, path, answers)
    assert eve.http.post(f"/api/v1/secrets/{lent['id']}/shares", json={"team_id": mine}).status_code == 404
    assert eve.call("GET", "/secrets?owner=all")["items"] == []
    assert [team["name"] for team in eve.call("GET", "/teams")["items"]] == ["Mine"]
    cleo.call("DELETE", f"/secrets/{lent['id']}")


def test_the_command_line_and_a_member_who_is_sent_away_and_keeps_the_token(firm: Firm) -> None:
    listed = json_of(firm.command("cleo", "team", "list", "--json"))
    assert [team["name"] for team in listed] == ["Research"]
    assert firm.command("cleo", "secret", "add", "openai", "--team", "Research", "--save-anyway", stdin=TEAMS).returncode == 0
    (kept,) = json_of(firm.command("bob", "team", "secrets", "Research", "--json"))
    assert (kept["owner_kind"], kept["access"]) == ("team", "use")
    until(lambda: firm.chat("bob"), lambda answer: answer.status_code == 200)
    refused = firm.command("bob", "team", "role", "Research", "bob@example.com", "owner")
    assert refused.returncode == 1
    assert "error: Only the team's owners and admins" in refused.stderr
    assert "hint:" in refused.stderr

    assert firm.command("eve", "team", "invite", "Research", "eve@example.com").returncode == 1
    assert "is invited" in firm.command("cleo", "team", "invite", firm.team, "eve@example.com").stdout
    assert firm.command("eve", "team", "accept", "Research").stdout == "You are in Research.\n"
    until(lambda: firm.chat("eve"), lambda answer: answer.status_code == 200)
    assert "eve@example.com" in firm.command("bob", "team", "members", "Research").stdout
    assert firm.command("eve", "team", "priority", "Research", "5").returncode == 0
    assert firm.command("cleo", "team", "remove", "Research", "eve@example.com").returncode == 0
    time.sleep(1.0)
    assert [firm.chat("eve").status_code for _ in range(8)] == [404] * 8  # the token is good, and nothing is behind it
    assert firm.chat("bob").status_code == 200
    last = firm.command("cleo", "team", "leave", "Research")
    assert (last.returncode, "last" in last.stderr) == (1, True)
    assert firm.command("cleo", "secret", "delete", kept["id"]).returncode == 0


def test_the_consoles_pages(firm: Firm) -> None:
    """As forms that a browser sends; nobody's page has a value, and a member's has no button that would be refused."""
    cleo, bob, eve = (firm.people[name].http for name in ("cleo", "bob", "eve"))
    made = cleo.post("/teams", data={"name": "Paper & pen"}, follow_redirects=True)
    assert "Paper &amp; pen" in made.text
    path = str(made.url.path)
    assert "belongs to no account" in cleo.post(f"{path}/members", data={"email": "nobody@example.com"}).text
    assert cleo.post(f"{path}/members", data={"email": "bob@example.com"}).status_code == 303
    assert "You are invited to “Paper &amp; pen”" in bob.get("/teams").text
    assert "You are invited" in bob.get(path).text
    assert bob.post(f"{path}/accept").headers["location"] == f"{path}?done=joined"
    lent = firm.people["cleo"].add_key("openai", CLEOS, name="lent by form")
    team_id = path.removeprefix("/teams/")
    assert "Share with a team" in cleo.get(f"/secrets/{lent['id']}").text
    assert cleo.post(f"/secrets/{lent['id']}/share", data={"team_id": team_id, "grade": "use"}).status_code == 303
    page = bob.get(path).text
    assert "shared by Cleo, for use only" in page
    assert "Invite</button>" not in page
    shown = bob.get(f"/secrets/{lent['id']}").text
    assert "for use only" in shown
    assert CLEOS not in shown
    for button in ("Test connection", "Save</button>", "Delete it", "Share with a team"):
        assert button not in shown, button
    assert eve.get(path).status_code == 404
    assert eve.get(f"/secrets/{lent['id']}").status_code == 404
    me = firm.people["cleo"].call("GET", "/me")["user"]["id"]
    assert "its last" in cleo.post(f"{path}/leave").text
    assert "Only the team" in bob.post(f"{path}/members/{me}/remove").text
    assert (
        cleo.post(
            "/secrets/new", data={"provider": "openai", "value": TEAMS, "team_id": team_id, "save_anyway": "on"}
        ).status_code
        == 303
    )
    assert "the team&#39;s" in cleo.get(path).text or "the team's" in cleo.get(path).text
    for wrong in ("x", "", "-1", "9" * 5000):
        assert bob.post(f"{path}/priority", data={"priority": wrong}).status_code == 422
    assert bob.post(f"{path}/leave").headers["location"] == "/teams?done=left"
    assert cleo.post(f"/secrets/{lent['id']}/unshare", data={"team_id": team_id}).status_code == 303
    assert cleo.post(f"{path}/delete").headers["location"] == "/teams?done=deleted"
    assert cleo.get(path).status_code == 404

"""All pages are of one design: in both colour schemes, on a telephone, with results and notices where people look."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from playwright.sync_api import Page, expect
from tests.browser.test_console import EMAIL, shot, sign_in
from tests.support import provider as mock
from tests.support import server as servers
from tests.support.server import Person

KEY = "sk-proj-kbtest-every-page-0123456789abcdefghij"
TELEPHONE = 360


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with (
        mock.running() as provider,
        servers.running(tmp_path_factory.mktemp("every") / "data", egress_allow="127.0.0.1") as server,
    ):
        fresh = httpx2.get(f"{server.url}/sign-in").text
        assert "open the set-up link" in fresh
        person = servers.set_up(server, EMAIL)
        person.call("PUT", "/providers/openai", json={"base_url": provider.base_url("openai")})
        yield person


@pytest.fixture(scope="module")
def places(ada: Person) -> dict[str, str]:
    """Every page, with something on it."""
    secret = ada.add_key("openai", KEY, name="work", tags=["team", "prod"], description="For the workshop")
    team = ada.call("POST", "/teams", json={"name": "Research"})
    ada.call("POST", f"/secrets/{secret['id']}/shares", json={"team_id": team["id"], "grade": "use"})
    model = ada.call("POST", "/models", json={"provider": "openai", "name": "gpt-4o-mini", "aliases": ["fast"]})
    ada.call("POST", "/providers", json={"name": "acme", "base_url": "https://llm.example.com/v1", "models": ["m"]})
    ada.token("laptop")
    deleted = ada.add_key("openai", KEY + "2", name="gone")
    ada.call("DELETE", f"/secrets/{deleted['id']}")
    return {
        "vault": "/",
        "deleted": f"/?state=deleted&deleted={deleted['id']}",
        "add": "/secrets/new",
        "import": "/import",
        "export": "/export",
        "secret": f"/secrets/{secret['id']}",
        "providers": "/providers",
        "models": "/models",
        "model": f"/models/{model['id']}",
        "teams": "/teams",
        "team": f"/teams/{team['id']}",
        "tokens": "/tokens",
        "usage": "/usage",
        "budgets": "/budgets",
        "reminders": "/reminders",
        "playground": "/playground",
        "people": "/admin/users",
        "keys": "/admin/keys",
        "system": "/admin/system",
        "access-log": "/access-log",
        "nothing-found": "/access-log?provider=nobody",
        "no-such-page": "/nowhere",
    }


PARTS = 5
"""Of the pages, so that each test has the time of one on a busy machine."""


def test_every_page_of_the_navigation_is_looked_at(page: Page, ada: Person, places: dict[str, str]) -> None:
    sign_in(page, ada.server)
    named = {str(link.get_attribute("href")) for link in page.locator("header nav a").all()}
    assert named <= set(places.values())


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_readable_and_fits_a_telephone(
    page: Page, ada: Person, places: dict[str, str], scheme: str, part: int
) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    sign_in(page, ada.server)
    for name, path in list(places.items())[part::PARTS]:
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto(ada.server.url + path)
        assert page.locator("h1").count() == 1
        shot(page, f"{name}-{scheme}")
        page.set_viewport_size({"width": TELEPHONE, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= TELEPHONE, name
        shot(page, f"{name}-{scheme}-telephone")


def test_a_test_answers_beside_the_button_that_asked(page: Page, ada: Person, places: dict[str, str]) -> None:
    sign_in(page, ada.server)
    page.goto(ada.server.url + places["providers"])
    card = page.locator(".card", has=page.get_by_role("button", name="Test connection to OpenAI"))
    card.get_by_role("button", name="Test connection").click()
    expect(card.get_by_role("status")).to_contain_text("Works")
    assert page.locator("[data-result]:not(:empty)").count() == 1


def test_what_was_done_is_said_once(page: Page, ada: Person, places: dict[str, str]) -> None:
    sign_in(page, ada.server)
    page.goto(ada.server.url + places["secret"])
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="work")).to_be_visible()
    expect(page.get_by_text("Saved.")).to_have_count(0)
    page.goto(ada.server.url + "/?done=Send your password to us")  # an address says nothing of its own
    assert "password" not in page.locator("main").inner_text()


def test_the_access_log_says_who_did_what_with_which_secret(page: Page, ada: Person, places: dict[str, str]) -> None:
    token = ada.token("caller")
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx2.post(f"{ada.server.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    servers.until(lambda: ada.http.get("/api/v1/audit?action=secret.use"), lambda answer: bool(answer.json()["items"]))
    sign_in(page, ada.server)
    page.goto(f"{ada.server.url}/access-log")
    page.get_by_label("What").fill("secret.use")  # what the column shows can be asked for
    page.get_by_role("button", name="Filter").click()
    row = page.locator("tbody tr").first
    for text in ("secret.use", "chat.completions", "you", f"kb_{token.split('_')[1]}_"):
        expect(row).to_contain_text(text)
    row.get_by_role("link", name="work").click()
    expect(page.get_by_role("heading", name="work")).to_be_visible()
    assert page.url.endswith(places["secret"])


def test_a_refused_key_is_told_once_with_the_draft_kept(page: Page, ada: Person) -> None:
    sign_in(page, ada.server)
    page.goto(f"{ada.server.url}/secrets/new")
    expect(page.get_by_label("Provider")).to_have_value("")  # nobody stores a key with whoever comes first
    page.get_by_label("Provider").select_option("openai")
    page.get_by_label("Value", exact=True).fill("sk-admin-kbtest-0123456789abcdefghijklmnop")
    page.get_by_label("Description").fill("Mine")
    page.get_by_role("button", name="Save").click()
    alert = page.get_by_role("alert")
    assert alert.inner_text().count("admin key") == 1
    expect(page.get_by_label("Description")).to_have_value("Mine")
    expect(page.get_by_label("Value", exact=True)).to_have_value("")


def test_a_token_may_do_what_was_ticked_until_it_is_revoked(page: Page, ada: Person) -> None:
    sign_in(page, ada.server)
    page.goto(f"{ada.server.url}/tokens")
    page.get_by_label("Name").fill("reports")
    page.get_by_text("What it may do", exact=True).first.click()
    page.get_by_label("Call the gateway").uncheck()
    page.get_by_role("button", name="Create token").click()
    expect(page.get_by_role("alert")).to_contain_text("at least one scope")
    expect(page.get_by_label("Name")).to_have_value("reports")
    page.get_by_label("Read usage and cost").check()
    shot(page, "token-scopes")
    page.get_by_role("button", name="Create token").click()
    token = page.locator("code.token").inner_text()
    program = servers.program(ada.server, token)
    program.call("GET", "/usage")
    program.call("GET", "/secrets", status=403)

    page.get_by_role("button", name="Revoke reports").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()  # a key pressed by mistake destroys nothing
    dialog.get_by_role("button", name="Keep it").click()
    program.call("GET", "/usage")
    page.get_by_role("button", name="Revoke reports").press("Enter")
    dialog.get_by_role("button", name="Revoke it").press("Enter")
    expect(page.get_by_text("Revoked.")).to_be_visible()
    servers.until(lambda: program.http.get("/api/v1/usage"), lambda answer: answer.status_code == 401)


def test_nobody_ticks_more_than_they_have(ada: Person) -> None:
    ada.call("POST", "/users", json={"email": "bob@example.com", "password": servers.PASSWORD, "name": "Bob"})
    bob = servers.sign_in(ada.server, "bob@example.com")
    assert 'value="admin"' not in bob.http.get("/tokens").text
    for scope in ("admin", "everything"):
        assert bob.http.post("/tokens", data={"name": "more", "scopes": scope}).status_code in {403, 422}
    assert bob.call("GET", "/tokens")["items"] == []

"""Teams in the console, as two people use them in real browsers: make, invite, accept, share by the dialog, leave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.browser.test_console import shot
from tests.support import server as servers
from tests.support.server import PASSWORD, Person, Server

KEY = "sk-proj-kbtest-console-0123456789abcdefghijkl"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.running(tmp_path_factory.mktemp("teams") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def cleo(server: Server) -> Person:
    ada = servers.set_up(server)
    for name in ("cleo", "bob"):
        ada.call("POST", "/users", json={"email": f"{name}@example.com", "password": PASSWORD, "name": name.title()})
    return servers.sign_in(server, "cleo@example.com")


def sign_in(page: Page, server: Server, name: str) -> None:
    page.goto(f"{server.url}/sign-in")
    page.get_by_label("E-mail").fill(f"{name}@example.com")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Secrets Vault")).to_be_visible()


def test_two_people_make_a_team_and_share_a_key(page: Page, chromium: Browser, server: Server, cleo: Person) -> None:
    lent = cleo.add_key("openai", KEY, name="work")
    sign_in(page, server, "cleo")
    page.get_by_role("link", name="Teams").click()
    page.get_by_label("Name").fill("Research")
    page.get_by_role("button", name="Create team").click()
    page.get_by_label("E-mail of somebody").fill("bob@example.com")
    page.get_by_role("button", name="Invite").click()
    expect(page.get_by_text("invited", exact=True)).to_be_visible()

    # Sharing is a dialog on the secret's own page; nothing is chosen that gives more than use.
    page.goto(f"{server.url}/secrets/{lent['id']}")
    page.get_by_role("button", name="Share with a team").click()
    expect(page.get_by_label("Its members may")).to_have_value("use")
    shot(page, "share")
    page.get_by_role("button", name="Share", exact=True).click()
    expect(page.get_by_text("for use only")).to_be_visible()

    context = chromium.new_context(locale="en-GB")
    bobs = context.new_page()
    sign_in(bobs, server, "bob")
    bobs.get_by_role("link", name="Teams").click()
    shot(bobs, "invitation")
    bobs.get_by_role("button", name="Accept the invitation to Research").click()
    expect(bobs.get_by_text("shared by Cleo, for use only")).to_be_visible()
    shot(bobs, "team-member")
    bobs.get_by_role("link", name="work").click()
    expect(bobs.get_by_role("heading", name="work")).to_be_visible()
    expect(bobs.get_by_role("button", name="Delete")).to_have_count(0)
    expect(bobs.get_by_label("New value")).to_have_count(0)
    assert KEY not in bobs.content()
    shot(bobs, "lent")

    page.goto(f"{server.url}/teams")
    page.get_by_role("link", name="Research").click()
    page.get_by_label("Role of Bob", exact=True).select_option("admin")
    page.get_by_role("button", name="Change the role of Bob").click()
    expect(page.get_by_label("Role of Bob", exact=True)).to_have_value("admin")
    shot(page, "team-owner")
    page.get_by_role("button", name="Leave", exact=True).click()
    page.get_by_role("button", name="Leave it").click()
    expect(page.get_by_role("alert")).to_contain_text("its last")  # an owner stays until there is another
    page.get_by_role("button", name="Remove Bob").click()
    expect(page.get_by_label("Role of Bob", exact=True)).to_have_count(0)
    bobs.goto(f"{server.url}/secrets/{lent['id']}")
    expect(bobs.get_by_role("heading", name="work")).to_have_count(0)
    context.close()

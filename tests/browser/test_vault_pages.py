"""A secret's life in the console: found by tag and state, changed, rotated, rolled back, deleted, brought back, purged."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, expect
from tests.browser.test_console import EMAIL, shot, sign_in
from tests.support import server as servers
from tests.support.server import Person

KEY = "sk-proj-kbtest-vault-0123456789abcdefghijklmn"
OTHER = "sk-proj-kbtest-vault-zyxwvutsrqponmlkjihgfedc"


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with servers.running(tmp_path_factory.mktemp("vault") / "data") as server:
        yield servers.set_up(server, EMAIL)


def test_a_secrets_life_in_the_console(page: Page, ada: Person) -> None:
    soon = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    ada.add_key("openai", KEY, name="work", tags=["team"])
    ada.add_key("openai", KEY + "2", name="ending", tags=["team", "old"], expires_at=soon)
    ada.add_key("anthropic", "sk-ant-api03-kbtest-vault-0123456789abcdefghij", name="off", is_active=False)
    sign_in(page, ada.server)

    # Found by tag and by state.
    expect(page.locator(".badge")).to_have_text(["off", "expiring", "active"])
    shot(page, "vault-states")
    page.get_by_role("link", name="old").click()
    expect(page.locator(".card")).to_have_count(1)
    page.get_by_role("link", name="Clear").click()
    page.get_by_label("State").select_option("inactive")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("link", name="off")).to_be_visible()
    expect(page.locator(".card")).to_have_count(1)
    page.get_by_label("Search").fill("nothing like it")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No secret matches.")).to_be_visible()

    # Changed: an end is set and lifted again, and what is wrong is told.
    page.get_by_role("link", name="Clear").click()
    page.get_by_role("link", name="ending").click()
    expect(page.locator("h1 .badge")).to_have_text("expiring")
    page.get_by_label("Expires").fill("")
    page.get_by_label("Priority").fill("7")
    page.get_by_label("Allowed models").fill("gpt-5, o3")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("h1 .badge")).to_have_text("active")
    expect(page.get_by_label("Allowed models")).to_have_value("gpt-5, o3")
    page.get_by_label("Priority").fill("many")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("whole number")

    # Rotated with an overlap, and rolled back.
    page.get_by_label("New value").fill("sk-p…mnop")
    page.get_by_role("button", name="Rotate").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("New value").fill(OTHER)
    page.get_by_role("button", name="Rotate").click()
    expect(page.get_by_text("serves if the provider refuses it")).to_be_visible()
    expect(page.locator("td .badge")).to_contain_text(["current", "fallback"])
    shot(page, "secret-rotated")
    page.get_by_role("button", name="Roll back to version 1").click()
    expect(page.get_by_role("cell", name="3", exact=True)).to_be_visible()
    assert OTHER not in page.content()

    # Deleted by mistake, and brought back.
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("“ending” is deleted.")).to_be_visible()
    shot(page, "undo")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("heading", name="ending")).to_be_visible()

    # Deleted, and gone for good.
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    page.get_by_label("State").select_option("deleted")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("Gone for good at")).to_be_visible()
    shot(page, "deleted")
    page.get_by_role("button", name="Purge ending now").click()
    expect(page.get_by_text("No deleted secrets.")).to_be_visible()
    names = {item["name"] for item in ada.call("GET", "/secrets")["items"]}
    assert names == {"work", "off"}


def test_a_secret_of_another_type_with_its_parts(page: Page, ada: Person) -> None:
    sign_in(page, ada.server)
    page.goto(f"{ada.server.url}/secrets/new")
    page.get_by_label("Provider").select_option("openai")
    page.get_by_label("Type").select_option("oauth_token")
    page.get_by_label("Value", exact=True).fill("kbtest-access-0123456789abcdef")
    page.get_by_label("Name", exact=True).fill("calendar")
    page.get_by_text("OAuth", exact=True).click()
    page.get_by_label("Refresh token").fill("kbtest-refresh-0123456789abcdef")
    page.get_by_label("Scopes").fill("read write")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Replace after").fill("90")
    shot(page, "add-oauth")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("link", name="calendar").click()
    expect(page.get_by_text("Refresh token")).to_be_visible()
    expect(page.get_by_text("kbte…cdef").first).to_be_visible()
    assert "kbtest-refresh" not in page.content()


def test_an_address_that_names_anothers_deleted_secret_tells_nothing(page: Page, ada: Person) -> None:
    sign_in(page, ada.server)
    for secret_id in ("00000000-0000-7000-8000-000000000000", ada.call("GET", "/secrets")["items"][0]["id"]):
        page.goto(f"{ada.server.url}/?deleted={secret_id}")
        expect(page.get_by_role("heading", name="Secrets Vault")).to_be_visible()
        expect(page.get_by_role("button", name="Undo")).to_have_count(0)


def test_an_emptied_priority_is_the_usual_one(ada: Person) -> None:
    """None would be the lowest number: the key before all others."""
    for priority, stored in (("", 100), ("0", 0), ("7", 7)):
        form = {
            "provider": "groq",
            "name": f"by form {stored}",
            "value": f"gsk_kbtest{stored}0123456789abcdef",
            "priority": priority,
        }
        assert ada.http.post("/secrets/new", data=form | {"save_anyway": "on"}).status_code == 303
        (made,) = [secret for secret in ada.call("GET", "/secrets?provider=groq")["items"] if secret["name"] == form["name"]]
        assert made["priority"] == stored

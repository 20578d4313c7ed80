"""What administrators do in the console: add, disable and delete people; see all keys, and rotate them while everything goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect
from tests.browser.test_console import EMAIL, shot, sign_in
from tests.support import server as servers
from tests.support.server import PASSWORD, Person

KEY = "sk-proj-kbtest-admin-page-0123456789abcdefghij"


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with servers.running(tmp_path_factory.mktemp("admin") / "data") as server:
        person = servers.set_up(server, EMAIL)
        person.add_key("openai", KEY)
        yield person


def test_somebody_is_added_disabled_and_deleted(page: Page, ada: Person) -> None:
    sign_in(page, ada.server)
    page.get_by_role("link", name="Admin").click()
    expect(page.get_by_role("link", name="People")).to_have_attribute("aria-current", "page")
    assert not page.get_by_role("button", name=f"Disable {EMAIL}").count()  # nobody locks themselves out
    page.get_by_label("E-mail").fill("bob@example.com")
    page.get_by_label("Name").fill("Bob")
    page.get_by_label("First password").fill("short")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("needs at least 12 characters")
    expect(page.get_by_label("E-mail")).to_have_value("bob@example.com")
    expect(page.get_by_label("First password")).to_have_value("")
    page.get_by_label("First password").fill(PASSWORD)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text("They can sign in now.")).to_be_visible()
    assert PASSWORD not in page.content()
    bob = servers.sign_in(ada.server, "bob@example.com")
    assert bob.call("GET", "/me")["user"]["role"] == "member"
    shot(page, "people")

    page.get_by_role("button", name="Disable bob@example.com").click()
    expect(page.get_by_role("row", name="bob@example.com")).to_contain_text("disabled")
    servers.until(lambda: bob.http.get("/api/v1/me"), lambda answer: answer.status_code == 401)
    page.get_by_role("button", name="Enable bob@example.com").click()
    expect(page.get_by_role("row", name="bob@example.com")).to_contain_text("active")

    page.get_by_role("button", name="Delete bob@example.com").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    dialog.get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("Deleted, and their key destroyed.")).to_be_visible()
    expect(page.get_by_role("row", name="bob@example.com")).to_have_count(0)


def test_keys_are_rotated_with_progress(page: Page, ada: Person) -> None:
    before = ada.call("GET", "/admin/keys")
    sign_in(page, ada.server)
    page.get_by_role("link", name="Admin").click()
    page.get_by_role("link", name="Encryption keys").click()
    roots = page.get_by_role("region", name="Root keys")
    expect(roots.get_by_role("row", name=before["root_keys"][0]["id"][:8])).to_contain_text("active")
    expect(page.get_by_role("region", name="Running processes").locator("tbody tr")).to_have_count(1)
    shot(page, "keys")
    page.get_by_role("button", name="Rotate the root key").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Not now")).to_be_focused()
    dialog.get_by_role("button", name="Begin").click()
    expect(page.get_by_text("The servers work on it.")).to_be_visible()
    expect(page.get_by_role("heading", name="Last rotation: Root key")).to_be_visible(timeout=30_000)  # the page looks by itself
    expect(roots.locator("tbody tr")).to_have_count(2)
    expect(roots.get_by_role("row", name=before["root_keys"][0]["id"][:8])).to_contain_text("retired")
    assert ada.call("GET", "/admin/keys")["rotation"]["state"] == "finished"
    shot(page, "keys-rotated")


def test_no_second_rotation_is_begun(ada: Person) -> None:
    answers = [ada.http.post("/admin/keys/rotate", data={"kind": "owners"}) for _ in range(2)]
    assert answers[0].status_code == 303
    if answers[1].status_code != 303:  # else the first had ended already
        assert answers[1].status_code == 409
        assert 'role="alert"' in answers[1].text
    assert ada.http.post("/admin/keys/rotate", data={"kind": "everything"}).status_code == 422


def test_how_the_deployment_stands_is_told(page: Page, ada: Person) -> None:
    sign_in(page, ada.server)
    page.goto(f"{ada.server.url}/admin/system")
    expect(page.get_by_text("The system has no keys.")).to_be_visible()
    ada.call("POST", "/import", json={"format": "env", "content": f"OPENAI_API_KEY={KEY}", "system": True})
    page.reload()
    row = page.get_by_role("region", name="The system's keys").get_by_role("row", name="openai")
    expect(row).to_contain_text("active")
    expect(page.get_by_text("nobody else's: who has no key is told so")).to_be_visible()
    expect(page.get_by_text("serves", exact=True)).to_be_visible()
    assert KEY not in page.content()
    shot(page, "system")
    row.get_by_role("link", name="default").click()
    expect(page.get_by_role("heading", name="default")).to_be_visible()
    try:
        ada.server.cli("freeze")
        servers.until(lambda: ada.http.get("/admin/system"), lambda answer: "keybearer unfreeze" in answer.text)
    finally:
        ada.server.cli("unfreeze")
    servers.until(lambda: ada.http.get("/admin/system"), lambda answer: ">serves<" in answer.text)


def test_members_see_none_of_it(ada: Person) -> None:
    ada.call("POST", "/users", json={"email": "cleo@example.com", "password": PASSWORD, "name": "Cleo"})
    cleo = servers.sign_in(ada.server, "cleo@example.com").http
    me = ada.call("GET", "/me")["user"]["id"]
    for path in ("/admin/users", "/admin/keys", "/admin/system"):
        assert cleo.get(path).status_code == 403
    for path in ("/admin/users", f"/admin/users/{me}/active", f"/admin/users/{me}/delete", "/admin/keys/rotate"):
        refused = cleo.post(path, data={"kind": "root", "email": "eve@example.com", "password": PASSWORD, "role": "admin"})
        assert refused.status_code == 403, path
    assert "/admin/" not in cleo.get("/").text
    assert [user["email"] for user in ada.call("GET", "/users")["items"]] == [EMAIL, "cleo@example.com"]

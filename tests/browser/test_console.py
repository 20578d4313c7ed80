"""The first console, as a person uses it, in a real browser under the strict Content-Security-Policy."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, expect
from tests.browser.conftest import SCREENSHOTS
from tests.support import provider as mock
from tests.support import server as servers
from tests.support.provider import Provider
from tests.support.server import PASSWORD, Server

KEY = "sk-proj-kbtest-console-0123456789abcdefghijkl"
EMAIL = "ada@example.com"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with mock.running() as running:
        yield running


@pytest.fixture(scope="module")
def server(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.running(tmp_path_factory.mktemp("console") / "data", egress_allow="127.0.0.1") as running:
        yield running


def shot(page: Page, name: str) -> None:
    """Keep a screenshot, and fail on what WCAG 2.2 AA forbids."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})
    assert found.violations_count == 0, found.generate_report()


def sign_in(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/sign-in")
    page.get_by_label("E-mail").fill(EMAIL)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Secrets Vault")).to_be_visible()


def test_a_person_sets_up_stores_tests_uses_and_deletes_a_key(page: Page, server: Server, provider: Provider) -> None:
    # Set up: the token leaves the address bar, and the account is signed in.
    page.goto(f"{server.url}/setup#{server.setup_token}")
    assert "#" not in page.url
    shot(page, "setup")
    page.get_by_label("Name").fill("Ada")
    page.get_by_label("E-mail").fill(EMAIL)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_role("heading", name="No secrets yet")).to_be_visible()
    shot(page, "empty")
    admin = servers.sign_in(server, EMAIL)
    admin.call("PUT", "/providers/openai", json={"base_url": provider.base_url("openai")})

    # Add: pasting detects the provider, the value can be shown, the test runs before saving.
    page.get_by_role("link", name="Add your first secret").click()
    page.get_by_label("Provider").select_option("anthropic")
    value = page.get_by_label("Value", exact=True)
    value.fill(KEY)
    value.dispatch_event("paste")
    expect(page.get_by_label("Provider")).to_have_value("openai")
    assert value.get_attribute("type") == "password"
    page.get_by_role("button", name="Show").click()
    assert value.get_attribute("type") == "text"
    page.get_by_role("button", name="Test connection").click()
    expect(page.get_by_text("Works")).to_be_visible()
    page.get_by_label("Name", exact=True).fill("work")
    page.get_by_label("Tags").fill("team, prod")
    shot(page, "add")
    page.get_by_role("button", name="Save").click()

    # List: a card with a preview, never the value.
    expect(page.get_by_role("link", name="work")).to_be_visible()
    assert KEY not in page.content()
    expect(page.get_by_text("active", exact=True)).to_be_visible()
    shot(page, "vault")

    # Token: shown once; used against the gateway; the access log has the use.
    page.get_by_role("link", name="Access tokens").click()
    page.get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Create token").click()
    token = page.locator("code.token").inner_text()
    assert re.fullmatch(r"kb_\w{12}_\w{38}", token)
    shot(page, "token")
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    page.goto(f"{server.url}/tokens")
    assert token not in page.content()
    page.get_by_role("link", name="Access log").click()
    used = page.get_by_role("cell", name="chat.completions").first
    deadline = time.monotonic() + servers.SHIPPED_WITHIN
    while not used.is_visible() and time.monotonic() < deadline:
        page.wait_for_timeout(200)
        page.reload()
    expect(used).to_be_visible()
    shot(page, "access-log")

    # Change, test, delete.
    page.get_by_role("link", name="Secrets Vault").click()
    page.get_by_role("link", name="work").click()
    page.get_by_role("button", name="Test connection").click()
    expect(page.get_by_text("Works")).to_be_visible()
    page.get_by_label("Description").fill("For the workshop")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_label("Description")).to_have_value("For the workshop")
    shot(page, "secret")
    page.get_by_role("button", name="Disable").click()
    expect(page.get_by_text("off", exact=True)).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("heading", name="No secrets yet")).to_be_visible()
    assert KEY not in page.content()


def test_wrong_password_says_so_and_keeps_the_address(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/sign-in")
    page.get_by_label("E-mail").fill(EMAIL)
    page.get_by_label("Password").fill("kbtest-wrong-password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("E-mail or password is wrong")
    expect(page.get_by_label("E-mail")).to_have_value(EMAIL)
    shot(page, "sign-in")


def test_a_surely_wrong_key_is_refused_and_a_doubtful_one_can_be_saved(page: Page, server: Server) -> None:
    sign_in(page, server)
    page.goto(f"{server.url}/secrets/new")
    page.get_by_label("Provider").select_option("openai")
    page.get_by_label("Value", exact=True).fill("sk-admin-kbtest-0123456789abcdefghijklmnop")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Value", exact=True).fill("kbtest-of-an-odd-format-0123456789")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_label("Save anyway")).to_be_visible()
    page.get_by_label("Value", exact=True).fill("kbtest-of-an-odd-format-0123456789")
    page.get_by_label("Save anyway").check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("link", name="default")).to_be_visible()


def test_signing_out_ends_the_session(page: Page, server: Server, context: BrowserContext) -> None:
    sign_in(page, server)
    cookies = context.cookies()
    assert all(cookie["httpOnly"] and cookie["sameSite"] == "Lax" for cookie in cookies)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in to Keybearer")).to_be_visible()
    stolen = {str(cookie["name"]): str(cookie["value"]) for cookie in cookies}
    assert httpx2.get(f"{server.url}/api/v1/me", cookies=stolen).status_code == 401


def test_dark_and_small(page: Page, server: Server) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 740})
    sign_in(page, server)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shot(page, "dark-small")


def test_another_sites_form_changes_nothing(server: Server) -> None:
    person = servers.sign_in(server, EMAIL)
    for headers in ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
        answer = httpx2.post(f"{server.url}/tokens", data={"name": "stolen"}, headers=headers, cookies=dict(person.http.cookies))
        assert answer.status_code == 403
    assert "stolen" not in person.http.get("/tokens").text


def test_pages_carry_the_strict_policy(server: Server) -> None:
    for path in ("/sign-in", "/", "/assets/console.css", "/api/v1/me", "/nowhere"):
        answer = httpx2.get(f"{server.url}{path}")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_template_has_inline_script_or_style() -> None:
    templates = Path(servers.ROOT / "src/keybearer/console/templates")
    for template in templates.glob("*.html"):
        text = template.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style|javascript:", text), template.name

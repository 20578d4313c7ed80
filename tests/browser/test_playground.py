"""The playground: a conversation with any model, streamed, with a receipt for each answer; stopped, refused, and never kept."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest
from playwright.sync_api import Page, expect
from tests.browser.test_console import EMAIL, shot, sign_in
from tests.support import provider as mock
from tests.support import server as servers
from tests.support.provider import Provider
from tests.support.server import Person

KEY = "sk-proj-kbtest-playground-0123456789abcdefghij"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with mock.running() as running:
        yield running


@pytest.fixture(scope="module")
def ada(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with servers.running(tmp_path_factory.mktemp("playground") / "data", egress_allow="127.0.0.1") as server:
        person = servers.set_up(server, EMAIL)
        person.call("PUT", "/providers/openai", json={"base_url": provider.base_url("openai")})
        yield person


def say(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Control+Enter")


def test_a_conversation_has_a_receipt_for_each_answer(page: Page, ada: Person, provider: Provider) -> None:
    sign_in(page, ada.server)
    page.get_by_role("link", name="Playground").click()
    expect(page.get_by_text("There is no model that you have a key for yet.")).to_be_visible()
    page.get_by_role("combobox", name="Model").fill("openai/gpt-4o-mini")
    say(page, "Hello")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("key")  # what is missing, and where to add it
    expect(alert.locator(".hint")).not_to_be_empty()
    expect(page.get_by_label("Message")).to_have_value("Hello")  # what was typed is not lost
    shot(page, "playground-no-key")

    secret = ada.add_key("openai", KEY, name="work")
    page.reload()
    expect(page.get_by_role("combobox", name="Model")).not_to_have_value("")
    page.get_by_role("combobox", name="Model").fill("openai/gpt-4o-mini")
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Instructions").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    provider.forget()
    say(page, "Hello")
    log = page.get_by_role("log")
    expect(log.locator(".receipt")).to_contain_text("gpt-4o-mini")
    for told in ("Served with your key", "tokens in", "$0.0000", "req_"):
        expect(log.locator(".receipt")).to_contain_text(told)
    assert log.get_by_role("link", name="your key").get_attribute("href") == f"/secrets/{secret['id']}"
    first = log.locator(".assistant .words").inner_text()
    assert first
    say(page, "And then?")
    expect(log.locator(".receipt")).to_have_count(2)
    shot(page, "playground")
    sent = json.loads(provider.requests()[-1]["body"])
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "user"]
    assert sent["messages"][2]["content"] == first
    assert (sent["temperature"], sent["stream"]) == (0.5, True)
    assert KEY not in page.content()
    page.get_by_role("button", name="New conversation").click()
    expect(log.locator(".words")).to_have_count(0)

    uses = servers.until(lambda: ada.http.get("/api/v1/usage"), lambda found: bool(found.json()["items"])).json()["items"]
    assert {use["secret_id"] for use in uses} == {secret["id"]}


def test_a_stream_is_stopped(page: Page, ada: Person, provider: Provider) -> None:
    ada.add_key("openai", KEY, name="another")
    sign_in(page, ada.server)
    page.goto(f"{ada.server.url}/playground?model=openai/mock-chunks-500-pace-50ms")
    provider.forget()
    say(page, "Tell me a long story")
    words = page.get_by_role("log").locator(".assistant .words")
    expect(words).not_to_be_empty()  # it comes as it is said
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    servers.until(
        lambda: httpx2.get(f"{provider.url}/_mock/requests"), lambda answer: '"left"' in answer.text
    )  # and so does the provider


@pytest.mark.parametrize(("model", "said"), [("mock-429-retry-7s", "add another key"), ("mock-chunks-50-pace-20ms-cut-5", "")])
def test_a_provider_that_fails_is_told_of(page: Page, ada: Person, model: str, said: str) -> None:
    ada.add_key("openai", KEY, name=f"for {model}")
    sign_in(page, ada.server)
    page.goto(f"{ada.server.url}/playground?model=openai/{model}")
    say(page, "Hello")
    alert = page.get_by_role("alert")
    expect(alert.locator(".hint")).to_contain_text(said)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    if said:
        expect(page.get_by_label("Message")).to_have_value("Hello")
        page.goto(f"{ada.server.url}/")  # whoever looks for why sees it on the card of each key that rests
        card = page.locator(".card", has=page.get_by_role("link", name="work", exact=True))
        expect(card).to_contain_text("cooling down")
        expect(card).to_contain_text(f"The provider answered 429 (asked too often) for the model {model}.")
        shot(page, "vault-cooling")
    else:  # what came is shown, and that it was cut off
        expect(page.get_by_role("log").locator(".assistant .words")).not_to_be_empty()
        expect(page.get_by_text("Cut off.", exact=True)).to_be_visible()


def test_what_a_model_says_is_text_and_an_unknown_model_explained(page: Page, ada: Person) -> None:
    sign_in(page, ada.server)
    page.goto(f"{ada.server.url}/playground?model=openai/%3Cb%3E")
    expect(page.get_by_role("combobox", name="Model")).to_have_value("openai/<b>")
    page.get_by_role("combobox", name="Model").fill("nobody/nothing")
    say(page, "<img src=x onerror=alert(1)>")
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect(page.get_by_label("Message")).to_have_value("<img src=x onerror=alert(1)>")


def test_strangers_are_sent_to_sign_in(ada: Person) -> None:
    answer = httpx2.get(f"{ada.server.url}/playground")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")

"""Usage and the access log in the console: cost by day, key and person, the unknown called so; the log narrowed, and saved as a file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect
from tests.browser.test_console import EMAIL, shot, sign_in
from tests.support import provider as mock
from tests.support import server as servers
from tests.support.server import PASSWORD, Person

from keybearer.console.usage import chart_of, cost, dollars, group_of, tokens
from keybearer.usage.record import UsageSum

KEY = "sk-proj-kbtest-usage-page-0123456789abcdefghij"
TODAY = datetime.now(UTC).date()


def summed(group: str, requests: int, micro: int, unpriced: int, used: int = 10) -> UsageSum:
    return UsageSum((group,), requests, 0, used, used, 0, 0, micro, unpriced)


def test_what_is_not_known_is_never_nothing() -> None:
    assert cost(summed("a", 3, 0, 3)) == "unknown"
    assert cost(summed("a", 3, 1_500_000, 1)) == "$1.50 + 1 unknown"
    assert cost(summed("a", 3, 0, 0)) == "$0.00"  # free of charge, and known to be
    assert dollars(42) == "$0.000042"
    assert dollars(1_234_567_890) == "$1,234.57"
    assert tokens(summed("a", 1, 0, 1, used=0), 0) == "unknown"
    assert tokens(summed("a", 1, 0, 1, used=5), 0) == "0"


def test_a_chart_has_a_bar_for_each_day_and_a_table_the_dearest_first() -> None:
    day = TODAY - timedelta(days=1)
    chart = chart_of([summed(day.isoformat(), 2, 2_000_000, 0)], TODAY - timedelta(days=6), TODAY, "cost")
    assert [bar.height for bar in chart.bars] == [0, 0, 0, 0, 0, 120, 0]
    assert (chart.width, chart.most, chart.total) == (70, "$2.00", "$2.00")
    assert chart.bars[5].said == "$2.00"
    assert not any(bar.height for bar in chart_of([summed(day.isoformat(), 1, 0, 1)], day, TODAY, "cost").bars)
    many = [summed(f"m{place:02}", 1, place, 0) for place in range(30)]
    group = group_of("By model", "Model", many, {"m29": ("the dearest", "/x")})
    assert (group.rows[0][:2], len(group.rows), group.left_out) == (("the dearest", "/x"), 20, 10)


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """An administrator, and Bob, who both called: a priced model, one without a price, and one that fails."""
    with (
        mock.running() as provider,
        servers.running(tmp_path_factory.mktemp("usage") / "data", egress_allow="127.0.0.1") as server,
    ):
        person = servers.set_up(server, EMAIL)
        person.call("PUT", "/providers/openai", json={"base_url": provider.base_url("openai")})
        person.call("POST", "/users", json={"email": "bob@example.com", "password": PASSWORD, "name": "Bob"})
        bob = servers.sign_in(server, "bob@example.com")
        person.add_key("openai", KEY, name="work")
        bob.add_key("openai", KEY, name="bob's own")
        person.call("POST", "/budgets", json={"subject": "user", "kind": "usd_month", "amount": "5", "is_hard": False})
        for who, models in ((person, ("gpt-4o-mini", "gpt-4o-mini", "house-model")), (bob, ("house-model",))):
            headers = {"authorization": f"Bearer {who.token('caller')}"}
            for model in models:
                body = {"model": f"openai/{model}", "messages": [{"role": "user", "content": "Hello"}]}
                answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
        calls = "/api/v1/usage?limit=50"
        servers.until(
            lambda: person.http.get(calls),
            lambda answer: [row["outcome"] for row in answer.json()["items"]] == ["ok"] * 4,
        )
        yield person


def test_an_administrator_sees_cost_by_day_provider_model_key_and_person(page: Page, ada: Person) -> None:
    sign_in(page, ada.server)
    page.get_by_role("link", name="Usage").click()
    totals = page.locator(".totals")
    expect(totals).to_contain_text("+ 2 unknown")
    expect(totals).to_contain_text("Calls4")
    unpriced = page.get_by_role("region", name="by model").get_by_role("row", name="house-model")
    expect(unpriced.get_by_role("cell").last).to_have_text("unknown")
    priced = page.get_by_role("region", name="by model").get_by_role("row", name="gpt-4o-mini")
    expect(priced.get_by_role("cell").last).to_contain_text("$0.0")
    keys = page.get_by_role("region", name="by key")
    expect(keys.get_by_role("link", name="work")).to_be_visible()
    expect(keys.get_by_text(re.compile("^key [0-9a-f]{8}…$"))).to_have_count(1)
    expect(page.get_by_role("region", name="by person").get_by_role("row", name="bob@example.com")).to_contain_text("unknown")
    expect(page.get_by_role("region", name="by day").get_by_role("row", name=TODAY.isoformat())).to_contain_text("unknown")
    expect(page.get_by_role("img", name="Cost by day")).to_be_visible()
    assert page.locator(".chart rect").count() == 60
    expect(page.get_by_role("meter", name="dollars a month used")).to_be_visible()
    shot(page, "usage-week")
    page.get_by_role("combobox", name="Period").select_option("7")
    page.get_by_role("button", name="Show").click()
    assert page.locator(".chart rect").count() == 14
    page.goto(f"{ada.server.url}/usage?days=everything")  # an address says nothing of its own
    assert page.locator(".chart rect").count() == 60


def test_a_member_sees_their_own_alone(ada: Person) -> None:
    bob = servers.sign_in(ada.server, "bob@example.com").http
    shown = bob.get("/usage").text
    assert "By person" not in shown
    assert "bob&#39;s own" in shown
    assert "gpt-4o-mini" not in shown
    assert ">Admin<" not in shown


def test_the_log_is_narrowed_by_key_and_day_and_saved(page: Page, ada: Person, tmp_path: Path) -> None:
    sign_in(page, ada.server)
    page.goto(f"{ada.server.url}/access-log")
    page.get_by_role("combobox", name="Secret").select_option("work")
    page.get_by_label("What").fill("secret.use")
    page.get_by_label("Outcome").fill("ok")
    page.get_by_label("From").fill(TODAY.isoformat())
    page.get_by_label("To").fill((TODAY + timedelta(days=1)).isoformat())
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("tbody tr")).to_have_count(3)
    shot(page, "access-log-narrowed")
    for name, read in (("JSON lines", lambda text: [json.loads(line) for line in text.splitlines()]), ("CSV", _rows)):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        saved = tmp_path / download.value.suggested_filename
        download.value.save_as(saved)
        rows = read(saved.read_text())
        assert [(row["action"], row["outcome"]) for row in rows] == [("secret.use", "ok")] * 3
    page.get_by_label("From").fill("")
    page.get_by_label("To").fill((TODAY - timedelta(days=2)).isoformat())
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No record matches.")).to_be_visible()
    expect(page.get_by_role("combobox", name="Secret").locator("option:checked")).to_have_text("work")  # what was asked stays


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("query", ["since=yesterday", "until=2026-02-31", "secret=nobody", "until=9999-12-31"])
def test_what_no_day_and_no_key_is_is_explained(ada: Person, query: str) -> None:
    answer = ada.http.get(f"/access-log?{query}")
    assert answer.status_code == (200 if "9999" in query else 422)
    if answer.status_code != 200:
        assert 'role="alert"' in answer.text
        assert "JSON lines" not in answer.text


def test_an_administrator_reads_who_did_what(ada: Person) -> None:
    shown = ada.http.get("/access-log?action=secret.create").text
    assert "bob@example.com" in shown
    bob = servers.sign_in(ada.server, "bob@example.com").http.get("/access-log").text
    assert EMAIL not in bob


def test_keys_of_one_name_are_told_apart(ada: Person) -> None:
    assert ">work</a>" in ada.http.get("/usage").text
    second = ada.add_key("anthropic", "sk-ant-api03-kbtest-usage-page-0123456789abcdefghij", name="work")
    try:
        shown = ada.http.get("/access-log").text
        assert "openai / work" in shown
        assert "anthropic / work" in shown
        assert ">openai / work</a>" in ada.http.get("/usage").text
    finally:
        ada.call("POST", f"/secrets/{second['id']}/purge", status=204)

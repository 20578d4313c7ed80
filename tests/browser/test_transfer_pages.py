"""Import and export in the console: looked at first, all or nothing, and no value where a browser or the server would keep it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Request, expect
from tests.browser.test_console import EMAIL, shot, sign_in
from tests.support import server as servers
from tests.support.server import PASSWORD, Person

OPENAI = "sk-proj-kbtest-import-page-0123456789abcdefghij"
OTHER = "sk-proj-kbtest-import-page-other-0123456789abcd"
ANTHROPIC = "sk-ant-api03-kbtest-import-page-0123456789abcdef"
FILE = f"OPENAI_API_KEY={OPENAI}\nANTHROPIC_API_KEY='{ANTHROPIC}'\nPORT=8080\n"


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with servers.running(tmp_path_factory.mktemp("transfer") / "data") as server:
        yield servers.set_up(server, EMAIL)


@pytest.fixture
def sent(page: Page, ada: Person) -> list[Request]:
    """A signed-in page, and all that it sends from then on."""
    sign_in(page, ada.server)
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))  # noqa: PLW0108  # Playwright cannot take a built-in
    return requests


def names(ada: Person) -> set[tuple[str, str]]:
    return {(secret["provider"], secret["name"]) for secret in ada.call("GET", "/secrets")["items"]}


def kept_by_server(ada: Person, value: str) -> bool:
    files = [file for file in ada.server.data_dir.parent.rglob("*") if file.is_file()]
    return any(value.encode() in file.read_bytes() for file in files)


def test_a_pasted_file_is_previewed_then_imported_and_leaves_no_trace(page: Page, ada: Person, sent: list[Request]) -> None:
    page.get_by_role("link", name="Import", exact=True).click()
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("alert")).to_contain_text("nothing to import yet")
    text = page.get_by_label("Or paste it here")
    text.fill(FILE)
    assert text.evaluate("field => getComputedStyle(field).webkitTextSecurity") == "disc"
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("heading", name="Preview: 2 to be added, 1 left out")).to_be_focused()
    row = page.get_by_role("row", name="OPENAI_API_KEY")
    for said in ("line 1", "new", "openai", "default", f"{OPENAI[:4]}…{OPENAI[-4:]}"):
        expect(row).to_contain_text(said)
    assert not page.get_by_role("row", name="PORT").get_by_role("code").count()  # what is no secret is not even previewed
    shot(page, "import-preview")
    assert names(ada) == set()
    assert not kept_by_server(ada, OPENAI)

    text.fill(FILE + "XAI_API_KEY=\n")  # not what was previewed any more
    expect(page.get_by_role("button", name="Import")).to_have_count(0)
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("heading", name="Nothing would be stored")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("Mend these entries")
    expect(page.get_by_role("button", name="Import")).to_have_count(0)
    page.get_by_label("Leave out what fails").check()
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Import 2 entries").click()
    expect(page.get_by_role("heading", name="Imported: 2 added")).to_be_visible()
    expect(text).to_have_value("")
    assert names(ada) == {("openai", "default"), ("anthropic", "default")}
    shot(page, "imported")

    # Nowhere but in what was sent to be imported.
    carrying = [request for request in sent if OPENAI in f"{request.url} {request.headers} {request.post_data}"]
    assert {urlsplit(request.url).path for request in carrying} == {"/api/v1/import"}
    assert not any(OPENAI in request.url for request in sent)
    assert OPENAI not in page.content()
    page.get_by_role("link", name="To the vault").click()
    page.go_back()
    expect(page.get_by_label("Or paste it here")).to_have_value("")
    stored = page.evaluate("JSON.stringify([history.state, {...localStorage}, {...sessionStorage}])")
    assert "kbtest" not in stored
    assert not kept_by_server(ada, OPENAI)


def test_a_conflict_is_shown_and_decided(page: Page, ada: Person, sent: list[Request], tmp_path: Path) -> None:
    before = ada.add_key("mistral", "kbtest-mistral-0123456789abcdefgh")
    file = tmp_path / "keys.csv"
    file.write_text("provider,value\nmistral,kbtest-mistral-other-0123456789ab\n")
    page.goto(f"{ada.server.url}/import")
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_text("It is read; nothing has been sent.")).to_be_visible()
    expect(page.get_by_role("combobox", name="Format")).to_have_value("csv")
    expect(page.get_by_label("Or paste it here")).to_have_value("")  # read, not shown
    page.get_by_label("Take odd formats").check()
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("row", name="mistral")).to_contain_text("with another value")
    expect(page.get_by_role("alert")).to_contain_text("“Replace values”")
    shot(page, "import-conflict")
    page.get_by_label("Replace values").check()
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Import 1 entry").click()
    expect(page.get_by_role("heading", name="Imported: 1 with a new version")).to_be_visible()
    assert ada.call("GET", f"/secrets/{before['id']}")["version"] == 2


@pytest.mark.parametrize(
    ("content", "format_", "said"),
    [
        ('{"secrets": [', "json", "JSON"),
        ("\x00\x01", "env", "cannot be stored"),
        ("variable,value\nA,b,c,d\n", "csv", "cannot be stored"),
    ],
)
def test_a_broken_file_is_explained(page: Page, ada: Person, sent: list[Request], content: str, format_: str, said: str) -> None:
    before = names(ada)
    page.goto(f"{ada.server.url}/import")
    page.get_by_label("Or paste it here").fill(content)
    page.get_by_role("combobox", name="Format").select_option(format_)
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("alert")).to_contain_text(said)
    expect(page.get_by_role("button", name="Import")).to_have_count(0)
    assert names(ada) == before


def test_a_file_that_is_no_text_and_a_key_that_is_no_json(page: Page, ada: Person, sent: list[Request], tmp_path: Path) -> None:
    file = tmp_path / "keys.env"
    file.write_bytes(b"A=\xff\xfe")
    page.goto(f"{ada.server.url}/import")
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_role("alert")).to_contain_text("not UTF-8 text")
    page.get_by_label("Or paste it here").fill("OPENAI_API_KEY=x")
    page.get_by_text("The values are encrypted").click()
    page.get_by_label("With what they open, as JSON").fill("kbtest-passphrase")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("alert")).to_contain_text("is not JSON")
    assert not any("kbtest-passphrase" in (request.post_data or "") for request in sent)


def test_what_the_page_takes_the_api_takes(ada: Person) -> None:
    """A file of the largest size, full of what JSON writes with two bytes."""
    page = ada.http.get("/import").text
    (limit,) = re.findall(r'data-limit="(\d+)"', page)
    content = "OPENAI_API_KEY=kbtest-largest-0123456789\n" + ("# " + '"' * 97 + "\n") * (int(limit) // 100 - 1)
    assert int(limit) - 200 < len(content) < int(limit)
    report = ada.call("POST", "/import", json={"format": "env", "content": content, "dry_run": True})
    assert sum(report["counts"].values()) == 1
    assert f"up to {int(limit) // 1024} kB" in page


def test_members_are_not_offered_the_systems_keys(ada: Person) -> None:
    ada.call("POST", "/users", json={"email": "bob@example.com", "password": PASSWORD, "name": "Bob"})
    page = servers.sign_in(ada.server, "bob@example.com").http.get("/import").text
    assert "environment" not in page
    assert 'value="system"' not in page


def test_an_export_asks_for_the_password_and_tells_what_it_left_out(page: Page, ada: Person, sent: list[Request]) -> None:
    ada.call("DELETE", f"/secrets/{ada.add_key('groq', 'gsk_kbtest0123456789', name='gone')['id']}")
    kept = ada.add_key("openai", OTHER, name="export me")
    ada.call("POST", "/models", json={"provider": "openai", "name": "gpt-5", "api_key": "sk-proj-kbtest-models-own-0123456789ab"})
    page.goto(f"{ada.server.url}/")
    page.get_by_role("link", name="Export", exact=True).click()
    password = page.get_by_label("Your password, once more")
    password.fill("kbtest-not-the-password")
    page.get_by_role("button", name="Save the file").click()
    expect(page.get_by_role("alert")).to_contain_text("That is not your password.")
    expect(password).to_have_value("")
    shot(page, "export-refused")
    page.get_by_role("combobox", name="Format").select_option("csv")
    password.fill(PASSWORD)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the file").click()
    assert download.value.suggested_filename.endswith(".csv")
    exported = {entry["name"]: entry["value"] for entry in csv.DictReader(Path(download.value.path()).read_text().splitlines())}
    assert exported["export me"] == OTHER
    assert "gone" not in exported
    expect(page.get_by_role("status").filter(has_text="Saved a file")).to_contain_text("It is a model's own key")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(password).to_have_value("")
    assert OTHER not in page.content()
    assert PASSWORD not in page.content()
    assert {urlsplit(request.url).path for request in sent if request.method == "POST"} == {"/api/v1/export"}
    shot(page, "exported")
    log = ada.call("GET", f"/secrets/{kept['id']}/access-log")["items"]
    assert [entry["action"] for entry in log].count("secret.export") == 1

"""More tokens than a page holds: through the API, in the console, by the command line."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from tests.support import server as servers

MANY = 205


def test_whoever_lists_tokens_finds_all_of_them(tmp_path: Path) -> None:
    with servers.running(tmp_path / "data") as server:
        ada = servers.set_up(server)
        made = {ada.token(f"app {number}").split("_")[1] for number in range(MANY)}

        first = ada.call("GET", "/tokens")
        assert len(first["items"]) == 50
        found, cursor = [], None
        while True:
            page = ada.call("GET", "/tokens", params={"limit": 100} | ({"cursor": cursor} if cursor else {}))
            found += [token["id"] for token in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert len(found) == MANY
        assert set(found) == made

        shown: list[str] = []
        path: str | None = "/tokens"
        while path is not None:
            text = ada.http.get(path).text
            shown += re.findall(r"<code>kb_(\w{12})_…</code>", text)
            older = re.search(r'href="(/tokens\?cursor=[^"]+)"', text)
            path = unescape(older[1]) if older else None
        assert sorted(shown) == sorted(made)

        listed = servers.json_of(server.cli("token", "list", "--user", "ada@example.com", "--json"))
        assert {token["id"] for token in listed} == made

        team = ada.call("POST", "/teams", json={"name": "Research"})["id"]
        for path in ("/tokens", "/users", "/me/sessions", "/teams", f"/teams/{team}/members"):
            for wrong in ({"limit": 0}, {"limit": 201}, {"cursor": "kbtest"}):
                answer = ada.http.get(f"/api/v1{path}", params=wrong)
                assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), (path, wrong, answer.text)
            assert ada.call("GET", path, params={"limit": 1})["items"]

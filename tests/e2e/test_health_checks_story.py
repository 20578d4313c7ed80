"""Keys that a deployment tests about every second, on a real server with a mail server beside it, on both databases."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import provider as mock
from tests.support import server as servers
from tests.support import smtp

KEY = "sk-proj-kbtest-checked-0123456789abcdefghijklmn"


def until(met: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 30
    while not met():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_key_that_its_provider_refuses_is_told_of_once(kind: str, request: pytest.FixtureRequest, data_dir: Path) -> None:
    settings = {
        "egress_allow": "127.0.0.1",
        "health_check_every": "0.0003",
        "reminder_seconds": "1",
        "mail_from": "keys@example.com",
    }
    if kind == "postgresql":
        settings["database_url"], settings["database_direct_url"] = request.getfixturevalue("postgresql_urls")
    with mock.running("--key", f"openai={KEY}") as provider, smtp.running() as mail:
        settings["smtp_url"] = f"smtp://{smtp.USER}:{smtp.PASSWORD}@127.0.0.1:{mail.port}"
        with servers.running(data_dir, **settings) as server:
            ada = servers.set_up(server)
            ada.call("PUT", "/providers/openai", json={"base_url": provider.base_url("openai")})
            good, bad = ada.add_key("openai", KEY, "good"), ada.add_key("openai", f"{KEY}x", "bad")
            until(lambda: bool(mail.mails), server.log)
            until(lambda: ada.call("GET", f"/secrets/{good['id']}")["check_status"] == "ok", server.log)
            failed = ada.call("GET", f"/secrets/{bad['id']}")
            assert (failed["state"], failed["check_status"], failed["failed_at"] is None) == ("failed", "invalid", False)
            assert "Incorrect API key" in failed["state_reason"]
            assert ada.call("GET", f"/secrets/{good['id']}")["state"] == "active"
            page = ada.http.get(f"/secrets/{bad['id']}").text
            assert "Last tested" in page
            assert "Incorrect API key" in page
            log = ada.call("GET", f"/secrets/{bad['id']}/access-log")["items"]
            assert {row["action"] for row in log} >= {"secret.test", "secret.failed"}
            # A server that is killed in the middle of this goes on where it was, and tells nothing again.
            server.kill()
        with servers.running(data_dir, **settings) as server:
            ada = servers.sign_in(server, "ada@example.com")
            before = ada.call("GET", f"/secrets/{good['id']}")["checked_at"]
            ada.call("PATCH", f"/secrets/{good['id']}", json={"health_check_every": 0})
            ada.call("PATCH", f"/secrets/{good['id']}", json={"health_check_every": None})
            until(lambda: ada.call("GET", f"/secrets/{good['id']}")["checked_at"] != before, server.log)
            assert [mail["subject"].split(" since ")[0] for mail in mail.mails] == [
                "Your secret 'bad' for openai is refused by its provider"
            ]
            told = [row for row in ada.call("GET", "/me/notifications")["items"] if row["kind"] == "failure"]
            assert [row["secret_id"] for row in told] == [bad["id"]]
            assert KEY not in server.log.read_text()

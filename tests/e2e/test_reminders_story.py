"""A person whose key is about to expire, on a real server with a real mail server beside it, on both databases."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook
from tests.support import receiver as receivers
from tests.support import server as servers
from tests.support import smtp
from tests.support.server import Person, Server

KEY = "sk-proj-kbtest-reminded-0123456789abcdefghijkl"


@pytest.fixture
def mail() -> Iterator[smtp.MailServer]:
    with smtp.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, mail: smtp.MailServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "smtp_url": f"smtp://{smtp.USER}:{smtp.PASSWORD}@127.0.0.1:{mail.port}",
        "mail_from": "keys@example.com",
        "reminder_seconds": "1",
        "connection_allow": "127.0.0.1",
    }
    if request.param == "postgresql":
        url, direct = request.getfixturevalue("postgresql_urls")
        settings |= {"database_url": url, "database_direct_url": direct}
    with servers.running(tmp_path_factory.mktemp("reminded") / "data", **settings) as running:
        yield running


def test_a_key_that_expires_is_told_of_once(server: Server, mail: smtp.MailServer) -> None:
    ada = servers.set_up(server)
    assert ada.call("GET", "/me/notification-preferences") == {"mail": ["expiry", "rotation", "failure"]}
    with receivers.running() as receiver:
        made = ada.call("PUT", "/me/notification-webhook", json={"url": receiver.url})
        secret = remind(ada, server, mail)
        deadline = time.monotonic() + 20
        while not receiver.messages:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (message,) = receiver.messages
        verified = Webhook(made["signing_key"]).verify(message.body, message.headers)
        assert (verified["type"], verified["data"]["secret_id"]) == ("secret.expiry", secret["id"])
        assert ada.call("POST", "/me/notification-webhook/test") == {"is_taken": True, "problem": ""}
        shown = ada.call("GET", "/me/notification-webhook")
        assert (shown["preview"], shown["problem"], "signing_key" in shown) == ("http://127.0.0.1", "", False)
        assert ada.http.post("/reminders/webhook/test", follow_redirects=True).text.count("has taken a test message") == 1
        assert len(receiver.messages) == 3
        ada.call("DELETE", "/me/notification-webhook")
        ada.call("GET", "/me/notification-webhook", status=404)
        for path in ("kbtest-path", "whsec_"):
            assert path not in server.log.read_text()
    ada.call("PUT", "/me/notification-webhook", json={"url": "https://kbtest.example/#x"}, status=422)
    # The same mail server's string, stored and tested by its owner.
    draft = {"provider": "smtp", "value": f"smtp://{smtp.USER}:{smtp.PASSWORD}@127.0.0.1:{mail.port}"}
    stored = ada.call("POST", "/secrets", json=draft)
    assert ada.call("POST", f"/secrets/{stored['id']}/test")["status"] == "ok"
    wrong = ada.call("POST", "/secrets/test", json=draft | {"value": draft["value"].replace(smtp.PASSWORD, "kbtest-wrong")})
    assert (wrong["status"], "kbtest" in wrong["message"]) == ("invalid", False)


def remind(ada: Person, server: Server, mail: smtp.MailServer) -> dict[str, Any]:
    """A key that expires, told of by mail, API, console and command line."""
    secret = ada.add_key("openai", KEY, expires_at=(datetime.now(UTC) + timedelta(days=3)).isoformat())
    deadline = time.monotonic() + 20
    while not mail.mails:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (told,) = ada.call("GET", "/me/notifications")["items"]
    assert (told["secret_id"], told["kind"], told["days"], told["read_at"]) == (secret["id"], "expiry", 7, None)
    page = ada.http.get("/reminders").text
    assert page.count("Dismiss") == 2  # the button, and what it is called
    assert "1<span" in ada.http.get("/").text  # beside its name in the navigation
    ada.http.post(f"/reminders/{told['id']}/read")
    assert "Dismiss" not in ada.http.get("/reminders").text
    assert ada.call("GET", "/me/notifications")["items"][0]["read_at"]
    assert ada.call("GET", f"/secrets/{secret['id']}")["state"] == "expiring"
    token = ada.token(scopes=("secrets:use",))
    command = [sys.executable, "-m", "keybearer", "secret", "reminders", "--json"]
    environment = servers.environment(server.data_dir) | {"KEYBEARER_URL": server.url, "KEYBEARER_TOKEN": token}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert [row["secret_id"] for row in json.loads(done.stdout)] == [secret["id"]]
    time.sleep(2.5)  # further looks find nothing new
    assert len(mail.mails) == 1
    assert mail.mails[0]["to"] == "ada@example.com"
    assert "kbtest-reminded" not in mail.mails[0].as_string()
    assert smtp.PASSWORD not in server.log.read_text()
    ada.call("PUT", "/me/notification-preferences", json={"mail": ["expiry", "pigeon"]}, status=422)
    ada.call("POST", "/me/notifications/00000000-0000-0000-0000-000000000000/read", status=404)
    return secret

"""An OAuth token that expires while the gateway serves with it: refreshed once by whichever process, through a kill, to its end."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa
from tests.e2e.test_kill_workers import kill_all, two_workers
from tests.support import oauth
from tests.support import server as servers
from tests.support.oauth import OAuthProvider
from tests.support.server import Server

PAST = "2026-01-01T00:00:00.000000+00:00"
DUE = f"UPDATE secret SET refresh_at = '{PAST}', token_expires_at = '{PAST}'"
LEASE_OVER = f"UPDATE secret SET refresh_until = '{PAST}'"


class Callers:
    """Programs that call the provider through the gateway all the time."""

    def __init__(self, url: str, token: str) -> None:
        self.statuses: list[int] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(url, token)) for _ in range(6)]

    def _call(self, url: str, token: str) -> None:
        with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=30) as http:
            while not self._stop.is_set():
                self.statuses.append(http.post("/p/slack/auth.test", json={}).status_code)

    @contextmanager
    def calling(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(40)


def until(met: Callable[[], object], server: Server) -> None:
    deadline = time.monotonic() + 40
    while not met():
        assert time.monotonic() < deadline, server.log.read_text()[-4000:]
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_token_is_refreshed_once_through_expiry_kill_and_revocation(
    kind: str, request: pytest.FixtureRequest, data_dir: Path, tmp_path: Path
) -> None:
    settings, arguments = {"egress_allow": "127.0.0.1,::1,localhost", "reminder_seconds": "1"}, []
    if kind == "postgresql":
        settings["database_url"], settings["database_direct_url"] = request.getfixturevalue("postgresql_urls")
        arguments = ["--workers", "2"]

    def execute(statement: str) -> None:
        """Let time pass for the tokens, as somebody who has the database in their hands."""
        if kind == "postgresql":
            name = sa.make_url(settings["database_url"]).database
            with request.getfixturevalue("postgresql_server").connect(name) as connection:
                connection.execute(statement)
            return
        connection = sqlite3.connect(data_dir / "keybearer.db", timeout=20)
        connection.execute(statement)
        connection.commit()
        connection.close()

    with oauth.running(tmp_path) as slack:
        settings["egress_ca_file"] = str(slack.authority)
        with servers.running(data_dir, *arguments, **settings) as server:
            if arguments:
                two_workers(server)
            ada = servers.set_up(server)
            ada.call("PUT", "/providers/slack", json={"base_url": slack.url})
            parts = {"refresh_token": slack.refresh(0), "client_id": "kbtest-client", "client_secret": "kbtest-client-secret"}
            made = ada.add_key("slack", slack.access(0), oauth=parts | {"token_endpoint": f"{slack.url}/token"})
            token = ada.token()
            # Entered, it is refreshed at once, for nobody knows its end; then it expires. Calls go on all the while.
            with Callers(server.url, token).calling():
                for number in (1, 2):
                    until(lambda: slack.granted == number, server)  # noqa: B023  # awaited at once
                    until(lambda: slack.called[-1:] == [slack.access(number)], server)  # noqa: B023
                    if number == 1:
                        execute(DUE)
            assert (slack.asked, slack.refused) == (2, []), "once each, whatever the number of processes"
            served = served_with(slack)
            assert served == sorted(served), "no call went out with a token that had been replaced"
            # Everything is killed while the endpoint is being asked.
            slack.gate.clear()
            execute(DUE)
            until(lambda: slack.asked == 3, server)
            kill_all(server) if arguments else server.kill()
            slack.gate.set()
        execute(LEASE_OVER)  # a minute later
        with servers.running(data_dir, *arguments, **settings) as server:
            if arguments:
                two_workers(server, 4)
            calls = Callers(server.url, token)
            with calls.calling():
                until(lambda: slack.called[-1:] == [slack.access(3)], server)
            assert (slack.asked, slack.granted, slack.refused) == (4, 3, [])
            assert set(calls.statuses) == {200}, "calls wait for the new token"
            # The person takes the grant back at the provider.
            slack.is_over = True
            execute(DUE)
            ada = servers.sign_in(server, "ada@example.com")
            until(lambda: ada.call("GET", f"/secrets/{made['id']}")["state"] == "failed", server)
            shown = ada.call("GET", f"/secrets/{made['id']}")
            assert "invalid_grant" in shown["state_reason"]
            assert "invalid_grant" in ada.http.get(f"/secrets/{made['id']}").text
            until(lambda: [row["kind"] for row in ada.call("GET", "/me/notifications")["items"]] == ["failure"], server)
            program = servers.program(server, token)
            refused = servers.until(
                lambda: program.http.post("/p/slack/auth.test", json={}), lambda found: found.status_code != 200
            )
            assert refused.json()["error"]["code"] == "key_failed"
            assert slack.asked == 5
            for text in (slack.refresh(3), slack.access(3), "kbtest-client-secret"):
                assert text not in server.log.read_text()


def served_with(slack: OAuthProvider) -> list[int]:
    return [int(token.rpartition("-")[2]) for token in slack.called]

"""A worker fetches its database's address: over the command line and HTTP, on record, and found in no log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from tests.support import server as servers
from tests.support.server import Person

DSN = "postgresql://kbtest:kbtest-e2e-value@db.example.com/app"
ASKED = {"provider": "postgresql"}


def fetch(program: Person, asked: object = ASKED, **headers: str) -> httpx2.Response:
    return program.http.post("/api/v1/secrets/resolve", json=asked, headers=headers)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_worker_fetches_its_databases_address(kind: str, data_dir: Path, request: pytest.FixtureRequest) -> None:
    settings = {}
    if kind == "postgresql":
        url, direct = request.getfixturevalue("postgresql_urls")
        settings = {"database_url": url, "database_direct_url": direct}
    with servers.running(data_dir, **settings) as server:
        ada = servers.set_up(server)
        made = ada.add_key("postgresql", DSN, secret_type="connection_string", fetchable=True)
        token = ada.token("worker", ("secrets:read",))
        worker = servers.program(server, token)
        answer = fetch(worker, **{"x-keybearer-workflow": "nightly", "x-keybearer-node": "copy"})
        assert (answer.status_code, answer.json()["value"]) == (200, DSN), answer.text
        assert answer.headers["cache-control"] == "no-store"
        shell = servers.environment(data_dir, url=server.url, token=token)
        done = subprocess.run(
            [sys.executable, "-m", "keybearer", "secret", "fetch", made["id"]],
            env=shell, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout == DSN + "\n"

        # A browser's session fetches nothing, nor does another spelling of the path.
        assert fetch(ada).json()["code"] == "token_missing"
        other = worker.http.post("/api/v1/secrets/%72esolve", json=ASKED)
        assert (other.status_code, other.json()["code"]) == (400, "invalid_request")
        described = worker.http.get("/api/openapi.json").json()["paths"]["/api/v1/secrets/resolve"]["post"]
        assert described["responses"]["200"]["content"]["application/json"]["schema"]

        path = f"/api/v1/secrets/{made['id']}"
        shown = servers.until(lambda: ada.http.get(path), lambda found: found.json()["usage_count"] == 2).json()
        assert shown["last_used_at"]
        log = ada.call("GET", f"/secrets/{made['id']}/access-log")["items"]
        used = [entry for entry in log if entry["action"] == "secret.use"]
        assert {(entry["operation"], entry["outcome"]) for entry in used} == {("fetch", "ok")}
        assert {entry["workflow"] for entry in used} == {"nightly", ""}
        by_day = ada.call("GET", "/usage/summary?by=provider")["items"]
        assert [(row["key"], row["requests"], row["unknown_cost"]) for row in by_day] == [("postgresql", 2, 0)]

        ada.call("PATCH", f"/secrets/{made['id']}", json={"fetchable": False})
        refused = servers.until(lambda: fetch(worker), lambda found: found.status_code == 403)
        assert refused.json()["code"] == "not_fetchable"
        assert json.loads(refused.text)["hint"]
        server.stop()
        assert server.cli("audit", "verify").returncode == 0
        written = server.log.read_bytes() + b"".join(each.read_bytes() for each in data_dir.rglob("*") if each.is_file())
        assert b"kbtest-e2e-value" not in written

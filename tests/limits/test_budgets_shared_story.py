"""Two workers on PostgreSQL that count in one Valkey: as one, though a worker is killed, and though Valkey is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.e2e.test_kill_workers import workers
from tests.limits.conftest import SCOPES, World, settled
from tests.support import server as servers
from tests.support.postgresql import Server as PostgreSQL
from tests.support.provider import Provider
from tests.support.server import Person
from tests.support.valkey import Valkey

SLOW = "anthropic/claude-sonnet-4-5-mock-slow-30s"


@pytest.fixture(scope="module")
def town(
    provider: Provider, valkey: Valkey, postgresql_server: PostgreSQL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    url, direct = postgresql_server.create("kbtest_budget_shared")
    settings = {"egress_allow": "127.0.0.1", "database_url": url, "database_direct_url": direct, "redis_url": valkey.url}
    with servers.running(tmp_path_factory.mktemp("shared") / "data", "--workers", "2", **settings) as server:
        world = World(server, provider, servers.set_up(server), settings)
        for each in ("openai", "anthropic"):
            world.admin.call("PUT", f"/providers/{each}", json={"base_url": provider.base_url(each)})
        yield world
    postgresql_server.drop("kbtest_budget_shared")


def limit(world: World, person: Person, amount: float, token: str) -> dict[str, Any]:
    """Set a limit, and wait until it holds in both workers: then it has counted one call."""
    made: dict[str, Any] = person.call("POST", "/budgets", json={"subject": "user", "kind": "usd_month", "amount": amount})
    time.sleep(1)  # its bound
    patient(lambda: world.ask(token), 200)
    return made


def asked(model: str) -> dict[str, Any]:
    """A call that reserves what ``price`` says."""
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1000}


def patient(ask: Callable[[], httpx2.Response], status: int) -> None:
    """Ask until the answer is that; what is counted may have to be gathered from every process first."""
    deadline = time.monotonic() + 60
    while (answer := ask()).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)


def price(world: World, person: Person, made: dict[str, Any], token: str) -> float:
    """What one call reserves."""
    with ThreadPoolExecutor() as pool:
        before = settled(person, made)["used"]
        calling = pool.submit(world.ask, token, SLOW.replace("30s", "2s"), max_tokens=1000)
        deadline = time.monotonic() + 2
        while not (held := float(person.call("GET", f"/budgets/{made['id']}")["reserved"])):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert calling.result().status_code == 200
    assert before < settled(person, made)["used"]
    return held


def test_workers_that_share_their_counts_are_as_one(town: World) -> None:
    ada = town.person()
    token = ada.token(scopes=SCOPES)
    made = limit(town, ada, 5, token)
    each = price(town, ada, made, token)
    used = settled(ada, made)["used"]
    ada.call("PATCH", f"/budgets/{made['id']}", json={"amount": round(used + 10.5 * each, 6)})
    time.sleep(1)
    heard = town.heard()
    headers, body = {"authorization": f"Bearer {token}"}, asked(SLOW.replace("30s", "10s"))
    limits = httpx2.Limits(max_connections=40)
    with (  # each on a connection of its own: the kernel gives them to both workers
        httpx2.Client(base_url=town.server.url, headers=headers, limits=limits, timeout=60) as client,
        ThreadPoolExecutor(40) as pool,
    ):
        answers = [pool.submit(client.post, "/v1/chat/completions", json=body) for _ in range(40)]
        codes = Counter(answer.result().status_code for answer in answers)
    assert codes == {200: 10, 429: 30}
    assert town.heard() == heard + 10


def test_without_valkey_hard_limits_refuse_and_the_rest_is_served(town: World, valkey: Valkey) -> None:
    ada, free = town.person(), town.person()
    token, other = ada.token(scopes=SCOPES), free.token(scopes=SCOPES)
    made = limit(town, ada, 5, token)
    assert town.ask(other).status_code == 200
    before = settled(ada, made)["used"]
    valkey.kill()
    heard = town.heard()
    for _ in range(4):
        refused = town.ask(token)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "limits_unreachable"), refused.text
        assert refused.json()["error"]["hint"]
        assert refused.headers["retry-after"]
    assert town.heard() == heard
    assert town.ask(other).status_code == 200
    # From the database, once what the call cost has arrived there.
    servers.until(
        lambda: ada.http.get(f"/api/v1/budgets/{made['id']}"), lambda answer: answer.json()["used"] == pytest.approx(before)
    )
    valkey.start()
    patient(lambda: town.ask(token), 200)
    assert settled(ada, made)["used"] > before
    assert valkey.password not in town.server.log.read_text()


def test_what_a_killed_worker_had_reserved_counts_in_full(town: World) -> None:
    ada = town.person()
    token = ada.token(scopes=SCOPES)
    made = limit(town, ada, 5, token)
    each = price(town, ada, made, token)
    used = settled(ada, made)["used"]

    data = json.dumps(asked(SLOW)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gw\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n"
    )
    address = urlsplit(town.server.url)
    with contextlib.ExitStack() as calls:
        for _ in range(8):
            call = calls.enter_context(socket.create_connection((address.hostname, address.port)))
            call.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        deadline = time.monotonic() + 20
        while ada.call("GET", f"/budgets/{made['id']}")["reserved"] < 7.5 * each:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(min(workers(town.server)), signal.SIGKILL)
    patient(lambda: town.ask(token), 200)
    shown = ada.call("GET", f"/budgets/{made['id']}")
    assert shown["used"] + shown["reserved"] == pytest.approx(used + 8 * each, rel=0.01)


def test_a_wrong_password_ends_the_start_and_is_not_shown(town: World, valkey: Valkey) -> None:
    wrong = valkey.url.replace(valkey.password, "kbtest-wrong-password")
    environment = town.server.environment | {"KEYBEARER_REDIS_URL": wrong}
    command = [sys.executable, "-m", "keybearer", "serve", "--port", "0", "--workers", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "error: Limits cannot be counted in Valkey" in done.stderr
    assert "hint: " in done.stderr
    assert "kbtest-wrong" not in done.stdout + done.stderr

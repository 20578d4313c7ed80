"""Strangers are told so before what they send is read: not waited for, not decoded, whatever it is."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.support import server as servers
from tests.support.server import Person

BRACKETS = b"[" * 500_000
PROMISED = 500_000


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with servers.running(tmp_path_factory.mktemp("gate") / "data") as server:
        yield servers.set_up(server)


def routes_with_bodies(ada: Person) -> list[tuple[str, str]]:
    """Every method and path of the API that takes a body, as its own description tells."""
    paths = ada.http.get("/api/openapi.json").json()["paths"]
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, methods in paths.items()
        for method, told in methods.items()
        if "requestBody" in told
    ]


FETCH = "/api/v1/secrets/resolve"
"""Taken by tokens alone, and before the API."""
OPEN = {"/api/v1/auth/setup", "/api/v1/auth/sign-in"}


def head_of(ada: Person, method: str, path: str, *fields: str) -> tuple[bytes, bytes]:
    """Send a request's head that promises a body, and nothing of the body; return the answer's head and the rest."""
    address = urlsplit(ada.server.url)
    lines = [f"{method} {path} HTTP/1.1", f"host: {address.netloc}", "content-type: application/json", *fields]
    lines += [f"content-length: {PROMISED}", "", ""]
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=5) as connection:
        connection.sendall("\r\n".join(lines).encode())
        said = b""
        while b"\r\n\r\n" not in said:
            said += connection.recv(65536)
    head, _, rest = said.partition(b"\r\n\r\n")
    return head, rest


def test_every_route_with_a_body_asks_who_calls_first(ada: Person) -> None:
    found = routes_with_bodies(ada)
    assert len(found) > 10
    for method, path in found:
        answer = httpx2.request(
            method, f"{ada.server.url}{path}", content=BRACKETS, headers={"content-type": "application/json"}, timeout=20
        )
        if path in OPEN:
            assert answer.status_code in {400, 422}, (method, path, answer.text)
            continue
        code = "token_missing" if path == FETCH else "unauthenticated"
        assert (answer.status_code, answer.json()["code"]) == (401, code), (method, path, answer.text)
        assert answer.json()["hint"]
        assert answer.headers["www-authenticate"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("field", "status", "code"),
    [
        ("x-nothing: 1", 401, "unauthenticated"),
        ("authorization: Bearer kb_kbtest", 401, "token_invalid"),
        ("cookie: keybearer_session=kbtest", 403, "csrf_failed"),
    ],
)
def test_the_refusal_does_not_wait_for_the_body(ada: Person, field: str, status: int, code: str) -> None:
    head, _ = head_of(ada, "POST", "/api/v1/secrets", field)
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
    answer = ada.server.url + "/api/v1/secrets"
    name, _, value = field.partition(": ")
    assert httpx2.post(answer, content=BRACKETS, headers={name: value}, timeout=20).json()["code"] == code


def test_forms_of_strangers_are_not_read_either(ada: Person) -> None:
    for path in ("/secrets/new", "/tokens", "/sign-out"):
        head, _ = head_of(ada, "POST", path)
        assert head.startswith(b"HTTP/1.1 303 "), (path, head)
        assert b"location: /sign-in" in head
    head, rest = head_of(ada, "POST", "/tokens", "cookie: keybearer_session=kbtest", "origin: https://elsewhere.example")
    assert head.startswith(b"HTTP/1.1 403 "), head
    assert b"content-security-policy: default-src 'none'" in head
    assert b"application/json" not in rest


def test_whoever_may_is_read_as_before(ada: Person) -> None:
    token = ada.token("gate", scopes=("secrets:write",))
    with servers.program(ada.server, token).http as http:
        answer = http.post("/api/v1/secrets", content=BRACKETS, headers={"content-type": "application/json"})
        assert answer.json()["code"] in {"invalid_json", "invalid_request"}
        draft = {"provider": "openai", "value": "sk-proj-kbtest-0123456789abcdefghijklmnopqrstuv"}
        assert http.post("/api/v1/secrets", json=draft).status_code == 201

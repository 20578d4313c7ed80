"""No stored byte is plaintext: 200 marked secrets are stored, used and broken; then everything is searched for them."""

from __future__ import annotations

import base64
import secrets as random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.e2e.conftest import World, settle
from tests.support import server as servers
from tests.support.postgresql import Server as PostgreSQL
from tests.support.provider import Provider
from tests.support.server import Person, Server

CHAT = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}


def markers(count: int) -> list[str]:
    return [f"sk-kbtest-leak-{random.token_hex(16)}" for _ in range(count)]


def forms(value: str) -> list[bytes]:
    """A value as it could hide: plain, base64 at each offset, hex, UTF-16."""
    raw = value.encode()
    whole = [base64.b64encode(b"\0" * pad + raw)[4:-4] for pad in range(3)]
    return [raw, raw.hex().encode(), raw.decode().encode("utf-16-le"), *whole]


def use_and_break(world: World, person: Person, values: list[str], answers: list[bytes]) -> str:
    """Store each value, use each, provoke errors around them; collect every answer. Returns the token used."""
    token = person.token("leaks", ("gateway:use", "secrets:write"))
    made = [person.add_key("openai", value, name=f"leak-{number}", priority=1) for number, value in enumerate(values)]
    answers.extend(str(one).encode() for one in made)
    with servers.program(world.server, token).http as http:
        unused = {one["id"] for one in made}
        deadline = time.monotonic() + 30
        while unused:  # they take turns
            assert time.monotonic() < deadline, f"{len(unused)} were not used"
            answer = http.post("/v1/chat/completions", json=CHAT)
            unused.discard(answer.headers["x-keybearer-secret-id"])
            answers.append(repr(answer.headers).encode() + answer.content)
        for number in range(0, len(values), 20):
            for model in ("openai/mock-401", "openai/mock-401-echo", "openai/mock-500-echo", "openai/mock-badjson"):
                answer = http.post("/v1/chat/completions", json={**CHAT, "model": model})
                answers.append(repr(answer.headers).encode() + answer.content)
            answers.extend(provoke(person, values[number], made[number]["id"], number))
    answers.append(str(person.call("GET", "/secrets?limit=200")).encode())
    answers.append(person.http.get("/").content)
    answers.append(person.http.get("/access-log").content)
    return token


def provoke(person: Person, value: str, secret_id: str, number: int) -> list[bytes]:
    """Send a value where it does not belong."""
    tries = [
        person.http.post(
            "/api/v1/secrets", json={"provider": "openai", "name": f"leak-{number}", "value": value, "save_anyway": True}
        ),
        person.http.post("/api/v1/secrets", json={"provider": value, "name": "x", "value": value}),
        person.http.post("/api/v1/secrets", json={"provider": "openai", "name": "y", "value": value + "\n\x00", "oops": value}),
        person.http.patch(f"/api/v1/secrets/{secret_id}", json={"priority": value}),
        person.http.post("/api/v1/secrets/test", json={"provider": "openai", "value": value}),
        person.http.post("/secrets/new", data={"provider": "openai", "name": f"leak-{number}", "value": value}),
        person.http.get(f"/api/v1/secrets/{secret_id}"),
    ]
    assert all(answer.status_code < 500 for answer in tries)
    return [repr(answer.headers).encode() + answer.content for answer in tries]


def search(haystacks: dict[str, bytes], values: list[str]) -> list[str]:
    return [
        f"{where}: {form[:24]!r}"
        for where, text in haystacks.items()
        for value in values
        for form in forms(value)
        if form in text
    ]


def haystacks_of(server: Server, answers: list[bytes]) -> dict[str, bytes]:
    """Every file of the data directory but the key, the log, the answers."""
    found = {str(path): path.read_bytes() for path in server.data_dir.rglob("*") if path.is_file()}
    return found | {"log": server.log.read_bytes(), "banner": server.banner.encode(), "answers": b"\n".join(answers)}


def test_nothing_stored_or_answered_holds_a_secret(provider: Provider, data_dir: Path) -> None:
    values, answers = markers(200), list[bytes]()
    with servers.running(data_dir, egress_allow="127.0.0.1", log_level="debug") as server:
        world = settle(server, provider)
        token = use_and_break(world, world.admin, values, answers)
        values += [token, servers.PASSWORD, server.setup_token]
        live = haystacks_of(server, answers)
        server.kill()
        with pytest.raises(AssertionError):
            assert not search({"control": values[0].encode()}, values)  # the search itself works
        live["banner"] = b""  # shows the set-up link on purpose
        at_rest = haystacks_of(server, []) | {"banner": b""}
        assert not search(live, values)
        assert not search(at_rest, values)


def test_nothing_in_a_postgresql_dump_holds_a_secret(
    provider: Provider, data_dir: Path, postgresql_server: PostgreSQL, postgresql_urls: tuple[str, str]
) -> None:
    values, answers = markers(40), list[bytes]()
    url, direct = postgresql_urls
    with servers.running(data_dir, egress_allow="127.0.0.1", database_url=url, database_direct_url=direct) as server:
        world = settle(server, provider)
        token = use_and_break(world, world.admin, values, answers)
        dumped = dump(postgresql_server.admin, direct)
        assert b"COPY secret\n" in dumped
        assert values[0][-4:].encode() in dumped, "the preview shows that the dump sees rows"
        assert not search(
            {"dump": dumped, "answers": b"\n".join(answers)}, [*values, token, servers.PASSWORD, server.setup_token]
        )


def dump(admin: str, url: str) -> bytes:
    """The whole database as text, table by table, with the eyes of a superuser: forced policies hide rows from the owner."""
    script = (
        "import psycopg, sys\n"
        "with psycopg.connect(sys.argv[1]) as c:\n"
        "  for (t,) in c.execute(\"select quote_ident(tablename) from pg_tables where schemaname = 'public'\").fetchall():\n"
        "    with c.cursor().copy(f'COPY {t} TO STDOUT') as copy:\n"
        "      sys.stdout.buffer.write(f'COPY {t}\\n'.encode())\n"
        "      for row in copy: sys.stdout.buffer.write(bytes(row))\n"
    )
    whole = sa.make_url(admin).set(drivername="postgresql", database=sa.make_url(url).database)
    plain = whole.render_as_string(hide_password=False)
    text = subprocess.run([sys.executable, "-c", script, plain], capture_output=True, timeout=60, check=True).stdout
    # bytea is printed as hex: decode what could hide a value
    pieces = [bytes.fromhex(word[3:].decode()) for word in text.split() if word.startswith(b"\\\\x") and len(word) % 2 == 1]
    return text + b"\n".join(pieces)

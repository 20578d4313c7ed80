"""Importing as people do it: with a preview over HTTP, on the command line, on the server, from a real OpenBao. On both databases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from hashlib import pbkdf2_hmac
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from tests.e2e.conftest import KEYS, World, settle
from tests.support import openbao
from tests.support import server as servers
from tests.support.provider import Provider
from tests.support.server import PASSWORD, Person

NEW = "sk-proj-kbtest-imported-0123456789abcdefghijkl"
MASTER = b"kbtest-master-passphrase"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = {"egress_allow": "127.0.0.1", "fallback": "system"}
    if request.param == "postgresql":
        url, direct = request.getfixturevalue("postgresql_urls")
        settings |= {"database_url": url, "database_direct_url": direct}
    with servers.running(tmp_path_factory.mktemp("import") / "data", **settings) as server:
        yield settle(server, provider)


def member(world: World, name: str) -> Person:
    world.admin.call("POST", "/users", json={"email": f"{name}@example.com", "password": PASSWORD, "name": name})
    return servers.sign_in(world.server, f"{name}@example.com")


def key_sent(world: World, token: str) -> str:
    world.provider.forget()
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx2.post(
        f"{world.server.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {token}"}, timeout=30
    )
    assert answer.status_code == 200, answer.text
    return str(world.provider.requests()[-1]["headers"]["authorization"].removeprefix("Bearer "))


def shell(environment: dict[str, str], *arguments: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "keybearer", *arguments],
        env=environment, input=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "kbtest-imported" not in done.stdout + done.stderr
    return done


def test_a_pasted_env_file_is_previewed_and_its_key_then_used(world: World) -> None:
    bob = member(world, "bob")
    body = {"format": "env", "content": f'export OPENAI_API_KEY="{NEW}"\nPORT=1\n'}
    dry = bob.call("POST", "/import", json=body | {"dry_run": True})
    assert bob.call("GET", "/secrets")["items"] == []
    done = bob.call("POST", "/import", json=body)
    assert done["results"] == dry["results"]
    assert (done["applied"], done["counts"]) == (True, {"create": 1, "unknown": 1})
    assert bob.call("POST", "/import", json=body)["counts"] == {"unchanged": 1, "unknown": 1}
    assert "kbtest-imported" not in json.dumps([dry, done])
    assert key_sent(world, bob.token("app")) == NEW
    log = bob.call("GET", "/audit")["items"]
    assert "secret.import" in {row["action"] for row in log}
    weak = servers.program(world.server, bob.token("weak"))
    weak.call("POST", "/import", json=body, status=403)
    bob.call("POST", "/import", json={"format": "environment"}, status=403)
    bob.call("POST", "/import", json=body | {"system": True}, status=403)
    bob.call("POST", "/import", json=body | {"form": "x"}, status=422)
    raw = b'{"format": "json", "content": "{\\"OPENAI_API_KEY\\": \\"kbtest\\ud800\\"}"}'
    refused = bob.http.post("/api/v1/import", content=raw, headers={"content-type": "application/json"})
    assert refused.status_code in {200, 400, 422}
    assert "kbtest" not in refused.text


def test_ciphertexts_of_earlier_key_stores_are_opened_with_what_is_given(world: World) -> None:
    eve = member(world, "eve")
    values = {name: f"{KEYS['openai']}{name}" for name in ("one", "two", "three")}
    key = Fernet.generate_key()
    plain = [{"provider": "openai", "name": "one", "value": Fernet(key).encrypt(values["one"].encode()).decode()}]
    fernet = {"format": "json", "content": json.dumps(plain), "encryption": {"scheme": "fernet", "keys": [key.decode()]}}
    derived = pbkdf2_hmac("sha512", MASTER, b"kbtest-salt", 100_000, 32)
    iv = os.urandom(16)
    encryptor = Cipher(algorithms.AES(derived), modes.GCM(iv)).encryptor()
    encryptor.authenticate_additional_data(b"keys")
    sealed = encryptor.update(values["two"].encode()) + encryptor.finalize()
    parts = {"iv": iv, "tag": encryptor.tag, "ciphertext": sealed}
    gcm_item = {"provider": "openai", "name": "two", "value": {name: b64encode(part).decode() for name, part in parts.items()}}
    gcm_how = {
        "scheme": "pbkdf2-aes-256-gcm",
        "passphrase": MASTER.decode(),
        "salt": "kbtest-salt",
        "digest": "sha512",
        "aad": "keys",
    }
    gcm = {"format": "json", "content": json.dumps([gcm_item]), "encryption": gcm_how}
    own = urlsafe_b64encode(pbkdf2_hmac("sha256", MASTER, b"user-7", 50_000, 32))
    row = f"openai,three,7,{Fernet(own).encrypt(values['three'].encode()).decode()}"
    user_how = {"scheme": "pbkdf2-fernet", "passphrase": MASTER.decode(), "salt": "user-{user_id}", "iterations": 50_000}
    user = {"format": "csv", "content": f"provider,name,user_id,value\n{row}\n", "encryption": user_how}
    for body in (fernet, gcm, user):
        wrong: dict[str, Any] = {**body, "encryption": {**body["encryption"], "passphrase": "kbtest-wrong"}}  # type: ignore[dict-item]
        if body is fernet:
            wrong["encryption"] = {"scheme": "fernet", "keys": [Fernet.generate_key().decode()]}
        report = eve.call("POST", "/import", json=wrong)
        assert (report["applied"], report["results"][0]["outcome"]) == (False, "invalid")
        assert "does not open" in report["results"][0]["reason"]
        assert eve.call("POST", "/import", json=body)["counts"] == {"create": 1}
        assert eve.call("POST", "/import", json=body)["counts"] == {"unchanged": 1}
    token = eve.token("app")
    for item in eve.call("GET", "/secrets")["items"]:
        others = {"one", "two", "three"} - {item["name"]}
        for other in eve.call("GET", "/secrets")["items"]:
            eve.call("PATCH", f"/secrets/{other['id']}", json={"is_active": other["name"] not in others})
        deadline = time.monotonic() + 5  # a second is the bound; the rest is a busy machine's
        while (sent := key_sent(world, token)) != values[item["name"]]:
            assert time.monotonic() < deadline, item["name"]
        assert sent.endswith(item["name"])
    eve.call("POST", "/import", json={**fernet, "encryption": {"scheme": "fernet", "keys": ["kbtest-short"]}}, status=422)
    eve.call("POST", "/import", json={**gcm, "encryption": {"scheme": "pbkdf2-fernet"}}, status=422)


def test_on_the_command_line_and_on_the_server(world: World, tmp_path: Path) -> None:
    zoe = member(world, "zoe")
    token = zoe.token("cli", ("secrets:use", "secrets:write"))
    remote = servers.environment(world.server.data_dir, url=world.server.url, token=token)
    file = tmp_path / ".env"
    file.write_text(f"OPENAI_API_KEY={NEW}\n")
    assert "Would import: 1 create" in shell(remote, "import", str(file), "--dry-run").stdout
    assert json.loads(shell(remote, "import", str(file), "--json").stdout)["counts"] == {"create": 1}
    piped = shell(remote, "import", "-", "--format", "csv", stdin=f"variable,value\nOPENAI_API_KEY,{NEW}x\n", code=1)
    assert "--replace" in piped.stderr
    shell(remote, "import", "-", "--replace", stdin=f"OPENAI_API_KEY={NEW}x\n")
    assert "one source" in shell(remote, "import", code=1).stderr
    assert "UTF-8" in shell(remote, "import", sys.executable, code=1).stderr
    local = world.server.environment | {"GROQ_API_KEY": "gsk_kbtestA1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4"}
    report = json.loads(shell(local, "import", str(file), "--user", "zoe@example.com", "--dry-run", "--json", code=1).stdout)
    assert report["counts"] == {"conflict": 1}
    shell(local, "import", "--from-environment", "--system")
    system = world.admin.call("GET", "/secrets?owner=system")["items"]
    assert ("groq", "default") in {(item["provider"], item["name"]) for item in system}
    shell(local, "import", str(file), "--user", "nobody@example.com", code=1)


def test_from_a_real_openbao(world: World) -> None:
    with openbao.running() as bao:
        bao.call("POST", "secret/data/llm/openai", {"data": {"api_key": NEW + "bao", "note": " "}})
        bao.call("POST", "secret/data/llm/anthropic/work", {"data": {"api_key": KEYS["anthropic"] + "bao"}})
        bao.call("POST", "secret/data/app", {"data": {"GEMINI_API_KEY": "AIza" + "kbtest-" + "x" * 28, "PORT": "8080"}})
        bao.call("POST", "secret/data/gone", {"data": {"XAI_API_KEY": "kbtest"}})
        bao.call("DELETE", "secret/data/gone")
        max_ = member(world, "max")
        token = max_.token("cli", ("secrets:use", "secrets:write"))
        remote = servers.environment(world.server.data_dir, url=world.server.url, token=token)
        policy = 'path "secret/data/*" { capabilities = ["read"] }\npath "secret/metadata/*" { capabilities = ["list"] }'
        reading = remote | {"BAO_TOKEN": bao.token_for(policy)}
        done = json.loads(shell(reading, "import", "--openbao", bao.address, "--json").stdout)
        assert done["counts"] == {"create": 3, "unknown": 1}
        found = {(item["provider"], item["name"]) for item in max_.call("GET", "/secrets")["items"]}
        assert found == {("openai", "default"), ("anthropic", "work"), ("gemini", "default")}
        again = json.loads(shell(reading, "import", "--openbao", bao.address, "--json").stdout)
        assert again["counts"] == {"unchanged": 3, "unknown": 1}
        assert "no secrets" in shell(reading, "import", "--openbao", bao.address, "--path", "none", code=1).stderr
        denied = remote | {"BAO_TOKEN": bao.token_for('path "other" { capabilities = ["read"] }')}
        assert "refuses this token" in shell(denied, "import", "--openbao", bao.address, code=1).stderr
    assert "does not answer" in shell(reading, "import", "--openbao", bao.address, code=1).stderr
    assert "https://" in shell(reading, "import", "--openbao", "http://bao.example", code=1).stderr
    assert "BAO_TOKEN" in shell(remote, "import", "--openbao", "https://bao.example", code=1).stderr


def test_an_export_takes_the_password_again(world: World, tmp_path: Path) -> None:
    kim = member(world, "kim")
    kim.add_key("openai", NEW)
    kim.add_key("gemini", KEYS["gemini"], fetchable=True)
    for password in ("", "kbtest-wrong-password"):
        refused = kim.call("POST", "/export", json={"format": "json", "password": password}, status=401)
        assert refused["code"] == "sign_in_failed"
    made = kim.call("POST", "/export", json={"format": "env", "password": PASSWORD})
    assert (made["count"], made["left_out"]) == (2, [])
    assert f'OPENAI_API_KEY="{NEW}"' in made["content"]
    log = [row["action"] for row in kim.call("GET", "/audit")["items"]]
    assert log.count("secret.export") >= 3
    token = kim.token("cli", ("secrets:read",))
    remote = servers.environment(world.server.data_dir, url=world.server.url, token=token)
    file = tmp_path / "export.json"
    assert "may be used, but not read" in shell(remote, "export", str(file)).stdout.replace("\n", " ")
    assert [each["value"] for each in json.loads(file.read_text())["secrets"]] == [KEYS["gemini"]]
    assert file.stat().st_mode & 0o777 == 0o600
    assert "cannot be written" in shell(remote, "export", str(file), code=1).stderr
    whole = tmp_path / "whole.csv"
    done = json.loads(
        shell(world.server.environment, "export", str(whole), "--format", "csv", "--user", "kim@example.com", "--json").stdout
    )
    assert done["count"] == 2
    assert NEW in whole.read_text()
    servers.program(world.server, kim.token("weak")).call("POST", "/export", json={"format": "json"}, status=403)

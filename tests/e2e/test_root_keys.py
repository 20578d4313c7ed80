"""A server whose root key is held elsewhere: it asks at its start and never again, and says what to do where it gets no answer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from tests.support import aws, cloud_kms, openbao
from tests.support import server as servers
from tests.support.server import Server

VALUE = "sk-proj-kbtest-root-0123456789abcdefghijklmnop"


class Service:
    """A provider that can be taken away."""

    def __init__(self, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._end = contextlib.ExitStack()
        self.settings = {"root_key_provider": provider}
        if provider == "passphrase":
            self.settings |= {"root_key_passphrase": "kbtest correct horse battery staple"}
        elif provider == "aws-kms":
            running = self._end.enter_context(aws.running(monkeypatch))
            self.settings |= {"aws_kms_key": running.key(), "aws_region": aws.REGION, "aws_kms_endpoint": running.endpoint}
        elif provider == "gcp-kms":
            service = self._end.enter_context(cloud_kms.running())
            self.settings |= {"gcp_kms_key": f"{cloud_kms.RING}/one", "gcp_kms_endpoint": service.endpoint}
        elif provider == "openbao":
            bao = self._end.enter_context(openbao.running())
            self.settings |= {"openbao_address": bao.address, "openbao_token": bao.token, "openbao_transit_key": "one"}
        self.settings["kms_timeout"] = "5"

    def stop(self) -> None:
        self._end.close()


@pytest.fixture(params=["passphrase", "aws-kms", "gcp-kms", "openbao"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    made = Service(request.param, monkeypatch)
    yield made
    made.stop()


def refused(data_dir: Path, **settings: str) -> str:
    """Start a server that must not start; what it says."""
    done = Server("", data_dir, None, "", data_dir, servers.environment(data_dir, **settings)).cli(  # type: ignore[arg-type]
        "serve", "--port", "0", check=False
    )
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert "hint:" in done.stderr
    return done.stderr


def test_it_is_asked_at_the_start_and_its_outage_stops_nobody(service: Service, database: dict[str, str], data_dir: Path) -> None:
    settings = service.settings | database
    with servers.running(data_dir, **settings) as server:
        servers.set_up(server).add_key("openai", VALUE)
        assert not (data_dir / "root.key").exists()
    with servers.running(data_dir, **settings) as server:
        service.stop()
        person = servers.sign_in(server, "ada@example.com")
        assert person.call("GET", "/secrets")["items"][0]["has_api_key"]
        made = person.add_key("anthropic", "sk-ant-api03-kbtest-root-0123456789abcdefghij")
        person.call("PATCH", f"/secrets/{made['id']}", json={"fetchable": True})  # opens and seals
        assert server.cli("user", "list", check=False).returncode == (0 if "passphrase" in str(settings) else 1)
    if settings["root_key_provider"] != "passphrase":
        assert "does not answer" in refused(data_dir, **settings)


def test_a_provider_that_is_not_named_any_more(database: dict[str, str], data_dir: Path) -> None:
    settings = database | {"root_key_provider": "passphrase", "root_key_passphrase": "kbtest correct horse battery staple"}
    with servers.running(data_dir, **settings):
        pass
    said = refused(data_dir, **database)
    assert "KEYBEARER_ROOT_KEY_PASSPHRASE" in said
    assert "held by passphrase, not by file" in said
    wrong = settings | {"root_key_passphrase": "kbtest another horse battery staple"}
    said = refused(data_dir, **wrong)
    assert "Wrong root key" in said
    assert "horse" not in said
    assert not (data_dir / "root.key").exists()


PHRASE = "kbtest recovery horse battery staple"


def test_a_lost_key_file_is_recovered_from_a_backup(database: dict[str, str], data_dir: Path, tmp_path: Path) -> None:
    kept, older = tmp_path / "kept.json", tmp_path / "older.json"
    with servers.running(data_dir, **database) as server:
        servers.set_up(server).add_key("openai", VALUE)
        server.cli("key", "backup", str(older), "--passphrase-stdin", stdin=f"{PHRASE}\n")
        server.cli("key", "rotate")
        server.cli("key", "backup", str(kept), "--passphrase-stdin", stdin=f"{PHRASE}\n")
        assert kept.stat().st_mode & 0o777 == 0o600
        again = server.cli("key", "backup", str(kept), "--passphrase-stdin", stdin=f"{PHRASE}\n", check=False)
        assert "cannot be written" in again.stderr
        weak = server.cli("key", "backup", str(tmp_path / "weak"), "--passphrase-stdin", stdin="kbtest\n", check=False)
        assert "too weak" in weak.stderr
        assert not (tmp_path / "weak").exists()
    lost = (data_dir / "root.key").read_text().strip()
    assert lost not in kept.read_text()
    (data_dir / "root.key").unlink()
    assert "is missing" in refused(data_dir, **database)

    def restore(path: Path, phrase: str) -> str:
        done = server.cli("key", "restore", str(path), "--passphrase-stdin", stdin=f"{phrase}\n", check=False)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    (tmp_path / "broken.json").write_text(kept.read_text()[:200])
    foreign = re.sub(r'"deployment": "[^"]+"', f'"deployment": "{uuid4()}"', kept.read_text())
    (tmp_path / "other.json").write_text(foreign)
    assert "no backup" in restore(tmp_path / "broken.json", PHRASE)
    assert "another deployment's" in restore(tmp_path / "other.json", PHRASE)
    assert "cannot be read" in restore(tmp_path / "nowhere.json", PHRASE)
    assert "older than" in restore(older, PHRASE)
    assert "Wrong root key" in restore(kept, PHRASE + "r")
    assert "horse" not in restore(kept, PHRASE + "r")
    assert "2 root key(s) are held by file now" in restore(kept, PHRASE)
    with servers.running(data_dir, **database) as server:
        person = servers.sign_in(server, "ada@example.com")
        (secret,) = person.call("GET", "/secrets")["items"]
        person.call("PATCH", f"/secrets/{secret['id']}", json={"fetchable": True})  # opens
        assert person.call("GET", "/audit", params={"action": "root_key.restore"})["items"]
        assert server.cli("audit", "verify").returncode == 0
    assert (data_dir / "root.key").read_text().strip() != lost

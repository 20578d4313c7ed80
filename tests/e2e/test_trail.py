"""The sealed trail as people use it: checkpoints pushed to a file, proofs, exports, and verification with nothing but files."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.support.server import Person, Server, program, running, set_up, sign_in, until

from keybearer.audit import archive as archives
from keybearer.audit import merkle, notes
from keybearer.audit import proof as proofs
from keybearer.audit.notes import Verifier


@pytest.fixture
def server(tmp_path: Path, database_urls: tuple[str, str]) -> Iterator[Server]:
    url, direct = database_urls
    settings = {"audit_checkpoints": str(tmp_path / "checkpoints"), "audit_seal_seconds": "1"}
    if url.startswith("postgresql"):
        settings |= {"database_url": url, "database_direct_url": direct}
    with running(tmp_path / "data", **settings) as server:
        yield server


def sealed(ada: Person) -> dict[str, Any]:
    """Wait until all that is on record is sealed; return the checkpoint."""
    newest = ada.call("GET", "/audit?limit=1")["items"][0]
    until(
        lambda: ada.http.get(f"/api/v1/audit/{newest['writer_id']}/{newest['seq']}/proof"),
        lambda answer: answer.status_code == 200,
    )
    checkpoint: dict[str, Any] = ada.call("GET", "/audit/checkpoint")
    return checkpoint


def test_checkpoints_proofs_and_exports(server: Server, tmp_path: Path) -> None:
    ada = set_up(server)
    ada.add_key("openai", "sk-proj-kbtest-0123456789abcdefghijklmnopqrst")
    server.cli("user", "create", "--email", "ben@example.com", "--password-stdin", stdin="kbtest-password-correct-horse\n")
    ben = sign_in(server, "ben@example.com")
    hostile = '=HYPERLINK("http://kbtest")'
    ben.add_key("anthropic", "sk-ant-api03-kbtest-0123456789abcdefghijklmnop", name=hostile)
    first = sealed(ada)
    verifier = Verifier.parse(first["public_key"])
    assert notes.opened(first["checkpoint"], verifier).size == first["size"]
    _proves(ada, verifier)
    _proves_alone(server, ada, first, tmp_path)
    _exports(ada, ben, hostile)
    ben.call("GET", "/audit/export?format=archive", status=403)
    archive = tmp_path / "archive.jsonl"
    archive.write_bytes(ada.http.get("/api/v1/audit/export?format=archive").content)
    server.stop()  # it ships, seals and pushes what there is
    kept = tmp_path / "checkpoints"
    assert len(notes.split(kept.read_text())) >= 1
    newest = json.loads(server.cli("audit", "checkpoint", "--json").stdout)
    assert newest["public_key"] == first["public_key"]
    assert newest["size"] > first["size"]
    report = json.loads(server.cli("audit", "verify", "--json", "--public-key", first["public_key"]).stdout)
    assert (report["ok"], report["tree"]["pushed"] >= 1) == (True, True)
    _verifies_alone(server, archive, kept, first["public_key"])


def _proves(ada: Person, verifier: Verifier) -> None:
    """Checked as the documentation says, with nothing of ours but the tree's arithmetic."""
    records = [row for row in ada.call("GET", "/audit?limit=200")["items"] if row["action"] == "secret.create"]
    row = next(row for row in records if row["provider"] == "openai")
    proof = ada.call("GET", f"/audit/{row['writer_id']}/{row['seq']}/proof")
    checkpoint = notes.opened(proof["checkpoint"], verifier)
    writer = bytes.fromhex(row["writer_id"].replace("-", ""))
    leaf = sha256(b"\0" + writer + row["seq"].to_bytes(8, "big") + base64.b64decode(proof["d"])).digest()
    assert base64.b64decode(proof["leaf_hash"]) == leaf
    hashes = [base64.b64decode(each) for each in proof["hashes"]]
    merkle.check_inclusion(leaf, proof["index"], checkpoint.size, hashes, checkpoint.root)
    between = ada.call("GET", f"/audit/consistency?from=1&to={checkpoint.size}")
    assert between["hashes"]
    ada.call("GET", "/audit/consistency?from=5&to=1", status=422)
    ada.call("GET", f"/audit/{row['writer_id']}/999999/proof", status=404)


def _proves_alone(server: Server, ada: Person, first: dict[str, Any], tmp_path: Path) -> None:
    """The same by the command line, with answers in files: against a checkpoint kept earlier, of the log as it has grown since."""
    kept, proof, between = (tmp_path / name for name in ("kept", "proof.json", "between.json"))
    kept.write_text(first["checkpoint"])
    ada.token("later", ("secrets:use",))
    later = sealed(ada)
    row = ada.call("GET", "/audit?limit=1&action=secret.create")["items"][0]
    proof.write_bytes(ada.http.get(f"/api/v1/audit/{row['writer_id']}/{row['seq']}/proof").content)
    size = notes.Checkpoint.parse(json.loads(proof.read_bytes())["checkpoint"]).size
    assert size >= later["size"] > first["size"]
    between.write_bytes(ada.http.get(f"/api/v1/audit/consistency?from={first['size']}&to={size}").content)
    alone = ("audit", "verify", "--proof", str(proof), "--checkpoint", str(kept), "--public-key", first["public_key"])
    said = json.loads(server.cli(*alone, "--json").stdout)
    assert (said["seq"], said["size"], said["compared"], len(said["notes"])) == (row["seq"], size, 0, 1)
    assert "same log: 1" in server.cli(*alone, "--consistency", str(between)).stdout
    verifier = Verifier.parse(first["public_key"])
    # What was changed proves nothing: another record, another log, another key, no answer at all.
    answer, steps = json.loads(proof.read_bytes()), json.loads(between.read_bytes())
    for changed, told, wrong in (
        (answer | {"seq": row["seq"] + 1}, steps, "not in the tree"),
        (answer | {"checkpoint": answer["checkpoint"].replace(f"\n{size}\n", f"\n{size + 1}\n")}, steps, "signature is wrong"),
        (answer, steps | {"hashes": steps["hashes"][::-1]}, "contradicts a checkpoint"),
        ([], steps, "Expected `object`"),
    ):
        with pytest.raises(ValueError, match=wrong):
            proofs.check(json.dumps(changed).encode(), verifier, [first["checkpoint"]], json.dumps(told).encode())
    proof.write_text(json.dumps(answer | {"seq": row["seq"] + 1}))
    assert "not in the tree" in server.cli(*alone, check=False).stderr
    proof.write_text("[]")
    assert "no answer of the API" in server.cli(*alone, check=False).stderr


def _exports(ada: Person, ben: Person, hostile: str) -> None:
    answer = ben.http.get("/api/v1/audit/export")
    mine = [json.loads(line) for line in answer.text.splitlines()]
    assert {row["action"] for row in mine} >= {"session.sign_in", "secret.create", "audit.export"}
    assert "anthropic" in answer.text
    assert "openai" not in answer.text  # Ada's
    answer = ben.http.get("/api/v1/audit/export?format=csv&action=secret.create")
    assert answer.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(answer.text, newline=""))
    assert (row["action"], row["provider"]) == ("secret.create", "anthropic")
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row.values())
    filtered = ada.http.get("/api/v1/audit/export?provider=anthropic").text
    assert "secret.create" in filtered
    assert "openai" not in filtered
    assert [row["provider"] for row in ada.call("GET", "/audit?provider=openai")["items"]] == ["openai"]
    assert ada.call("GET", "/audit?provider=%22")["items"] == []
    # A token without the scope exports nothing, and the attempt is on record.
    token = ada.token("narrow", ("secrets:use",))
    program(ada.server, token).call("GET", "/audit/export", status=403)
    assert [row["outcome"] for row in ada.call("GET", "/audit?action=audit.export&outcome=scope_missing")["items"]]


def _verifies_alone(server: Server, archive: Path, kept: Path, public_key: str) -> None:
    """In a place that knows no server, and no key but the public one."""
    alone = ("audit", "verify", "--archive", str(archive), "--checkpoint", str(kept), "--public-key", public_key)
    server.environment = {name: value for name, value in server.environment.items() if not name.startswith("KEYBEARER_")}
    assert "verifies" in server.cli(*alone).stdout
    lines = archive.read_bytes().splitlines(keepends=True)
    archive.write_bytes(b"".join(lines[:-1]))
    assert "cut off" in server.cli(*alone, check=False).stderr
    _changes_are_named(lines, Verifier.parse(public_key), notes.split(kept.read_text()))
    for wrong in (("--archive", "/nowhere"), ("--public-key", "kbtest")):
        done = server.cli("audit", "verify", "--archive", str(archive), *wrong, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")


def _changes_are_named(lines: list[bytes], verifier: Verifier, kept: list[str]) -> None:
    assert archives.verify(lines, verifier, kept)[0].problems == ()
    record = json.loads(lines[3])
    named = f"entry {record['seq']} of writer {record['writer']}", f"stand where {record['index']} and"
    for changed in (
        [*lines[:3], lines[3].replace(b'"line":"{', b'"line":" {'), *lines[4:]],
        [*lines[:3], *lines[4:]],
        [*lines[:3], lines[4], lines[3], *lines[5:]],
        [*lines[:3], lines[3].replace(record["d"].encode(), bytes(32).hex().encode()), *lines[4:]],
        [*lines[:3], lines[3].replace(record["h"].encode(), bytes(32).hex().encode()), *lines[4:]],
        [*lines[:4], lines[3], *lines[4:]],
    ):
        first, *_ = archives.verify(changed, verifier, kept)[0].problems
        assert any(text in str(first) for text in (*named, "stand where 3 and"))
    # Whoever writes another history has no signature for it.
    with pytest.raises(notes.NoteError):
        archives.verify([lines[0].replace(b"keybearer/", b"keybearer/x"), *lines[1:]], verifier, kept)
    assert archives.verify(lines, verifier, [kept[-1].replace("\n", "\n1", 1)])[0].problems
    with pytest.raises(notes.NoteError, match="no archive"):
        archives.verify([b"rubbish\n"], verifier)

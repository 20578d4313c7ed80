"""`keybearer secret …` against a running server: what the API can do with a secret, the command line can."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support import server as servers
from tests.support.server import Person

KEY = "sk-proj-kbtest-cli-0123456789abcdefghijklmnop"
OTHER = "sk-proj-kbtest-cli-zyxwvutsrqponmlkjihgfedcb"


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with servers.running(tmp_path_factory.mktemp("cli") / "data") as server:
        yield servers.set_up(server)


class Shell:
    """A terminal with the two variables set."""

    def __init__(self, ada: Person, token: str) -> None:
        self.environment = servers.environment(ada.server.data_dir, url=ada.server.url, token=token)

    def run(self, *arguments: str, stdin: str = "", code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "keybearer", "secret", *arguments],
            env=self.environment, input=stdin, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    def json(self, *arguments: str, stdin: str = "") -> Any:
        return json.loads(self.run(*arguments, "--json", stdin=stdin))


def test_a_secrets_life_on_the_command_line(ada: Person) -> None:
    scopes = ("secrets:use", "secrets:write", "secrets:read", "audit:read", "usage:read")
    shell = Shell(ada, ada.token("shell", scopes))
    made = shell.json(
        "add", "openai", "--name", "work", "--tag", "team", "--tag", "prod", "--priority", "5", "--expires", "2099-01-31T12:00:00Z",
        "--rotation-days", "90", "--allow-model", "gpt-5", "--description", "For the workshop", stdin=KEY + "\n",
    )  # fmt: skip
    assert (made["name"], made["tags"], made["priority"], made["rotation_period"]) == ("work", ["team", "prod"], 5, 90)
    assert (made["allowed_models"], made["version"], made["state"]) == (["gpt-5"], 1, "active")
    secret = made["id"]
    changed = shell.json("update", secret, "--expires", "never", "--rotation-days", "never", "--allow-all", "--fetchable")
    assert (changed["expires_at"], changed["rotate_at"], changed["allowed_models"]) == (None, None, None)
    assert (changed["fetchable"], changed["tags"], changed["description"]) == (True, ["team", "prod"], "For the workshop")
    assert [row["id"] for row in shell.json("list", "--tag", "prod", "--state", "active", "--search", "WORK")] == [secret]
    assert shell.json("list", "--state", "expired") == []
    assert "work" in shell.run("list")
    rotated = shell.json("rotate", secret, "--overlap-hours", "2", stdin=OTHER)
    assert (rotated["version"], rotated["fallback_version"]) == (2, 1)
    assert [(row["version"], row["state"]) for row in shell.json("versions", secret)] == [(2, "current"), (1, "fallback")]
    assert shell.run("reveal", secret) == OTHER + "\n"
    assert "Version 3" in shell.run("rollback", secret)
    assert shell.json("reveal", secret)["value"] == KEY
    assert "Disabled" in shell.run("disable", secret)
    assert json.loads(shell.run("show", secret))["state"] == "inactive"
    assert "is switched off" in shell.run("reveal", secret, code=1)
    shell.run("enable", secret)
    assert f"secret restore {secret}" in shell.run("delete", secret)
    assert [row["state"] for row in shell.json("list", "--state", "deleted")] == ["deleted"]
    assert shell.json("restore", secret, "--name", "back")["name"] == "back"
    actions = [row["action"] for row in shell.json("access-log", secret)]
    assert {"secret.create", "secret.rotate", "secret.reveal", "secret.rollback", "secret.restore"} <= set(actions)
    assert shell.json("usage", secret) == []
    shell.run("purge", secret, stdin="n\n", code=1)
    assert shell.run("purge", secret, "--yes") == "Purged.\n"
    assert "hint:" in shell.run("restore", secret, code=1)


def test_an_oauth_tokens_parts_come_as_json_on_standard_input(ada: Person) -> None:
    shell = Shell(ada, ada.token("shell", ("secrets:use", "secrets:write")))
    parts = {"value": "kbtest-access-0123456789abcdef", "refresh_token": "kbtest-refresh-0123456789abcd", "scopes": ["read"]}
    made = shell.json("add", "calendar", "--type", "oauth_token", "--oauth", stdin=json.dumps(parts))
    assert made["oauth"] == {"refresh_token": "kbte…abcd", "scopes": "1"}
    changed = shell.json("update", made["id"], "--oauth", stdin=json.dumps({"refresh_token": "kbtest-refresh-9876543210zyxw"}))
    assert (changed["version"], changed["oauth"]["refresh_token"]) == (2, "kbte…zyxw")
    for wrong in ("", "[]", "{"):
        assert "no JSON object" in shell.run("update", made["id"], "--oauth", stdin=wrong, code=1)


def test_what_is_refused_is_told_without_the_value(ada: Person) -> None:
    shell = Shell(ada, ada.token("shell", ("secrets:use", "secrets:write")))
    for arguments, stdin in (
        (("add", "openai"), "sk-admin-kbtest-0123456789abcdefghij"),
        (("add", "openai"), KEY + " " + KEY),
        (("add", "openai"), ""),
        (("add", "openai", "--expires", "2020-01-01T00:00:00Z"), KEY),
        (("add", "openai", "--rotation-days", "often"), KEY),
        (("add", "nobody"), KEY),
        (("list", "--state", "ok"), ""),
        (("reveal", "no-such-id"), ""),
    ):
        said = shell.run(*arguments, stdin=stdin, code=1)
        assert said.startswith("error: "), said
        assert "kbtest" not in said

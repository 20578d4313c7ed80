"""Long commands show on a terminal how far they are, and nothing of it where nobody watches."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from tests.e2e.conftest import settle
from tests.support import server as servers
from tests.support.provider import Provider

from keybearer.cli.progress import bar


@pytest.mark.timeout(300)  # a dozen commands, each a process
def test_long_commands_show_how_far_they_are(provider: Provider, database: dict[str, str], data_dir: Path) -> None:
    archive, file = data_dir.parent / "audit.archive", data_dir.parent / "all.backup"
    plain, sealed, how = (data_dir.parent / name for name in ("plain.json", "sealed.json", "how.json"))
    plain.write_text(json.dumps({f"OPENAI_API_KEY_{number}": f"sk-kbtest-{number}-0123456789abcdef" for number in range(2)}))
    token = Fernet(Fernet.generate_key()).encrypt(b"kbtest")
    entries = [{"variable": f"XAI_{number}", "value": token.decode(), "salt": f"kbtest-{number}"} for number in range(3)]
    sealed.write_text(json.dumps(entries))
    how.write_text(json.dumps({"scheme": "pbkdf2-fernet", "passphrase": "kbtest", "salt": "", "iterations": 1_500_000}))
    user = ("--user", "ada@example.com")
    with servers.running(data_dir, egress_allow="127.0.0.1", **database) as server:
        world = settle(server, provider)
        for arguments, said in (
            (("import", str(plain), "--save-anyway", *user), ("storing", "2/2")),
            (("import", str(sealed), "--encryption", str(how), "--skip-failed", *user), ("opening", "1/3")),
            (("export", str(data_dir.parent / "all.json"), *user), ("secrets",)),
            (("key", "rotate"), ("waiting for running processes to unwrap it", "done", "2/2")),
            (("key", "rotate", "--all-owners"), ("done", "5/5")),
            (("backup", str(file)), ()),
            (("audit", "verify"), ("records", "tree")),
            (("audit", "export", "--format", "archive", "--output", str(archive)), ("pages",)),
            (("audit", "verify", "--archive", str(archive)), ("records",)),
        ):
            shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", server.watched_cli(*arguments))  # colours and moves of the cursor
            for each in (*said, "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * 10, "0:00:0"):
                assert each in shown, (arguments, each, shown)
            assert "kbtest" not in shown
        over_http = server.environment | {"KEYBEARER_URL": server.url, "KEYBEARER_TOKEN": world.token}
        assert "the server imports" in servers.watched(over_http, "import", str(plain), "--save-anyway")
        unwatched = server.cli("key", "rotate")
        assert unwatched.stderr == ""
        assert unwatched.stdout == "The root key was rotated.\n"
        assert server.watched_cli("key", "rotate", "--json") == ""
    elsewhere = data_dir.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    shutil.copy2(data_dir / "root.key", elsewhere)
    shown = servers.watched(servers.environment(elsewhere), "restore", str(file))
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in shown
    assert "0:00:0" in shown


def test_what_is_quoted_neither_marks_up_nor_steers_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with bar() as show:
        show("proving: kbtest [/b] [red]denied[/red] \x1b]0;title\x07", 1, 2)
    shown = screen.getvalue()
    assert "kbtest [/b] [red]denied[/red] \N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}" in shown


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True

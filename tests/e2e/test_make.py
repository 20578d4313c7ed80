"""`make serve` in a checkout, as the README tells: the first run, the second, and Ctrl+C."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import threading
from pathlib import Path

import httpx2
import pytest
from tests.support import server as servers

NOT_CHECKED_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".cache", "node_modules", "__pycache__", ".*_cache", "data", "demo-data"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project in which everything is installed already: nothing is downloaded."""
    path = tmp_path / "keybearer"
    shutil.copytree(servers.ROOT, path, ignore=NOT_CHECKED_OUT)
    installed = path / ".venv"
    installed.mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (installed / part).symlink_to((servers.ROOT / ".venv").resolve() / part)
    (installed / ".stamp").touch()
    return path


class Make:
    """`make serve` at a terminal: its own process group, which Ctrl+C interrupts as a whole."""

    def __init__(self, checkout: Path) -> None:
        # The installed package is the project's own folder; here it is the copy's.
        settings = {"PYTHONPATH": str(checkout / "src"), "KEYBEARER_PORT": "0", "PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}
        env = servers.environment(checkout / "data") | settings
        del env["KEYBEARER_DATA_DIR"]
        self.process = subprocess.Popen(
            ["make", "serve"],
            cwd=checkout, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.said = ""

    def read_until(self, last: str) -> str:
        """Read what is printed until a line holds ``last``."""
        assert self.process.stdout is not None
        stuck = threading.Timer(60, self.process.kill)
        stuck.start()
        while last not in self.said:
            line = self.process.stdout.readline()
            assert line, self.said
            self.said += line
        stuck.cancel()
        return self.said

    def interrupt(self) -> str:
        """Press Ctrl+C; return everything that was printed."""
        os.killpg(self.process.pid, signal.SIGINT)
        rest, _ = self.process.communicate(timeout=40)
        return self.said + rest


def answers(url: str) -> bool:
    """Whether the server works: what comes before is waited for, as the port is bound by then."""
    return bool(httpx2.get(f"{url}/readyz", timeout=30).json() == {"status": "ready"})


def test_make_serve_runs_first_and_again_and_ends_with_ctrl_c(checkout: Path) -> None:
    first = Make(checkout)
    said = first.read_until("README.md")
    url = re.search(r"console +(http://127\.0\.0\.1:\d+)/\n", said)
    assert url, said
    # What a first run prints, in this order.
    data, key = checkout / "data" / "keybearer.db", checkout / "data" / "root.key"
    wanted = ["console", "set up", f"{url[1]}/setup#", "gateway", f"{url[1]}/v1", "data", str(data), "root key", str(key)]
    wanted += ["back this key up", "next:"]
    places = [said.find(words) for words in wanted]
    assert -1 not in places, said
    assert places == sorted(places), said
    assert stat.S_IMODE((checkout / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert answers(url[1])
    link = re.search(r"/setup#(\S+)", said)
    assert link, said
    account = {"token": link[1], "email": "ada@example.com", "password": servers.PASSWORD, "name": "Ada"}
    assert httpx2.post(f"{url[1]}/api/v1/auth/setup", json=account, headers={"origin": url[1]}, timeout=30).status_code == 201
    whole = first.interrupt()
    assert "Traceback" not in whole
    assert "pip install" not in whole

    sealed = key.read_bytes()
    second = Make(checkout)
    said = second.read_until("root key")
    assert "set up" not in said, "there is an administrator already"
    url = re.search(r"console +(http://127\.0\.0\.1:\d+)/\n", said)
    assert url, said
    assert answers(url[1])
    assert "Traceback" not in second.interrupt()
    assert key.read_bytes() == sealed

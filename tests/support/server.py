"""A real server as a child process, as `keybearer serve` starts it, and a person who set it up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parent.parent.parent
PASSWORD = "kbtest-password-correct-horse"


@dataclass
class Server:
    """One running server."""

    url: str
    data_dir: Path
    process: subprocess.Popen[str]
    banner: str = field(repr=False)
    log: Path
    environment: dict[str, str] = field(repr=False, default_factory=dict)
    people: list[Person] = field(repr=False, default_factory=list)

    @property
    def setup_token(self) -> str:
        found = re.search(r"/setup#(\S+)", self.banner)
        assert found, self.banner
        return found.group(1)

    def stop(self) -> int:
        """End it as an operator would; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def kill(self) -> None:
        """End it as the kernel would."""
        self.process.kill()
        self.process.wait(10)

    def cli(self, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run an operator command on this server's data."""
        done = subprocess.run(
            [sys.executable, "-m", "keybearer", *arguments],
            env=self.environment, input=stdin, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def watched_cli(self, *arguments: str) -> str:
        """Run an operator command on this server's data with a terminal for its standard error, as ``watched`` does."""
        return watched(self.environment, *arguments)


def watched(environment: dict[str, str], *arguments: str) -> str:
    """Run a command with a terminal for its standard error; what was shown there, every state of it."""
    terminal, end = os.openpty()
    with open(terminal, "rb", buffering=0) as screen:  # noqa: PTH123  # no path
        process = subprocess.Popen(
            [sys.executable, "-m", "keybearer", *arguments],
            env=environment | {"TERM": "xterm-256color", "COLUMNS": "120"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=end,
        )  # fmt: skip
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # Linux says so when the last writer is gone
            while part := screen.read(65536):
                shown += part
    assert process.wait(60) == 0, shown
    return shown.decode()


def cli_process(server: Server, *arguments: str) -> subprocess.Popen[bytes]:
    """Start an operator command on a server's data, to be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "keybearer", *arguments],
        env=server.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """The environment of a server under test: nothing of the machine's own Keybearer settings."""
    # Nor to compile everything anew at each start: `make serve` does not, either.
    unwanted = ("KEYBEARER_", "PYTHONDONTWRITEBYTECODE")
    base = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    given = {f"KEYBEARER_{name.upper()}": value for name, value in settings.items()}
    return base | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", "KEYBEARER_DATA_DIR": str(data_dir)} | given


def start(data_dir: Path, *arguments: str, **settings: str) -> Server:
    """Start `keybearer serve --port 0` and wait until it answers."""
    env = environment(data_dir, **settings)
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log = data_dir.parent / f"{data_dir.name}.log"
    with log.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "keybearer", "serve", "--port", "0", *arguments],
            env=env, cwd=data_dir.parent, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        return _answering(process, data_dir, log, env)
    except BaseException:
        # A test that was timed out, perhaps: its server must not go on beside all others.
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()  # not read to its end: workers hold it until they notice
        raise


def _answering(process: subprocess.Popen[str], data_dir: Path, log: Path, env: dict[str, str]) -> Server:
    assert process.stdout is not None
    banner = ""
    deadline = time.monotonic() + 60
    url = None
    while url is None:
        line = process.stdout.readline()
        banner += line
        assert line or process.poll() is None, f"the server ended with {process.wait()}: {banner}{log.read_text()}"
        assert time.monotonic() < deadline, banner
        if found := re.search(r"gateway\s+(https?://\S+?)/v1", line):
            url = found.group(1)
    server = Server(url, data_dir, process, banner, log, env)
    wait_ready(server, deadline)
    while not server.banner.endswith("README.md\n") and "set up" in server.banner:
        server.banner += process.stdout.readline()
    return server


def wait_ready(server: Server, deadline: float) -> None:
    """Wait until `/readyz` answers 200."""
    while True:
        assert server.process.poll() is None, server.log.read_text()
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(f"{server.url}/readyz", timeout=5, verify=False).status_code == 200:
                return
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.02)


@contextlib.contextmanager
def running(data_dir: Path, *arguments: str, **settings: str) -> Iterator[Server]:
    """A server for the length of a block."""
    server = start(data_dir, *arguments, **settings)
    try:
        yield server
    finally:
        try:
            if server.process.poll() is None:
                server.stop()
        finally:
            if server.process.poll() is None:
                server.kill()
        for person in server.people:
            person.http.close()
        assert server.process.stdout is not None
        server.process.stdout.close()


@dataclass
class Person:
    """Somebody signed in to a server, or a program with their token."""

    server: Server
    http: httpx2.Client = field(repr=False)

    def __post_init__(self) -> None:
        self.server.people.append(self)

    def call(self, method: str, path: str, *, status: int | None = None, **options: Any) -> Any:
        """One API call; returns the decoded body. `status`: what is expected, else any success."""
        answer = self.http.request(method, f"/api/v1{path}", **options)
        expected = answer.status_code < 300 if status is None else answer.status_code == status
        assert expected, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def token(self, name: str = "test", scopes: tuple[str, ...] = ("gateway:use",), **more: Any) -> str:
        """Create an access token; returns it whole."""
        made = self.call("POST", "/tokens", json={"name": name, "scopes": list(scopes), **more})
        return str(made["token"])

    def add_key(self, provider: str, value: str, name: str = "default", **more: Any) -> dict[str, Any]:
        """Store a key, whatever it looks like."""
        draft = {"provider": provider, "name": name, "value": value, "save_anyway": True, **more}
        return dict(self.call("POST", "/secrets", json=draft))


def set_up(server: Server, email: str = "ada@example.com") -> Person:
    """Redeem the set-up link as a browser would: the first administrator, signed in."""
    person = browser(server)
    person.call("POST", "/auth/setup", json={"token": server.setup_token, "email": email, "password": PASSWORD, "name": "Ada"})
    return person


def browser(server: Server) -> Person:
    """Somebody not signed in yet; sends what a same-origin page sends."""
    headers = {"origin": server.url, "sec-fetch-site": "same-origin"}
    return Person(server, httpx2.Client(base_url=server.url, headers=headers, timeout=30))


def sign_in(server: Server, email: str, password: str = PASSWORD) -> Person:
    """Sign in with a password."""
    person = browser(server)
    person.call("POST", "/auth/sign-in", json={"email": email, "password": password})
    return person


def program(server: Server, token: str) -> Person:
    """A program with an access token."""
    return Person(server, httpx2.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}, timeout=30))


def heard(person: Person) -> None:
    """Wait until the server's one process has heard of all changes made so far.

    They are heard in order: a token of the person's that was in use, and is refused, tells that its deletion was the last.
    """
    made = person.call("POST", "/tokens", json={"name": "heard", "scopes": ["gateway:use"]})
    with httpx2.Client(base_url=person.server.url, headers={"authorization": f"Bearer {made['token']}"}, timeout=30) as http:
        assert http.get("/v1/models").status_code != 401
        person.call("DELETE", f"/tokens/{made['id']}")
        until(lambda: http.get("/v1/models"), lambda answer: answer.status_code == 401)


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    """Decode what a command printed with --json."""
    return json.loads(done.stdout)


SHIPPED_WITHIN = 15.0
"""Seconds until a use is in the log or in the usage, of many calls on a busy machine: shipping rests for up to ten."""


def until(ask: Callable[[], httpx2.Response], met: Callable[[httpx2.Response], bool], within: float = 5.0) -> httpx2.Response:
    """Ask until a change has reached the process; a second is its bound, and some more a busy machine's."""
    deadline = time.monotonic() + within
    while True:
        answer = ask()
        if met(answer):
            return answer
        assert time.monotonic() < deadline, f"{answer.status_code} {answer.text}"
        time.sleep(0.02)

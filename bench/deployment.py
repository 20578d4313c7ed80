"""Keybearer as people run it, for the long runs: server processes on SQLite or PostgreSQL, an administrator, calls of the API."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.support.postgresql import shared_server

from bench.processes import BIN, ROOT, SERVER_CORE, Process, Unavailable, free_port, run, start, wait_for

Database = Literal["sqlite", "postgresql"]

EMAIL = "bench@example.com"
PASSWORD = "kbtest-correct-horse-battery"
_SCOPES = (
    *("gateway:use", "secrets:use", "secrets:read", "secrets:write", "providers:write", "models:write", "teams:write"),
    *("tokens:write", "budgets:write", "usage:read", "audit:read", "admin"),
)
_START = 180.0
_ANSWER = 60.0


@dataclass
class Deployment:
    """Running servers on one database, the first of them asked for changes."""

    directory: Path
    settings: Mapping[str, str]
    ports: list[int] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    token: str = field(default="", repr=False)
    """An administrator's, with every scope."""
    _api: http.client.HTTPConnection | None = None

    def serve(self, *, workers: int = 1, command: Sequence[str] = (str(BIN / "keybearer"),)) -> Process:
        """Start one more server, with a data directory of its own."""
        number, port = len(self.ports), free_port()
        arguments = ["serve", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
        process = start([*command, *arguments], self.directory / f"server{number}.log", SERVER_CORE, self.environment(number))
        self.ports.append(port)
        self.processes.append(process)
        wait_for(process, f"http://127.0.0.1:{port}/readyz", _START)
        return process

    def environment(self, number: int = 0) -> dict[str, str]:
        """What a server and the operator's commands for it are told. All share one root key."""
        return {
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "KEYBEARER_DATA_DIR": str(self.directory / f"data{number}"),
            "KEYBEARER_ROOT_KEY_FILE": str(self.directory / "root.key"),
            "KEYBEARER_LOG_LEVEL": "warning",
            **self.settings,
        }

    def set_up(self) -> None:
        """The first administrator, and their token."""
        command, env = str(BIN / "keybearer"), self.environment()
        run([command, "admin", "create", "--email", EMAIL, "--password-stdin"], env, 60, PASSWORD)
        self.token = self.new_token(EMAIL, "bench", _SCOPES)

    def new_token(self, email: str, name: str, scopes: Sequence[str]) -> str:
        """Make somebody a token, as the operator does."""
        asked = [part for scope in scopes for part in ("--scope", scope)]
        command = [str(BIN / "keybearer"), "token", "create", "--user", email, "--name", name, *asked, "--json"]
        return str(json.loads(run(command, self.environment(), 60))["token"])

    def call(self, method: str, path: str, body: Any = None, *, token: str = "") -> Any:
        """One call of the first server's API, on a connection that is kept. Raises ``Unavailable`` for anything but success."""
        status, found = self.ask(method, path, body, token=token)
        if status >= 300:
            raise Unavailable(f"{method} {path}: {status} {found}")
        return found

    def ask(self, method: str, path: str, body: Any = None, *, token: str = "") -> tuple[int, Any]:
        """Likewise, with the status."""
        headers = {"authorization": f"Bearer {token or self.token}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        for is_last in (False, True):
            api = self._api or http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=_ANSWER)
            self._api = api
            try:
                api.request(method, f"/api/v1{path}", data, headers)
                answer = api.getresponse()
                said = answer.read()
            except (OSError, http.client.HTTPException) as error:
                api.close()
                self._api = None
                if is_last:
                    raise Unavailable(f"{method} {path}: {error!r}") from None
                continue  # it was idle for too long
            return answer.status, json.loads(said) if said else None
        raise AssertionError

    def leave(self) -> None:
        """Close the connection for calls of the API."""
        if self._api is not None:
            self._api.close()
            self._api = None

    def stop(self) -> None:
        """End the servers."""
        self.leave()
        for process in self.processes:
            process.stop()


@contextlib.contextmanager
def deployment(directory: Path, kind: Database, **settings: str) -> Iterator[Deployment]:
    """A deployment without a server yet, on an empty database; all its servers are ended with the block."""
    directory.mkdir(parents=True, exist_ok=True)
    found = dict(settings)
    if kind == "postgresql":
        server = shared_server(directory, os.getpid())
        url, direct = server.create("bench")
        found |= {"KEYBEARER_DATABASE_URL": url, "KEYBEARER_DATABASE_DIRECT_URL": direct}
    made = Deployment(directory, found)
    try:
        yield made
    finally:
        made.stop()

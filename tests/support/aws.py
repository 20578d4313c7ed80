"""AWS as moto plays it, in this process's threads, on a port of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
import pytest
from moto.server import ThreadedMotoServer

REGION = "eu-central-1"


@dataclass
class Aws:
    """A running server."""

    endpoint: str

    def kms(self) -> boto3.client:
        """A client as an administrator would use it."""
        return boto3.client("kms", region_name=REGION, endpoint_url=self.endpoint)

    def key(self) -> str:
        """Make a key; its ARN."""
        return str(self.kms().create_key()["KeyMetadata"]["Arn"])


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    """AWS with made-up credentials in the environment, where boto3 looks for them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "kbtest-access-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "kbtest-secret-key")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Aws(f"http://{host}:{port}")
    finally:
        server.stop()

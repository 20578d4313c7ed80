"""A real uvicorn server running the data plane on loopback, a scripted provider behind it, everything else real but small."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
import trustme
import uvicorn

from keybearer.access.tokens import generate
from keybearer.audit.journal import Journal
from keybearer.audit.segments import entries
from keybearer.catalog import Catalog, Registry, with_base_url
from keybearer.domain import Credential, Grant, KeySource, Owner, OwnerKind, Role, Scope, SecretBytes
from keybearer.errors import KeyMissing, TokenInvalid
from keybearer.gateway.credentials import Credentials
from keybearer.gateway.egress import EgressPolicy, egress_set
from keybearer.gateway.limits import Limits
from keybearer.gateway.plane import Plane
from keybearer.gateway.protocol import PLANE, GatewayProtocol
from keybearer.gateway.upstream import Upstream
from keybearer.store import changes
from keybearer.store.changes import Feed
from keybearer.store.db import Actor, Database
from tests.plane.wire import Answer, Connection, Provider, connect, fixed

USER = UUID(int=7)
KEY = "sk-kbtest-0123456789abcdefghijklmnopqrstuvwxyz"
CHAT = json.dumps(
    {"id": "c1", "object": "chat.completion", "model": "gpt-4o-mini", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}
).encode()
PROMPT = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hello"}]}'
STREAM = b'{"model":"gpt-4o-mini","stream":true,"stream_options":{"include_usage":true},"messages":[]}'


@pytest.fixture(scope="session", params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: the server runs on uvloop, and on asyncio where that is not to be had."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}

"""``keybearer demo``: the real server with a mock provider beside it and sample data in its own directory."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from pathlib import Path

import httpx2

from keybearer import app, config, mock
from keybearer.access.tokens import NewToken
from keybearer.cli.operator import Operator, opened
from keybearer.cli.output import say
from keybearer.config import Settings
from keybearer.domain import Caller, Role, Scope, SecretBytes
from keybearer.errors import NotFound
from keybearer.vault.drafts import NewSecret

EMAIL = "demo@example.com"
# Made up: the mock provider takes any key that is marked so.
SAMPLE_KEYS = {
    "openai": "sk-proj-kbtest-demo-openai-000000000000000000000",
    "anthropic": "sk-ant-api03-kbtest-demo-anthropic-00000000000000",
    "gemini": "AIzaSy-kbtest-demo-gemini-0000000000000",
}
SAMPLE_CALLS = (
    ("/v1/chat/completions", {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}, "summaries"),
    ("/v1/chat/completions", {"model": "openai/mock-429", "messages": [{"role": "user", "content": "Hello"}]}, "summaries"),
    (
        "/v1/messages",
        {"model": "claude-sonnet-4-6", "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}]},
        "support",
    ),
    ("/v1beta/models/gemini-2.5-flash:generateContent", {"contents": [{"parts": [{"text": "Hello"}]}]}, ""),
)


def run(host: str | None, port: int | None, data_dir: Path) -> None:
    """Serve the demonstration until it is stopped."""
    provider = start_provider()
    settings = config.load(host=host, port=port, data_dir=data_dir, egress_allow=provider.removeprefix("http://"))
    password, token = asyncio.run(fill(settings, provider))
    say(f"A mock provider plays OpenAI, Anthropic and Gemini at {provider}.")
    say(
        f"Sign in as {EMAIL} with the password {password}"
        if password
        else f"Sign in as {EMAIL} with the password of the first run."
    )
    say(f"An access token for the gateway: {token}\n")
    app.serve(settings, lambda url: threading.Thread(target=use, args=(url, token), daemon=True).start())


def start_provider() -> str:
    """Run the mock provider on a thread of its own; return its URL."""
    started: list[str] = []
    ready = threading.Event()

    async def play() -> None:
        provider = await mock.start("127.0.0.1", 0, mock.Options())
        started.append(provider.url)
        ready.set()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(play()), daemon=True).start()
    ready.wait(10)
    return started[0]


async def fill(settings: Settings, provider: str) -> tuple[str, str]:
    """Make the account, the sample keys and a token; point the providers at the mock. Returns password (if new) and token."""
    async with opened(settings) as operator:
        password = ""
        try:
            user = await operator.users.find(EMAIL)
        except NotFound:
            password = secrets.token_urlsafe(12)
            user = await operator.users.create(EMAIL, password, "Demo", Role.ADMIN, by=None)
        caller = operator.caller(user)
        await store_samples(operator, caller, provider)
        _, token = await operator.tokens.create(caller, NewToken(name="demo", scopes=frozenset({Scope.GATEWAY_USE})))
        return password, token


async def store_samples(operator: Operator, caller: Caller, provider: str) -> None:
    """Point the providers at the mock's present port and store a key for each anew: a key is bound to where it may go."""
    providers, vault = operator.vault()
    for secret in (await vault.list(caller, limit=200)).items:
        if secret.name == "demo":
            await vault.delete(caller, secret.id)
    for name, key in SAMPLE_KEYS.items():
        await providers.update(caller, name, {"base_url": f"{provider}/{name}"})
        value = SecretBytes(key.encode())
        await vault.create(caller, NewSecret(provider=name, name="demo", value=value, tags=("demo",), save_anyway=True))


def use(url: str, token: str) -> None:
    """Make a few calls once the server answers, so that the log and the usage have something to show."""
    with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=10) as client:
        for _ in range(100):
            try:
                if client.get("/readyz").is_success:
                    break
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        for path, body, workflow in SAMPLE_CALLS:
            client.post(path, json=body, headers={"x-keybearer-workflow": workflow})

"""Frameworks in environments of their own, which `make frameworks` installs: one process each, told a gateway and a token."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.server import ROOT

INSTALLED = ROOT / ".cache" / "frameworks"
ENVIRONMENTS = {
    "langchain": "openai3",
    "pydantic_ai": "openai3",
    "openai_agents": "openai3",
    "litellm": "openai2",
    "llama_index": "openai2",
    "instructor": "openai2",
}
"""Which version of OpenAI's SDK a framework's latest release holds on to, and so where it is installed."""

# What these would otherwise fetch or send while they work; a test says that there is nothing else.
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
}
# LangChain sends embeddings as tokens, by a table that it would download; LlamaIndex brings the same one along.
_TOKENS = "lib/python*/site-packages/llama_index/core/_static/tiktoken_cache"


@dataclass(frozen=True)
class Driven:
    """What a framework's driver got."""

    cases: dict[str, dict[str, Any]]
    strangers: list[str]
    """Addresses outside this machine that were asked for, in vain."""


def drive(framework: str, url: str, token: str, home: Path) -> Driven:
    """Run a framework's driver against a gateway; ``home`` is where it may write."""
    python = INSTALLED / ENVIRONMENTS[framework] / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{framework} is not installed: run `make frameworks`")
    tokens = next((INSTALLED / ENVIRONMENTS["llama_index"]).glob(_TOKENS))
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TIKTOKEN_CACHE_DIR": str(tokens), **QUIET}
    done = subprocess.run(
        [python, "-m", f"tests.e2e.frameworks.{framework}_driver"],
        cwd=ROOT, env=environment, input=json.dumps({"url": url, "token": token}),
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert token not in done.stderr
    found = json.loads(done.stdout)
    return Driven(found["cases"], found["strangers"])

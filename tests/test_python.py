"""Which Python ``make`` installs with (``.ci/python.py``)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.support.server import ROOT

SCRIPT = ROOT / ".ci" / "python.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("choosing_a_python", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*directories: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, directories))
    return subprocess.run(
        [sys.executable, SCRIPT], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False, timeout=60
    )


def put(directory: Path, text: str) -> Path:
    directory.mkdir()
    (directory / "python3").write_text(text)
    (directory / "python3").chmod(0o755)
    return directory


def test_the_first_is_taken_unless_another_is_much_faster(script: ModuleType) -> None:
    assert script.choose([("first", 1.0), ("second", 0.95)]) == ("first", 1.0)
    assert script.choose([("first", 1.0), ("second", 0.9), ("third", 0.7)]) == ("third", 0.7)


def test_one_that_does_not_run_or_is_too_old_is_passed_over(tmp_path: Path) -> None:
    broken = put(tmp_path / "broken", "#!/bin/sh\nexit 1\n")
    old = put(tmp_path / "old", "#!/bin/sh\necho '[[3, 10, 1], 0.0000001]'\n")
    real = put(tmp_path / "real", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    found = run(broken, old, real)
    assert found.stdout == f"{real / 'python3'}\n", found.stderr
    nothing = run(broken, old)
    assert nothing.returncode == 1
    assert "3.11 or newer" in nothing.stderr


def test_a_faster_one_is_named_with_the_way_back(tmp_path: Path) -> None:
    real = put(tmp_path / "real", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    fast = put(tmp_path / "fast", "#!/bin/sh\necho '[[3, 12, 1], 0.0000001]'\n")
    found = run(real, fast)
    assert found.stdout == f"{fast / 'python3'}\n"
    assert f"PYTHON={real / 'python3'} takes that one." in found.stderr

"""The types agree, in everything: mypy beside the other tests, since it takes a minute and one core."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.support.server import ROOT


@pytest.mark.timeout(600)  # without its cache it reads everything
def test_the_types_agree() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

"""`keybearer run -- CMD`: a program of the SDKs calls the gateway with nothing configured, and is stopped with the command."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest
from tests.e2e.conftest import World

PROGRAM = """
import os, openai
print("with", os.environ["OPENAI_API_KEY"], flush=True)
answer = openai.OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])
print("answered", answer.choices[0].message.role)
raise SystemExit(7)
"""
WAITS = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("ready", flush=True)
signal.pause()
"""
DIES = """
import signal
print("ready", flush=True)
signal.pause()
"""


def run(world: World, *command: str, token: str | None = None) -> subprocess.Popen[str]:
    environment = world.server.environment | {"KEYBEARER_URL": world.server.url, "KEYBEARER_TOKEN": token or world.token}
    arguments: Sequence[str] = (sys.executable, "-m", "keybearer", "run", "--", *command)
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_program_calls_the_gateway_and_prints_no_token(world: World) -> None:
    process = run(world, sys.executable, "-c", PROGRAM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 7, said
    assert "with kb_[masked]" in said
    assert "answered assistant" in said
    assert world.token not in said


@pytest.mark.parametrize(("program", "code"), [(WAITS, 5), (DIES, 128 + signal.SIGTERM)])
def test_who_stops_the_command_stops_the_program(world: World, program: str, code: int) -> None:
    with run(world, sys.executable, "-c", program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(30) == code
        assert process.stdout.read() == ""  # at its end: the program, which had it, too, is gone


def test_a_wrong_token_and_an_unknown_command_are_told_before_anything_runs(world: World) -> None:
    process = run(world, sys.executable, "-c", "print('ran')", token="kb_kbtestwrong0_" + "0" * 36)
    said, _ = process.communicate(timeout=60)
    assert process.returncode
    assert "ran" not in said
    assert "error:" in said
    process = run(world, "kbtest-no-such-command")
    said, _ = process.communicate(timeout=60)
    assert process.returncode
    assert "Cannot run kbtest-no-such-command" in said

"""What the command line answers to wrong usage, and how it lays out what it lists."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.support.server import ROOT, environment

from keybearer.cli.output import print_rows, table


def keybearer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keybearer", *arguments],
        env=environment(ROOT), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("secrets",), "No such command 'secrets'. Did you mean 'secret'", "keybearer --help' shows how."),
        (("secret", "add"), "Missing argument 'provider'.", "keybearer secret add --help' shows how."),
        (("token", "create", "--name", "x"), "Missing option '--user'.", "keybearer token create --help' shows how."),
        (("serve", "--port", "99999"), "Invalid value for '--port'", "keybearer serve --help' shows how."),
        (("usage", "--by", "colour"), "Invalid value for '--by'", "keybearer usage --help' shows how."),
        (("usage", "--nope"), "No such option: --nope", "keybearer usage --help' shows how."),
    ],
)
def test_wrong_usage_is_an_error_with_a_hint(arguments: tuple[str, ...], message: str, hint: str) -> None:
    done = keybearer(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    error, told = done.stderr.splitlines()
    assert error.startswith(f"error: {message}")
    assert told.startswith("hint: ")
    assert told.endswith(hint)


def test_help_and_groups_without_a_command_show_what_there_is() -> None:
    assert keybearer("secret", "--help").returncode == 0
    bare = keybearer("secret")
    assert "rotate" in bare.stdout
    assert "error:" not in bare.stderr


def test_a_row_is_one_line_that_shows_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, object]] = [
        {"name": "[prod]", "base_url": "https://" + "x" * 200, "state": None},
        {"name": "日本", "base_url": "-", "state": True},
    ]
    print_rows(rows, ("name", "base_url", "state"), as_json=False)
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "base", "url", "state"]
    assert first.split() == ["[prod]", "https://" + "x" * 200, "-"]
    assert second.split() == ["日本", "-", "yes"]


def test_other_peoples_names_do_not_steer_the_terminal() -> None:
    (line,) = table([["team\x1b[2J\r\n\u202e", "x"]])
    assert line == "team\N{REPLACEMENT CHARACTER}[2J" + 3 * "\N{REPLACEMENT CHARACTER}" + "  x"

"""`.env` files as they are found in the wild, and JSON and CSV: what is read of them, and what is said of broken ones."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybearer.errors import Invalid
from keybearer.vault.transfer import documents, dotenv
from keybearer.vault.transfer.items import Item


def read(text: str) -> dict[str, str]:
    return {item.variable: value_of(item) for item in dotenv.read(text)}


def value_of(item: Item) -> str:
    assert not item.problem, item.problem
    assert item.value is not None
    return item.value.reveal().decode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=kbtest-1", "kbtest-1"),
        ("export A=kbtest-1", "kbtest-1"),
        ("  A = kbtest-1  ", "kbtest-1"),
        ("\ufeffA=kbtest-1\r\n", "kbtest-1"),
        ("A=kbtest-1 # why", "kbtest-1"),
        ("A=kbtest#1", "kbtest#1"),
        ("A='kbtest # 1'", "kbtest # 1"),
        ('A="kbtest # 1" # why', "kbtest # 1"),
        ('A="kbtest\\"1\\n2\\$3\\\\"', 'kbtest"1\n2$3\\'),
        ("A='kbtest\\n1'", "kbtest\\n1"),
        ("A='kbtest ${B}'", "kbtest ${B}"),
        ('A="kbtest \\${B}"', "kbtest ${B}"),
        ('A=`kbtest "it\'s"`', 'kbtest "it\'s"'),
        ('A="-----BEGIN KEY-----\nkbtest\n-----END KEY-----"\n', "-----BEGIN KEY-----\nkbtest\n-----END KEY-----"),
        ("A=postgres://u:kbtest=p@h/db?a=b", "postgres://u:kbtest=p@h/db?a=b"),
        ("A=kbtest$1", "kbtest$1"),
        ("A=kbtest\u00e9", "kbtest\u00e9"),
        ("# B=1\n\n   \nA=kbtest-1", "kbtest-1"),
    ],
    ids=repr,
)
def test_what_shells_and_libraries_write_is_read(line: str, value: str) -> None:
    assert read(line) == {"A": value}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("sk-proj-kbtest-0123456789", "not of the form"),
        ("1A=x", "no variable's name"),
        ("A B=x", "no variable's name"),
        ('A="kbtest', "never closed"),
        ("A='kbtest\n", "never closed"),
        ('A="kbtest" more', "goes on"),
        ("A=${B}", "another variable"),
        ('A="x${B}y"', "another variable"),
        ("A=$(cat key)", "another variable"),
        ("A=", "is empty"),
        ("A=''", "is empty"),
        ("A=   # later", "is empty"),
    ],
    ids=repr,
)
def test_a_broken_line_is_named_and_spoils_no_other(line: str, problem: str) -> None:
    broken, whole = dotenv.read(f"{line}\nB=kbtest-2\n") if not line.endswith("\n") else dotenv.read(f"{line}B=kbtest-2\n")
    assert problem in broken.problem
    assert broken.place == "line 1"
    assert broken.value is None
    assert "kbtest" not in broken.problem + broken.variable
    assert (whole.place, whole.variable, value_of(whole)) == ("line 2", "B", "kbtest-2")


@pytest.mark.parametrize(
    "line", ["a" + " " * 60_000 + "b", " " * 3000 + "b", "A=" + "$(" * 50_000, "A=" + "${A" * 40_000], ids=len
)
def test_no_line_is_looked_at_over_and_over(line: str) -> None:
    """Nobody else in the process has a turn meanwhile: a line of 20 kB took half an hour."""
    began = time.thread_time()
    list(dotenv.read(line))
    assert time.thread_time() - began < 0.5


def test_lines_are_counted_through_values_of_several_lines() -> None:
    places = [item.place for item in dotenv.read('A="1\n2\n3"\n\n# x\nB=2\r\nC=3')]
    assert places == ["line 1", "line 6", "line 7"]


@given(st.text())
def test_any_text_is_read_to_its_end(text: str) -> None:
    list(dotenv.read(text))


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True), st.text(min_size=1).filter(lambda v: v.strip())))
def test_what_is_quoted_comes_back(values: dict[str, str]) -> None:
    values = {name: value.replace("\r", "") or "x" for name, value in values.items()}
    values = {name: value if value.strip() else "x" for name, value in values.items()}
    escaped = {name: value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") for name, value in values.items()}
    assert read("\n".join(f'{name}="{value}"' for name, value in escaped.items())) == values


def test_json_in_its_three_shapes() -> None:
    (flat,) = documents.read_json('{"OPENAI_API_KEY": "kbtest-1"}')
    assert (flat.variable, value_of(flat), flat.place) == ("OPENAI_API_KEY", "kbtest-1", "entry 1")
    (listed,) = documents.read_json('[{"provider": "openai", "apiKey": "kbtest-1", "keyName": "work", "isActive": false}]')
    assert (listed.provider, value_of(listed), dict(listed.fields)) == (
        "openai",
        "kbtest-1",
        {"name": "work", "is_active": False},
    )
    secret, model = documents.read_json(
        '{"secrets": [{"provider": "openai", "value": "kbtest-1", "tags": "a; b", "expires_at": "2099-01-01T00:00:00Z"}],'
        ' "models": [{"provider": "openai", "name": "gpt-5", "api_key": "kbtest-2", "base_url": "https://llm.example"}]}'
    )
    assert secret.fields["tags"] == ("a", "b")
    assert secret.fields["expires_at"].year == 2099
    assert (model.kind, model.fields["base_url"], value_of(model)) == ("model", "https://llm.example", "kbtest-2")
    twice = list(documents.read_json('{"A": "kbtest-1", "A": "kbtest-2"}'))
    assert [value_of(item) for item in twice] == ["kbtest-1", "kbtest-2"]


@pytest.mark.parametrize(
    "entry",
    [
        '{"provider": "openai", "value": 7}',
        '{"provider": "openai", "value": ""}',
        '{"provider": "openai"}',
        '{"provider": 7, "value": "kbtest-1"}',
        '{"provider": "openai", "value": "kbtest-1", "expires_att": "2099-01-01"}',
        '{"provider": "openai", "value": "kbtest-1", "kbtest-1": "x"}',
        '{"provider": "openai", "value": "kbtest-1", "expires_at": "soon"}',
        '{"provider": "openai", "value": "kbtest-1", "priority": true}',
        '{"provider": "openai", "value": "kbtest-1", "secret_type": "key"}',
        '{"provider": "openai", "value": "kbtest-1", "value": "kbtest-2"}',
        '{"provider": "openai", "value": "kbtest-1", "api_key": "kbtest-2"}',
        '{"provider": "openai", "value": "kbtest-1", "is_active": "perhaps"}',
        '{"provider": "openai", "value": "kbtest-1", "oauth": [1]}',
        "7",
        "null",
        "[]",
    ],
)
def test_a_broken_entry_of_json_is_named_without_what_is_in_it(entry: str) -> None:
    broken, whole = documents.read_json(f'[{entry}, {{"provider": "openai", "value": "kbtest-9"}}]')
    assert broken.problem
    assert "kbtest" not in repr(broken)
    assert value_of(whole) == "kbtest-9"


@pytest.mark.parametrize("text", ["", "{", "7", '"kbtest-1"', "[" * 100_000, '{"A": NaN'])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        list(documents.read_json(text))
    assert "kbtest" not in str(refused.value)


def test_csv_as_spreadsheets_write_it() -> None:
    text = '\ufeffprovider,name,value,tags\r\nopenai,work,kbtest-1,"a,b"\r\n,,,\r\nslack,,"kbtest\n2",\r\n'
    first, second = documents.read_csv(text)
    assert (first.provider, value_of(first), dict(first.fields)) == ("openai", "kbtest-1", {"name": "work", "tags": ("a", "b")})
    assert (second.provider, value_of(second), second.place) == ("slack", "kbtest\n2", "row 3")
    short, whole = documents.read_csv("variable,value\nA\nOPENAI_API_KEY,kbtest-1\n")
    assert "headings" in short.problem
    assert whole.variable == "OPENAI_API_KEY"
    assert "never closed" in list(documents.read_csv('variable,value\nA,"kbtest-1'))[-1].problem


@pytest.mark.parametrize("text", ["", "provider,name\nopenai,x\n", "value,value\n1,2\n"])
def test_csv_without_headings_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        list(documents.read_csv(text))


@given(st.text())
def test_any_text_is_csv_or_refused(text: str) -> None:
    try:
        list(documents.read_csv("variable,value\n" + text))
    except Invalid:
        return

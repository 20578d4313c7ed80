"""What is taken for a value, and what is refused: the table of MISSION V3 and V14, and every oddity a text can have."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.vault import ANTHROPIC_KEY, OPENAI_KEY

from keybearer.access.fields import secret_value
from keybearer.catalog import Catalog
from keybearer.domain import SecretBytes, SecretType
from keybearer.errors import Invalid, KeybearerError, KeyDoubtful, KeyRefused
from keybearer.vault import values

CATALOG = Catalog.load()
OPENAI = CATALOG.get("openai")


def check(text: str, secret_type: SecretType = SecretType.API_KEY, *, shown: str = "", save_anyway: bool = False) -> str:
    cleaned = values.text_of(secret_value(text), secret_type)
    values.check(CATALOG, OPENAI, secret_type, cleaned, shown=shown, save_anyway=save_anyway)
    return cleaned


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "sk-proj-kbtest 0123456789abcdefghijklmnop",
        "sk-proj-kbtest\n0123456789abcdefghijklmnop",
        "sk-proj-kbtest\r\nx-injected: 1",
        "sk-proj-kbtest\x000123456789abcdefghijk",
        "sk-proj-kbtest\ud8000123456789abcdefghij",
        "sk-proj-kbtest\u200b0123456789abcdefghij",
        "sk-admin-kbtest0123456789abcdefghijklmno",
        "sk-p…mnop",
        "sk-p•••••••••mnop",
        "sk-p***mnop",
        "••••••••",
        "************",
        "x" * 65537,
        "kb_AAAAAAAAAAAA_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB4HrdYX",
    ],
)
def test_what_is_surely_wrong_is_refused_whatever_the_caller_says(text: str) -> None:
    with pytest.raises(Invalid) as wrong:
        check(text, save_anyway=True)
    assert {error.field for error in wrong.value.fields} == {"value"}
    assert not text.strip() or text not in wrong.value.message


def test_what_looks_wrong_is_saved_on_demand() -> None:
    for text, expected in ((ANTHROPIC_KEY, "Anthropic"), ("kbtest-some-other-form", "does not look like")):
        with pytest.raises(KeyDoubtful, match=expected) as doubtful:
            check(text)
        assert "save_anyway" in doubtful.value.hint
        assert check(text, save_anyway=True) == text


def test_white_space_around_a_pasted_key_is_dropped() -> None:
    assert check(f" {OPENAI_KEY}\r\n") == OPENAI_KEY


def test_a_preview_does_not_become_the_value() -> None:
    text = "kbtest-exactly-this"
    assert check(text, SecretType.WEBHOOK_SECRET) == text
    with pytest.raises(KeyRefused, match="masked"):
        check(text, SecretType.WEBHOOK_SECRET, shown=text)


@pytest.mark.parametrize(
    ("text", "secret_type"),
    [
        ("postgresql://u:kbtest-p%40ss@db.example.com:5432/x?sslmode=require", SecretType.CONNECTION_STRING),
        ("postgresql://u:kbtest p@ss/w#ö@db/x", SecretType.CONNECTION_STRING),
        ("whsec_kbtest+/=", SecretType.WEBHOOK_SECRET),
        ('{"refresh_token": "kbtest"}', SecretType.OAUTH_TOKEN),
        ("-----BEGIN KEY-----\nkbtest\n-----END KEY-----\n", SecretType.CUSTOM),
        ("\t kbtest kept as it is ", SecretType.CUSTOM),
        ("kbtest " + "e" * 65529, SecretType.CUSTOM),
    ],
)
def test_other_types_take_what_they_need(text: str, secret_type: SecretType) -> None:
    assert check(text, secret_type) == text


@pytest.mark.parametrize(
    ("text", "secret_type"),
    [
        ("postgresql://u:***@db/x", SecretType.CONNECTION_STRING),
        ("postgresql://u:kbtest@db/x\n", SecretType.CONNECTION_STRING),
        ("whsec_…kbtest", SecretType.WEBHOOK_SECRET),
        ("kbtest\x00", SecretType.CUSTOM),
        ("kbtest\x1b[2J", SecretType.CUSTOM),
        ("abcd…wxyz", SecretType.CUSTOM),
        ("\ud800", SecretType.CUSTOM),
        (" \n ", SecretType.CUSTOM),
    ],
)
def test_and_not_more(text: str, secret_type: SecretType) -> None:
    if text.endswith("\n") and secret_type is SecretType.CONNECTION_STRING:
        assert check(text, secret_type) == text.strip()
        return
    with pytest.raises(Invalid):
        check(text, secret_type)


@given(st.text(st.characters(), max_size=200), st.sampled_from(SecretType))
def test_every_text_is_taken_as_it_is_or_refused_with_its_field(text: str, secret_type: SecretType) -> None:
    try:
        cleaned = check(text, secret_type, save_anyway=True)
    except KeybearerError as error:
        refused = error
    else:
        assert cleaned == (text if secret_type is SecretType.CUSTOM else text.strip())
        assert "\x00" not in cleaned
        assert len(values.preview_of(cleaned, secret_type)) <= 200
        return
    assert isinstance(refused, Invalid)
    assert {field.field for field in refused.fields} == {"value"}


@given(st.binary(max_size=100))
def test_bytes_that_are_no_text_are_refused(raw: bytes) -> None:
    try:
        text = values.text_of(SecretBytes(raw), SecretType.CUSTOM)
    except Invalid:
        with pytest.raises(UnicodeDecodeError):
            raw.decode()
        return
    assert text.encode() == raw


@given(st.text(st.characters(codec="ascii", exclude_characters=".*"), min_size=1, max_size=120))
def test_a_preview_shows_at_most_eight_characters(text: str) -> None:
    shown = values.preview_of(text, SecretType.API_KEY)
    if len(text) < 12:
        assert shown == ""
    else:
        some = 4 if len(text) >= 24 else 2
        assert re.fullmatch(r"(?s).*…[^…]*", shown)
        assert shown == f"{text[:some]}…{text[-some:]}"

"""What people type is normalised, or refused by the name of the field; never anything in between."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybearer.access.fields import NAME_LIMIT, Fields, has_control, secret_value
from keybearer.errors import Invalid

ANY_TEXT = st.text(st.characters(), max_size=300)  # lone surrogates and controls included


@given(ANY_TEXT)
def test_a_name_is_storable_or_refused(text: str) -> None:
    fields = Fields()
    name = fields.name("name", text)
    if not name or fields._is_wrong("name"):
        with pytest.raises(Invalid):
            fields.check()
        return
    fields.check()
    assert len(name) <= NAME_LIMIT
    assert name == unicodedata.normalize("NFC", name).strip()
    assert "\x00" not in name
    name.encode("utf-8")


@given(ANY_TEXT)
def test_a_value_travels_as_it_is(text: str) -> None:
    assert secret_value(text).reveal().decode("utf-8", "surrogatepass") == text


@pytest.mark.parametrize(
    "text",
    [
        "a\nb",
        "a\x00b",
        "a\x7fb",
        "a\x85b",
        "\ud800",
        "a\u2028b",
        "evil\u202etxt",
        "\u200b",
        "",
        "  ",
        "\u2066",
        "x" * 201,
        "e" * 10_000,
    ],
)
def test_odd_names_are_refused(text: str) -> None:
    fields = Fields()
    fields.name("name", text)
    with pytest.raises(Invalid) as wrong:
        fields.check()
    assert [error.field for error in wrong.value.fields] == ["name"]


@pytest.mark.parametrize("text", ["Ada's key", "ключ", "鍵", "مفتاح", "👩‍🔬 lab", "e\u0301te\u0301", "a b", "x" * 200])
def test_names_of_all_languages_are_kept(text: str) -> None:
    fields = Fields()
    assert fields.name("name", f" {text} ") == unicodedata.normalize("NFC", text)
    fields.check()


def test_all_that_is_wrong_is_told_at_once() -> None:
    now = datetime.now(UTC)
    fields = Fields()
    fields.name("name", "")
    fields.email("email", "nobody")
    fields.words("tags", ["ok", "\x00"])
    fields.future("expires_at", now - timedelta(seconds=1), now)
    with pytest.raises(Invalid) as wrong:
        fields.check()
    assert [error.field for error in wrong.value.fields] == ["name", "email", "tags.1", "expires_at"]


def test_descriptions_may_have_lines_and_tags_are_distinct() -> None:
    fields = Fields()
    assert fields.text("description", "one\n\ttwo ") == "one\n\ttwo"
    assert fields.words("tags", ["a", " a", "b"]) == ("a", "b")
    fields.check()
    assert has_control("a\nb")


@pytest.mark.parametrize("address", ["Ada@Example.com", "a@b", "o'hara+x@sub.example.co.uk", "ü@exämple.de"])
def test_addresses_are_lower_cased(address: str) -> None:
    fields = Fields()
    assert fields.email("email", f" {address} ") == address.lower()
    fields.check()


@pytest.mark.parametrize(
    "address", ["", "a", "@b", "a@", "a@b@c", "a b@c", "a@b..c", "a@.b", "a@b\x00", "x" * 65 + "@b", "a@" + "b" * 400]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    fields = Fields()
    fields.email("email", address)
    with pytest.raises(Invalid):
        fields.check()

"""Envelope v1 against frozen vectors, hostile envelopes and any input; and that nothing secret shows."""

from __future__ import annotations

import dataclasses
import traceback
from uuid import UUID, uuid4

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.crypto import make_vectors, reference
from tests.crypto.vectors import Json, context_of, load

from keybearer.crypto import envelope
from keybearer.crypto.envelope import OVERHEAD, Context, egress_digest, key_id_of, open_sealed, seal
from keybearer.errors import EnvelopeError

VECTORS = load("envelope_v1.json")
TWO_KEYS = load("two_keys.json")

KEY = bytes(range(1, 33))
MARKER = b"kbtest-plaintext-9d41"
CONTEXT = Context("secret", uuid4(), uuid4(), uuid4(), 3, "value", ("https://api.openai.com:443",))


def by_name(vectors: list[Json]) -> list[object]:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


class TestFrozenFormat:
    def test_the_vectors_are_what_they_were(self) -> None:
        for name, text in make_vectors.documents().items():
            assert (make_vectors.VECTORS / name).read_text(encoding="utf-8") == text

    @pytest.mark.parametrize("vector", by_name(VECTORS["contexts"]))
    def test_a_context_has_these_bytes(self, vector: Json) -> None:
        context = context_of(vector["context"])
        assert context.encode().hex() == vector["encoded"]
        assert context.digest.hex() == vector["digest"]

    @pytest.mark.parametrize("vector", VECTORS["egress"])
    def test_an_egress_set_has_this_digest_in_any_order(self, vector: Json) -> None:
        origins = vector["origins"]
        for given_as in (origins, origins[::-1], origins + origins):
            assert egress_digest(tuple(given_as)).hex() == vector["digest"]

    @pytest.mark.parametrize("vector", by_name(VECTORS["valid"]))
    def test_a_valid_envelope_opens(self, vector: Json) -> None:
        data = bytes.fromhex(vector["envelope"])
        assert open_sealed(bytes.fromhex(vector["key"]), context_of(vector["context"]), data).hex() == vector["plaintext"]
        assert key_id_of(data) == UUID(vector["key_id"])

    @pytest.mark.parametrize("vector", by_name(VECTORS["valid"]))
    def test_sealing_with_the_same_salt_gives_the_same_envelope(self, vector: Json, monkeypatch: pytest.MonkeyPatch) -> None:
        salt = bytes.fromhex(vector["salt"])
        monkeypatch.setattr(envelope.os, "urandom", lambda size: salt[:size])  # type: ignore[attr-defined]
        made = seal(
            bytes.fromhex(vector["key"]),
            UUID(vector["key_id"]),
            context_of(vector["context"]),
            bytes.fromhex(vector["plaintext"]),
        )
        assert made.hex() == vector["envelope"]

    @pytest.mark.parametrize("vector", by_name(VECTORS["invalid"]))
    def test_an_invalid_envelope_does_not_open(self, vector: Json) -> None:
        with pytest.raises(EnvelopeError) as caught:
            open_sealed(bytes.fromhex(vector["key"]), context_of(vector["context"]), bytes.fromhex(vector["envelope"]))
        assert_opaque(caught.value)

    def test_the_invalid_cases_cover_every_field_and_every_part_of_the_context(self) -> None:
        names = " ".join(vector["name"] for vector in VECTORS["invalid"])
        for part in ("magic", "format", "suite", "key id", "salt", "commitment", "ciphertext", "tag"):
            assert f"bit flipped in {part}," in names
        for field in dataclasses.fields(Context):
            if field.init:
                assert f"swapped: {field.name}" in names


class TestCommitment:
    """One ciphertext that AES-GCM accepts under two keys: a sender could show two people two values."""

    def test_the_attack_is_real_without_commitment(self) -> None:
        context, data = TWO_KEYS["context"], bytes.fromhex(TWO_KEYS["envelope"])
        first = reference.open_without_commitment(bytes.fromhex(TWO_KEYS["key"]), context, data)
        second = reference.open_without_commitment(bytes.fromhex(TWO_KEYS["other_key"]), context, data)
        assert first.hex() == TWO_KEYS["plaintext"]
        assert second.hex() == TWO_KEYS["plaintext_under_other_key_without_commitment"]
        assert first != second

    def test_only_the_key_that_is_committed_to_opens_it(self) -> None:
        context, data = context_of(TWO_KEYS["context"]), bytes.fromhex(TWO_KEYS["envelope"])
        assert open_sealed(bytes.fromhex(TWO_KEYS["key"]), context, data).hex() == TWO_KEYS["plaintext"]
        with pytest.raises(EnvelopeError):
            open_sealed(bytes.fromhex(TWO_KEYS["other_key"]), context, data)

    def test_the_commitment_is_checked_before_anything_is_decrypted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = bytearray(seal(KEY, uuid4(), CONTEXT, MARKER))
        data[60] ^= 1

        class Refused:
            def __init__(self, key: bytes) -> None:
                pytest.fail("a cipher was made for an envelope of another key")

        monkeypatch.setattr(envelope, "AESGCM", Refused)
        with pytest.raises(EnvelopeError):
            open_sealed(KEY, CONTEXT, bytes(data))


class TestAnyInput:
    contexts = st.builds(
        Context,
        purpose=st.text(st.characters(exclude_categories=["Cs"])),
        deployment=st.uuids(),
        owner=st.uuids(),
        record=st.uuids(),
        version=st.integers(0, 2**63 - 1),
        field=st.text(st.characters(exclude_categories=["Cs"])),
        egress=st.lists(
            st.builds(
                "{}://{}:{}".format,
                st.sampled_from(["http", "https", "postgresql"]),
                st.sampled_from(["a", "b.example", "[::1]"]),
                st.integers(1, 65535),
            )
        ).map(tuple),
        fetchable=st.booleans(),
    )

    @settings(deadline=None)  # the machine may be busy
    @given(contexts, st.binary(min_size=32, max_size=32), st.uuids(), st.binary())
    def test_what_is_sealed_opens_and_is_read_alike_by_the_reference(
        self, context: Context, key: bytes, key_id: UUID, plaintext: bytes
    ) -> None:
        data = seal(key, key_id, context, plaintext)
        assert len(data) == len(plaintext) + OVERHEAD
        assert key_id_of(data) == key_id
        assert open_sealed(key, context, data) == plaintext
        assert reference.open_without_commitment(key, as_json(context), data) == plaintext

    @settings(deadline=None)  # the machine may be busy
    @given(contexts, contexts)
    def test_two_contexts_have_the_same_bytes_only_if_they_are_the_same(self, left: Context, right: Context) -> None:
        same = dataclasses.replace(left, egress=()) == dataclasses.replace(right, egress=()) and set(left.egress) == set(
            right.egress
        )
        assert (left.encode() == right.encode()) == same

    @settings(deadline=None)  # the machine may be busy
    @given(st.binary(max_size=300))
    def test_random_bytes_are_refused_the_same_way(self, data: bytes) -> None:
        with pytest.raises(EnvelopeError) as caught:
            open_sealed(KEY, CONTEXT, data)
        assert_opaque(caught.value)

    def test_every_single_bit_counts(self) -> None:
        data = seal(KEY, uuid4(), CONTEXT, MARKER)
        for bit in range(8 * len(data)):
            with pytest.raises(EnvelopeError):
                open_sealed(KEY, CONTEXT, make_vectors.flipped(data, bit // 8, 1 << bit % 8))

    def test_every_length_but_its_own_is_refused(self) -> None:
        data = seal(KEY, uuid4(), CONTEXT, MARKER)
        for size in range(len(data)):
            with pytest.raises(EnvelopeError):
                open_sealed(KEY, CONTEXT, data[:size])

    def test_each_sealing_has_its_own_salt(self) -> None:
        key_id = uuid4()
        sealed = {seal(KEY, key_id, CONTEXT, MARKER)[20:52] for _ in range(100)}
        assert len(sealed) == 100

    def test_the_key_id_is_only_read_from_a_known_format(self) -> None:
        data = seal(KEY, uuid4(), CONTEXT, b"")
        for broken in (b"", data[:99], b"XX" + data[2:], data[:2] + b"\x02" + data[3:], data[:3] + b"\x02" + data[4:]):
            with pytest.raises(EnvelopeError):
                key_id_of(broken)


class TestWhatCannotBeSealed:
    @pytest.mark.parametrize(
        "origin",
        [
            "",
            "api.openai.com",
            "https://api.openai.com",
            "https://api.openai.com:443/",
            "https://api.openai.com:443/v1",
            "https://API.openai.com:443",
            "HTTPS://api.openai.com:443",
            "https://api.openai.com:0443",
            "https://api.openai.com:0",
            "https://api.openai.com:65536",
            "https://api.openai.com:٤٤٣",
            "https://api.openai.com.:443",
            "https://user@api.openai.com:443",
            "https://api.openai.com:443 ",
            "https://api.openai.com:443\n",
            "https://münchen.example:443",
            "https://[::1:443",
            "https://*.openai.com:443",
        ],
    )
    def test_two_spellings_of_one_host_are_not_two_sets(self, origin: str) -> None:
        with pytest.raises(ValueError, match="canonical"):
            dataclasses.replace(CONTEXT, egress=("https://api.openai.com:443", origin))

    @pytest.mark.parametrize("version", [-1, 2**63])
    def test_versions_out_of_range(self, version: int) -> None:
        with pytest.raises(ValueError, match="range"):
            dataclasses.replace(CONTEXT, version=version)

    @pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
    def test_keys_of_another_length(self, size: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            seal(bytes(size), uuid4(), CONTEXT, MARKER)


class TestNothingShows:
    """Neither key nor plaintext, even in a traceback that prints every frame's local variables."""

    def shown(self, error: BaseException) -> str:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        # The test's own frame holds the material; those of the package must not.
        told.stack = traceback.StackSummary.from_list([frame for frame in told.stack if "keybearer" in frame.filename])
        assert told.stack, "the package raised it"
        return "".join(told.format())

    def test_a_failed_opening(self) -> None:
        data = seal(KEY, uuid4(), CONTEXT, MARKER)
        for broken in (make_vectors.flipped(data, len(data) - 1, 1), make_vectors.flipped(data, 60, 1), data[:10], b""):
            with pytest.raises(EnvelopeError) as caught:
                open_sealed(KEY, CONTEXT, broken)
            assert repr(KEY) not in self.shown(caught.value)
            assert_opaque(caught.value)

    def test_a_failed_sealing(self) -> None:
        short = b"kbtest-short-key"
        with pytest.raises(ValueError, match="32 bytes") as caught:
            seal(short, uuid4(), CONTEXT, MARKER)
        assert "kbtest" not in self.shown(caught.value)

    def test_a_context_shows_where_and_not_what(self) -> None:
        assert "digest" not in repr(CONTEXT)


def assert_opaque(error: EnvelopeError) -> None:
    """One message, no cause, no context: nothing tells why."""
    assert (error.message, error.hint, error.args) == (EnvelopeError.__doc__, "", (EnvelopeError.__doc__,))
    assert error.__cause__ is None
    assert error.__context__ is None


def as_json(context: Context) -> Json:
    return {
        "purpose": context.purpose,
        "deployment": str(context.deployment),
        "owner": str(context.owner),
        "record": str(context.record),
        "version": context.version,
        "field": context.field,
        "egress": list(context.egress),
        "fetchable": context.fetchable,
    }


def test_the_reference_itself_refuses_what_was_changed() -> None:
    data = seal(KEY, uuid4(), CONTEXT, MARKER)
    with pytest.raises(InvalidTag):
        reference.open_without_commitment(KEY, as_json(dataclasses.replace(CONTEXT, version=4)), data)

"""MACs over rows: what was written here is told from what somebody wrote into the database."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from tests.crypto import make_vectors
from tests.crypto.keyrings import NOW
from tests.crypto.vectors import Json, load, row_of

from keybearer.crypto.keyring import Keyring
from keybearer.crypto.rows import RowField, encode_row
from keybearer.domain import SecretBytes
from keybearer.errors import EnvelopeError


class TestRowMac:
    async def test_a_row_checks_until_anything_in_it_changes(self, keyring: Keyring) -> None:
        row: tuple[Any, ...] = ("id", b"hash", UUID(int=1), True, 7, None, NOW, ["a", "b"])
        mac = keyring.row_mac("access_token", *row)
        assert len(mac) == 32
        keyring.check_row_mac(mac, "access_token", *row)
        keyring.check_row_mac(mac, "access_token", *row[:-1], ("a", "b"))
        keyring.check_row_mac(mac, "access_token", *row[:-2], NOW.astimezone(timezone(timedelta(hours=5))), row[-1])
        changed: list[tuple[Any, ...]] = [
            ("ie", *row[1:]),
            (*row[:2], UUID(int=2), *row[3:]),
            (*row[:3], False, *row[4:]),
            (*row[:3], 1, *row[4:]),
            (*row[:5], "", *row[6:]),
            (*row[:5], [], *row[6:]),
            (*row[:6], NOW + timedelta(microseconds=1), *row[7:]),
            (*row[:7], ["b", "a"]),
            (*row[:7], ["ab"]),
            (*row[:7], ["a"], ["b"]),
            row[:-1],
            (*row, None),
        ]
        for other in changed:
            with pytest.raises(EnvelopeError):
                keyring.check_row_mac(mac, "access_token", *other)
        for table in ("session", "access_toke", ""):
            with pytest.raises(EnvelopeError):
                keyring.check_row_mac(mac, table, *row)

    async def test_forged_macs(self, keyring: Keyring) -> None:
        mac = keyring.row_mac("user_account", "x")
        for forged in (b"", bytes(32), mac[:-1], mac + b"\x00", make_vectors.flipped(mac, 31, 1)):
            with pytest.raises(EnvelopeError):
                keyring.check_row_mac(forged, "user_account", "x")

    async def test_a_row_as_it_was_read_fails_with_one_error_whatever_it_holds(self, keyring: Keyring) -> None:
        def fields(row: Any) -> tuple[RowField, ...]:
            return (row.id, *row.names)

        row = SimpleNamespace(id=7, names=["a"])
        mac = keyring.row_mac("model", 7, "a")
        keyring.check_row(mac, "model", fields, row)
        naive = datetime(2026, 1, 1)  # noqa: DTZ001  # as a hand may write it
        wrong: list[dict[str, Any]] = [
            {"id": 7.5},
            {"id": naive},
            {"id": "\ud800"},
            {"names": None},
            {"names": 3},
            {"names": [{}]},
        ]
        for edited in wrong:
            with pytest.raises(EnvelopeError):
                keyring.check_row(mac, "model", fields, SimpleNamespace(**(vars(row) | edited)))
        for forged in (None, 10**12, 1.5, mac.hex(), b""):
            with pytest.raises(EnvelopeError):
                keyring.check_row(forged, "model", fields, row)

    async def test_another_deployment_has_another_key(self, keyring: Keyring) -> None:
        vector = load("deployment_v1.json")["row_macs"][0]
        with pytest.raises(EnvelopeError):
            keyring.check_row_mac(bytes.fromhex(vector["mac"]), vector["table"], *row_of(vector))

    async def test_what_has_no_one_encoding_is_refused(self, keyring: Keyring) -> None:
        with pytest.raises(ValueError, match="naive"):
            keyring.row_mac("session", datetime(2026, 1, 1))  # noqa: DTZ001  # naive on purpose
        with pytest.raises(TypeError, match="float"):
            keyring.row_mac("session", 1.5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="SecretBytes"):
            keyring.row_mac("session", SecretBytes(b"x"))  # type: ignore[arg-type]

    @pytest.mark.parametrize("vector", load("deployment_v1.json")["row_macs"])
    def test_a_row_has_these_bytes(self, vector: Json) -> None:
        assert encode_row(vector["table"], *row_of(vector)).hex() == vector["encoded"]

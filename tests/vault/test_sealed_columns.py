"""The list that re-encryption goes by is whole: a new binary column is put on it, or said to hold no owner's envelope."""

from __future__ import annotations

import sqlalchemy as sa

from keybearer.store.schema import metadata
from keybearer.vault.sealed_columns import OWNERS_TABLES, SYSTEMS_COLUMNS

NOT_UNDER_AN_OWNER_KEY = {
    "root_key.wrapped": "the provider's",
    "root_key.proof": "under the root key",
    "owner_key.envelope": "under the root key",
    "one_time_link.token_hash": "a hash",
    "session.token_hash": "a hash",
    "access_token.token_hash": "a hash",
    "audit_writer.shipped_hash": "a hash",
    "audit_record.nonce": "public",
    "audit_record.d": "a hash",
    "audit_record.h": "a hash",
    "audit_tile.hashes": "hashes",
    "audit_sealed.h": "a hash",
    "audit_tree.public_key": "public",
}


def listed() -> set[str]:
    owners = {f"{each.table.name}.{name}" for each in OWNERS_TABLES for name in each.envelopes}
    return owners | {f"{each.column.table.name}.{each.column.name}" for each in SYSTEMS_COLUMNS}


def test_every_binary_column_is_on_the_list_or_known_to_hold_no_envelope() -> None:
    binary = {
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, sa.LargeBinary) and column.name != "mac"
    }
    assert binary - listed() - NOT_UNDER_AN_OWNER_KEY.keys() == set(), "sealed? then add it to vault/sealed_columns.py"
    assert (listed() | NOT_UNDER_AN_OWNER_KEY.keys()) - binary == set()
    assert listed() & NOT_UNDER_AN_OWNER_KEY.keys() == set()


def test_a_mac_is_a_mac() -> None:
    """They are left out above by their name."""
    for table in metadata.tables.values():
        if "mac" in table.columns:
            assert "MAC" in (table.c.mac.comment or "MAC")


def test_every_table_that_names_an_owner_key_is_on_the_list() -> None:
    named = {table.name for table in metadata.tables.values() if "owner_key_id" in table.columns}
    assert named == {each.table.name for each in OWNERS_TABLES}


def test_each_table_has_what_re_encryption_reads() -> None:
    for each in OWNERS_TABLES:
        source = each.source(sa.select(each.table).cte("picked"))
        assert {"owner_id", "owner_key_id", *each.key, *each.envelopes} <= set(source.selected_columns.keys())
        assert each.key == tuple(column.name for column in each.table.primary_key.columns)

"""Every column that holds something sealed under an owner key: the one list that re-encryption goes by.

A column that is not in it would be left under a key that is about to go. So a test looks at every binary column of the schema: it
stands here, or among those that are known to hold no owner's envelope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from keybearer.crypto.keyring import Binding
from keybearer.errors import EnvelopeError
from keybearer.store.schema import audit_tree, deployment, reminder_hook, secret, secret_version
from keybearer.vault.hooks import bound
from keybearer.vault.sealed import binding, of_oauth

Bind = Callable[[Any, UUID], Binding]
"""From a row of the source and the deployment's id to what the column's envelope is bound to. Raises ``EnvelopeError``."""


@dataclass(frozen=True, slots=True)
class OwnersTable:
    """A table with owners' envelopes: rows with ``owner_id``, ``owner_key_id`` and one envelope or more under that key."""

    table: sa.Table
    key: tuple[str, ...]
    """Its primary key."""
    source: Callable[[sa.CTE], sa.Select[Any]]
    """From picked rows of the table to these, with everything that the bindings need."""
    envelopes: dict[str, Bind]
    """All envelopes of a row, which name one owner key together."""


@dataclass(frozen=True, slots=True)
class SystemsColumn:
    """An envelope under the system's owner key in a table of one row; which version of the key stands in the envelope."""

    column: sa.Column[Any]
    bind: Callable[[UUID], Binding]


def _with_secret(picked: sa.CTE) -> sa.Select[Any]:
    columns = (secret.c.egress.label("secret_egress"), secret.c.fetchable.label("secret_fetchable"))
    its_own = sa.and_(secret.c.id == picked.c.secret_id, secret.c.owner_id == picked.c.owner_id)
    return sa.select(picked, *columns).select_from(picked.join(secret, its_own))


def _value(row: Any, _deployment: UUID) -> Binding:
    """Versions from before they had these columns are bound to what the secret's row says."""
    egress = row.secret_egress if row.egress is None else row.egress
    if not isinstance(egress, list) or not all(isinstance(origin, str) for origin in egress):
        raise EnvelopeError
    fetchable = row.secret_fetchable if row.fetchable is None else row.fetchable
    return binding(row.secret_id, row.version, egress, fetchable=bool(fetchable))


def _oauth(row: Any, deployment_id: UUID) -> Binding:
    return of_oauth(_value(row, deployment_id))


OWNERS_TABLES = (
    OwnersTable(
        secret_version,
        ("secret_id", "version"),
        _with_secret,
        {"envelope": _value, "oauth_envelope": _oauth},
    ),
    OwnersTable(reminder_hook, ("owner_id",), sa.select, {"envelope": lambda row, _: bound(row.owner_id, row.version)}),
)

SYSTEMS_COLUMNS = (
    SystemsColumn(deployment.c.row_mac_key, lambda id_: Binding(id_, 1, "key", purpose="row-mac-key")),
    SystemsColumn(audit_tree.c.key_envelope, lambda id_: Binding(id_, 1, "key", purpose="audit-signing-key")),
)

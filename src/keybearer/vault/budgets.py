"""Budgets and limits: who may set what, and the only writer of them.

People set limits for themselves, their tokens and their secrets, admins of a team for it and its secrets, administrators for
everything. All limits that concern a call hold at once, so nobody's own limit loosens another's; what an administrator set, only an
administrator changes.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs, policy
from keybearer.access.attempts import attempt, taken
from keybearer.access.fields import Fields
from keybearer.audit import management
from keybearer.catalog import Catalog
from keybearer.crypto.keyring import Keyring
from keybearer.domain import (
    SYSTEM_OWNER_ID,
    Budget,
    BudgetKind,
    BudgetSubject,
    Caller,
    ManagementRecord,
    Owner,
    OwnerKind,
    Scope,
)
from keybearer.errors import EnvelopeError, Forbidden, Invalid, NotFound
from keybearer.store import changes
from keybearer.store.db import Database
from keybearer.store.queries import budgets as rows
from keybearer.store.queries import secrets, tokens
from keybearer.usage.limits import is_usd
from keybearer.vault import audience, reach

log = structlog.get_logger(__name__)

MICRO = 10**6
MOST = 10**15
"""A billion dollars, or as many tokens as nobody uses."""
_READ = (Scope.BUDGETS_WRITE, Scope.USAGE_READ)
_SUBJECTS, _KINDS = frozenset(BudgetSubject), frozenset(BudgetKind)
_TOKEN_ID = re.compile(r"[0-9A-Za-z]{12}")
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class NewBudget:
    """What a limit is to be. ``amount``: dollars, requests or tokens; ``subject_id`` empty: the caller, or the deployment."""

    subject: BudgetSubject
    kind: BudgetKind
    amount: Decimal
    subject_id: str = ""
    is_hard: bool = True


class Budgets:
    """See the module. ``check_kept`` raises where this deployment's processes could not keep a limit."""

    def __init__(self, db: Database, keyring: Keyring, catalog: Catalog, check_kept: Callable[[], Awaitable[None]]) -> None:
        self._db = db
        self._keyring = keyring
        self._catalog = catalog
        self._check_kept = check_kept

    # --- looking --------------------------------------------------------------------------------------------------------

    async def page(self, caller: Caller, cursor: str | None = None, limit: int = 50) -> tuple[Sequence[Budget], str | None]:
        """The limits that the caller may see, and the cursor of the next page: of what is theirs and their teams'; admins: all."""
        policy.require(caller, *_READ)
        async with self._db.read(policy.actor_of(caller)) as tx:
            found, following = await rows.page(tx, await self._seen(tx, caller), cursor, limit)
        return tuple(budget_of(self._keyring, row) for row in found), following

    async def get(self, caller: Caller, budget_id: UUID) -> Budget:
        """One of them. Raises ``NotFound`` for others' as for unknown ones."""
        async with attempt(self._db, "budget.read", caller, str(budget_id)):
            policy.require(caller, *_READ)
            async with self._db.read(policy.actor_of(caller)) as tx:
                row = await rows.get(tx, await self._seen(tx, caller), budget_id)
            if row is None:
                raise NotFound
            return budget_of(self._keyring, row)

    # --- changing -------------------------------------------------------------------------------------------------------

    async def create(self, caller: Caller, new: NewBudget) -> Budget:
        """Set a limit; every process keeps it within a second.

        Raises ``Invalid``, ``Forbidden``, ``NotFound`` (no such subject), ``Conflict`` (set already, or several processes without
        what they would share it in), ``ScopeMissing``.
        """
        async with (
            attempt(self._db, "budget.create", caller, new.subject_id[:64]),
            taken("This limit is set already.", hint="Change it: PATCH /api/v1/budgets/{id}."),
        ):
            policy.require(caller, Scope.BUDGETS_WRITE)
            amount = _amount(new.kind, new.amount)
            await self._check_kept()
            async with self._db.write(policy.actor_of(caller)) as tx:
                subject_id, owner_id = await self._subject(tx, caller, new)
                now = datetime.now(UTC)
                columns = {
                    "id": uuid4(),
                    "owner_id": owner_id,
                    "subject": new.subject.value,
                    "subject_id": subject_id,
                    "token_id": subject_id if new.subject is BudgetSubject.TOKEN else None,
                    "secret_id": UUID(subject_id) if new.subject is BudgetSubject.SECRET else None,
                    "kind": new.kind.value,
                    "amount": amount,
                    "is_hard": new.is_hard,
                    "by_admin": caller.is_admin,
                    "created_by": caller.user_id,
                    "created_at": now,
                    "updated_at": now,
                }
                row = self._signed(columns)
                await rows.insert(tx, vars(row))
                await self._note(tx, caller, "budget.create", row)
        return budget_of(self._keyring, row)

    async def update(self, caller: Caller, budget_id: UUID, fields: Mapping[str, Any]) -> Budget:
        """Change ``amount`` (dollars, requests or tokens) or ``is_hard``. Raises as ``create``."""
        async with attempt(self._db, "budget.update", caller, str(budget_id)):
            policy.require(caller, Scope.BUDGETS_WRITE)
            checked = Fields()
            checked.unknown(fields.keys() - {"amount", "is_hard"})
            checked.check()
            await self._check_kept()
            async with self._db.write(policy.actor_of(caller)) as tx:
                row = await self._changeable(tx, caller, budget_id)
                if budget_of(self._keyring, row).is_tampered:
                    raise Forbidden("This limit was changed outside Keybearer.", hint="Delete it and set it again.")
                columns = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for it
                if fields.get("amount") is not None:
                    columns["amount"] = _amount(BudgetKind(row.kind), fields["amount"])
                if fields.get("is_hard") is not None:
                    columns["is_hard"] = bool(fields["is_hard"])
                changed = self._signed(columns | {"updated_at": datetime.now(UTC)})
                written = {name: getattr(changed, name) for name in ("amount", "is_hard", "mac", "updated_at")}
                await rows.update(tx, row.owner_id, row.id, written)
                await self._note(tx, caller, "budget.update", changed)
        return budget_of(self._keyring, changed)

    async def delete(self, caller: Caller, budget_id: UUID) -> None:
        """Lift a limit. Raises ``NotFound``, ``Forbidden``, ``ScopeMissing``."""
        async with attempt(self._db, "budget.delete", caller, str(budget_id)):
            policy.require(caller, Scope.BUDGETS_WRITE)
            async with self._db.write(policy.actor_of(caller)) as tx:
                row = await self._changeable(tx, caller, budget_id)
                await rows.delete(tx, row.owner_id, row.id)
                await self._note(tx, caller, "budget.delete", row)

    # --- inside ---------------------------------------------------------------------------------------------------------

    async def _seen(self, tx: AsyncConnection, caller: Caller) -> tuple[UUID, ...] | None:
        if caller.is_admin:
            return None
        mine = await reach.load(tx, self._keyring, caller.user_id, shares=False)
        return caller.user_id, *(team.team_id for team in mine.teams)

    async def _changeable(self, tx: AsyncConnection, caller: Caller, budget_id: UUID) -> Any:
        row = await rows.get(tx, await self._seen(tx, caller), budget_id)
        if row is None:
            raise NotFound
        if caller.is_admin:
            return row
        if row.by_admin:
            raise Forbidden("An administrator set this limit.", hint="Ask an administrator, or set a tighter one of your own.")
        if row.owner_id != caller.user_id:
            await self._check_leads(tx, caller, row.owner_id)
        return row

    async def _check_leads(self, tx: AsyncConnection, caller: Caller, team_id: UUID) -> None:
        reach.led(await reach.load(tx, self._keyring, caller.user_id, shares=False), team_id)

    async def _subject(self, tx: AsyncConnection, caller: Caller, new: NewBudget) -> tuple[str, UUID]:
        """The subject's id in its one spelling, and whose it is, if the caller may limit it."""
        subject, given = new.subject, new.subject_id.strip()
        if subject in {BudgetSubject.PROVIDER, BudgetSubject.DEPLOYMENT}:
            policy.require_admin(caller)
            return await self._of_everybody(tx, subject, given), SYSTEM_OWNER_ID
        if subject is BudgetSubject.TOKEN:
            owner = None if caller.is_admin else caller.user_id
            row = await tokens.get(tx, owner, given) if _TOKEN_ID.fullmatch(given) else None
            if row is None:
                raise _no_subject("access token")
            return row.id, row.user_id
        wanted = caller.user_id if subject is BudgetSubject.USER and not given else _id(given)
        if subject is BudgetSubject.SECRET:
            return str(wanted), await self._owner_of_secret(tx, caller, wanted)
        if subject is BudgetSubject.TEAM and not caller.is_admin:
            await self._check_leads(tx, caller, wanted)
        elif subject is BudgetSubject.USER and wanted != caller.user_id:
            policy.require_admin(caller)
        async with self._db.as_system(tx):
            known = await rows.is_known(tx, subject, wanted)
        if not known:
            raise _no_subject(subject.value)
        return str(wanted), wanted

    async def _of_everybody(self, tx: AsyncConnection, subject: BudgetSubject, given: str) -> str:
        if subject is BudgetSubject.DEPLOYMENT:
            if given:
                raise Invalid.of("subject_id", "must be empty for the deployment")
            return ""
        if not _PROVIDER.fullmatch(given):
            raise _no_subject("provider")
        if given not in self._catalog.providers:
            async with self._db.as_system(tx):
                if not await rows.is_known(tx, subject, given):
                    raise _no_subject("provider")
        return given

    async def _owner_of_secret(self, tx: AsyncConnection, caller: Caller, secret_id: UUID) -> UUID:
        owners: tuple[UUID, ...] | None = None
        if not caller.is_admin:
            mine = await reach.load(tx, self._keyring, caller.user_id, shares=False)
            owners = (caller.user_id, *(team.team_id for team in mine.teams if team.leads))
        row = await secrets.get(tx, secret_id, owners)
        if row is None:
            raise _no_subject("secret")
        owner_id: UUID = row.owner_id
        return owner_id

    def _signed(self, columns: Mapping[str, Any]) -> SimpleNamespace:
        row = SimpleNamespace(**columns)
        row.mac = self._keyring.row_mac(macs.BUDGET, *macs.budget_fields(row))
        return row

    async def _note(self, tx: AsyncConnection, caller: Caller, action: str, row: Any) -> None:
        """Record the change, and tell every process: first of the limit, then of whom it concerns."""
        detail = {"subject": row.subject, "of": row.subject_id, "kind": row.kind, "amount": str(row.amount)}
        detail |= {"hard": str(bool(row.is_hard)).lower(), "by_admin": str(bool(row.by_admin)).lower()}
        kind = {BudgetSubject.TEAM: OwnerKind.TEAM}.get(BudgetSubject(row.subject), OwnerKind.USER)
        owner = Owner(OwnerKind.SYSTEM if row.owner_id == SYSTEM_OWNER_ID else kind, row.owner_id)
        record = ManagementRecord(action, caller, str(row.id), owner=owner, detail=tuple(detail.items()))
        await management.record(self._db, tx, record)
        everybody = row.owner_id == SYSTEM_OWNER_ID
        await changes.note(self._db, tx, "budget", str(row.id), None if everybody else row.owner_id)
        if row.subject == BudgetSubject.TEAM:
            await audience.note_team(self._db, tx, row.owner_id)
        elif row.subject == BudgetSubject.SECRET and not everybody:
            await audience.note_secret(self._db, tx, row.owner_id, row.secret_id)


def budget_of(keyring: Keyring, row: Any) -> Budget:
    """A limit's row; one that was not written here refuses what it concerns."""
    try:
        keyring.check_row(row.mac, macs.BUDGET, macs.budget_fields, row)
        is_tampered = False
    except EnvelopeError:
        log.warning(
            "a limit was changed outside Keybearer and refuses all calls: look at the database's logs", budget=str(row.id)
        )
        is_tampered = True
    return Budget(
        id=row.id,
        owner_id=row.owner_id,
        subject=BudgetSubject(row.subject) if row.subject in _SUBJECTS else BudgetSubject.DEPLOYMENT,
        subject_id=row.subject_id,
        kind=BudgetKind(row.kind) if row.kind in _KINDS else BudgetKind.USD_DAY,
        amount=row.amount,
        is_hard=bool(row.is_hard),
        by_admin=bool(row.by_admin),
        created_by=row.created_by,
        created_at=row.created_at,
        updated_at=row.updated_at,
        is_tampered=is_tampered,
    )


def _amount(kind: BudgetKind, amount: Decimal) -> int:
    """As the row has it. Raises ``Invalid``."""
    try:
        exact = amount * MICRO if is_usd(kind) else amount
        whole = int(exact) if exact.is_finite() and abs(exact) <= MOST else -1
    except (InvalidOperation, OverflowError):
        whole, exact = -1, Decimal(0)
    if whole < 0:
        raise Invalid.of("amount", f"is not between 0 and {MOST // (MICRO if is_usd(kind) else 1):,}")
    if whole != exact:
        raise Invalid.of("amount", "has more than six decimals" if is_usd(kind) else "is no whole number")
    return whole


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Invalid.of("subject_id", "is no id") from None


def _no_subject(noun: str) -> Exception:
    return NotFound(f"There is no such {noun}, or it is not yours to limit.", hint="Look at 'subject_id'.")

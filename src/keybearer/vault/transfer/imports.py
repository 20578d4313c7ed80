"""From a file to secrets and models: read, opened where it is encrypted, checked, and stored as one transaction.

A dry run does all that the import does and then rolls it back: so what it says is what would happen. A file goes in whole or not at
all, unless the caller says that what cannot be stored is to be left out. What nobody's key seems to be is left out in any case; or, if
the caller wants that, stored as a secret of the type ``custom``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import policy
from keybearer.access.attempts import attempt, record_alone, taken
from keybearer.access.fields import secret_value
from keybearer.audit import management
from keybearer.catalog import Catalog, Registry
from keybearer.crypto.keyring import Keyring
from keybearer.crypto.legacy import NotOpened, Reader
from keybearer.domain import Caller, ManagementRecord, Owner, Scope, SecretType
from keybearer.errors import Conflict, FieldError, Invalid, KeybearerError, ProviderUnknown, TooLarge
from keybearer.store.db import Database
from keybearer.vault import registry
from keybearer.vault.descriptions import NewModel
from keybearer.vault.drafts import NewSecret
from keybearer.vault.intake import TOGETHER, Entry
from keybearer.vault.keeper import sealing_actor
from keybearer.vault.models import Models, Shelf
from keybearer.vault.pointing import owner_of_new
from keybearer.vault.secrets import Secrets
from keybearer.vault.transfer import documents, dotenv
from keybearer.vault.transfer.items import CONTENT_LIMIT, ITEMS_LIMIT, Format, Item, Progress, Target, shown, target_of, unwatched

Outcome = Literal["create", "update", "unchanged", "conflict", "unknown", "invalid"]

FAILURES: frozenset[Outcome] = frozenset({"conflict", "invalid"})
_REFUSED: frozenset[Outcome] = FAILURES | {"unknown"}
CUSTOM = "env"
"""The provider's name of variables that are nobody's key, where they are wanted."""


@dataclass(frozen=True, slots=True)
class Options:
    """How an import goes about it."""

    dry_run: bool = False
    replace: bool = False
    """A secret of the same name gets the file's value as its next version."""
    skip_failed: bool = False
    """What cannot be stored is left out, and the rest is stored."""
    keep_unknown: bool = False
    """What is nobody's key is stored, too, as a custom secret."""
    save_anyway: bool = False
    """Save although formats look wrong."""
    system: bool = False
    team_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one item, or would."""

    place: str
    label: str
    """Its name in the file; empty where that might be a value."""
    outcome: Outcome
    provider: str = ""
    name: str = ""
    reason: str = ""
    kind: str = "secret"
    preview: str = ""
    """Of the value, as listings show it; empty for what is not, or would not be, a secret here."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a file, or would."""

    dry_run: bool
    applied: bool
    """Whether the file's items were stored (in a dry run: would be). False: nothing was changed."""
    results: tuple[Result, ...]

    def counts(self) -> dict[str, int]:
        """How many items of each outcome."""
        return dict(sorted(Counter(result.outcome for result in self.results).items()))


class _Undone(Exception):
    """Rolls a transaction back that has told what it would do."""

    def __init__(self, report: Report) -> None:
        self.report = report


class Imports:
    """One per process. ``environment`` gives the server's own environment variables, for administrators."""

    def __init__(
        self,
        db: Database,
        keyring: Keyring,
        catalog: Catalog,
        secrets: Secrets,
        models: Models,
        environment: Callable[[], Mapping[str, str]],
    ) -> None:
        self._db = db
        self._keyring = keyring
        self._catalog = catalog
        self.secrets = secrets
        self.models = models
        self._environment = environment

    async def run(
        self,
        caller: Caller,
        form: Format,
        content: str,
        reader: Reader | None,
        options: Options,
        progress: Progress = unwatched,
    ) -> Report:
        """Import a file. ``reader`` opens values that are encrypted.

        Raises ``Invalid`` (no such file), ``TooLarge``, ``ScopeMissing``, ``Forbidden``, ``NotFound`` (team), ``Conflict`` (somebody
        stored one of these at the same moment: nothing was changed).
        """
        async with attempt(self._db, "secret.import", caller):
            policy.require(caller, Scope.SECRETS_WRITE)
            items = await asyncio.to_thread(_read, form, content, reader, progress)
        return await self._store(caller, items, form, options, progress)

    async def environment(self, caller: Caller, options: Options, progress: Progress = unwatched) -> Report:
        """Import what the server's own environment has of well-known variables, and nothing else. Administrators only."""
        async with attempt(self._db, "secret.import", caller):
            policy.require_admin(caller)
            policy.require(caller, Scope.SECRETS_WRITE)
            known = {name for provider in self._catalog.providers.values() for name in provider.variables}
            found = sorted(self._environment().items())
            # What an encoding could not read came in as lone surrogates, and is refused by name where the value is checked.
            items = [Item("environment", name, secret_value(value)) for name, value in found if name in known and value.strip()]
        return await self._store(caller, items, "environment", replace(options, keep_unknown=False), progress)

    async def _store(self, caller: Caller, items: list[Item], form: str, options: Options, progress: Progress) -> Report:
        async with (
            attempt(self._db, "secret.import", caller),
            taken("Somebody stored one of these secrets at the same moment.", "Nothing was changed: import again."),
        ):
            if options.system:
                policy.require_admin(caller)
            try:
                report = await self._transaction(caller, items, form, options, progress)
            except _Undone as undone:
                report = undone.report
        if not report.applied and not options.dry_run:  # its record was rolled back with it
            counts = tuple((outcome, str(count)) for outcome, count in report.counts().items())
            await record_alone(self._db, ManagementRecord("secret.import", caller, "", outcome="refused", detail=counts))
        return report

    async def _transaction(self, caller: Caller, items: list[Item], form: str, options: Options, progress: Progress) -> Report:
        """Store the items; raise ``_Undone`` where they are not to be."""
        async with self._db.write(sealing_actor(caller)) as tx:
            whose = NewSecret("", secret_value(""), system=options.system, team_id=options.team_id)
            owner = await owner_of_new(tx, self._keyring, caller, whose)
            known = await registry.load(tx, self._keyring, self._catalog, owner.id)
            shelf = await self.models.shelf(tx, caller, owner)
            report = await _Import(self, tx, caller, known, shelf, options, progress).run(items)
            await owner_of_new(tx, self._keyring, caller, whose)  # they may have lost a team's lead meanwhile
            await self._record(tx, caller, owner, form, report)
            if options.dry_run or not report.applied:
                raise _Undone(report)
            return report

    async def _record(self, tx: AsyncConnection, caller: Caller, owner: Owner, form: str, report: Report) -> None:
        counts = tuple((outcome, str(count)) for outcome, count in report.counts().items())
        record = ManagementRecord("secret.import", caller, "", owner=owner, detail=(("format", form), *counts))
        await management.record(self._db, tx, record)

    def shown(self, name: str) -> str:
        """A name from a file as a report may repeat it."""
        return shown(self._catalog, name)

    def target(self, known: Registry, item: Item, value: str) -> Target | None:
        """Whose key an item is."""
        return target_of(known, self._catalog, item, value)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A secret that is checked and yet to be stored; ``result`` is what becomes of it, but for the outcome."""

    place: int
    entry: Entry
    result: Result


@dataclass(slots=True)
class _Import:
    """One file on its way in: its models together, then its secrets."""

    imports: Imports
    tx: AsyncConnection
    caller: Caller
    known: Registry
    shelf: Shelf
    options: Options
    progress: Progress
    seen: dict[tuple[str, ...], tuple[int, bytes]] = field(default_factory=dict)
    """Names, where each stands first, and its value there."""
    again: list[tuple[int, int]] = field(default_factory=list)
    """What stands in the file twice, and where it stands first."""
    waiting: list[_Waiting] = field(default_factory=list)

    async def run(self, items: list[Item]) -> Report:
        results: list[Result] = []
        for item in items:
            results.append(await self._one(item, len(results)))
            await self._pause("checking", len(results), len(items))
        keys = await self.imports.models.add(self.tx, self.caller, self.shelf)
        added, changed = await self._store(results)
        for place, first in self.again:
            if (found := results[first]).outcome in _REFUSED:
                results[place] = replace(results[place], outcome=found.outcome, reason=found.reason)
        # Last of all: from here to the commit nobody else can change anything.
        await self.imports.models.note(self.tx, self.caller, self.shelf, keys)
        await self.imports.secrets.intake.note(self.tx, self.shelf.owner, added)
        await self.imports.secrets.note_all(self.tx, self.shelf.owner.id, changed)
        applied = self.options.skip_failed or not any(result.outcome in FAILURES for result in results)
        return Report(self.options.dry_run, applied, tuple(results))

    async def _pause(self, what: str, done: int, total: int) -> None:
        """Say how far it is, and let others have their turn."""
        if done % TOGETHER == 0 or done == total:
            self.progress(what, done, total)
            await asyncio.sleep(0)

    async def _one(self, item: Item, place: int) -> Result:
        result = Result(item.place, self.imports.shown(item.variable), "invalid", kind=item.kind, reason=item.problem)
        if item.problem:
            return result
        try:
            return await self._model(item, result, place) if item.kind == "model" else self._secret(item, result, place)
        except _REFUSALS as error:
            return _refused(result, error)

    def _secret(self, item: Item, result: Result, place: int) -> Result:
        raw = item.value.reveal() if item.value is not None else b""
        target = self.imports.target(self.known, item, raw.decode("utf-8", "replace").strip())
        if target is None and self.options.keep_unknown:
            target = Target(CUSTOM, SecretType.CUSTOM, item.variable.lower() or "default")
        if target is None:
            reason = "Neither its name nor its value tells of which provider it is."
            return replace(result, outcome="unknown", reason=reason)
        fields = {name: value for name, value in item.fields.items() if name not in {"name", "secret_type"}}
        new = NewSecret(
            target.provider,
            secret_value("") if item.value is None else item.value,
            target.secret_type,
            target.name,
            save_anyway=self.options.save_anyway,
            **fields,
        )
        # As they are spelled, whether the first is good or not; then as they would be stored.
        spelled = ("secret", target.provider, str(target.secret_type or ""), target.name)
        if (twice := self._twice(result, place, raw, *spelled)) is not None:
            return twice
        entry = self.imports.secrets.intake.checked(self.known, new)
        if (twice := self._twice(result, place, raw, "stored", *entry.named)) is not None:
            return twice
        provider, name = self.imports.shown(target.provider), self.imports.shown(target.name)
        result = replace(result, provider=provider, name=name, preview=entry.draft.content.preview)
        self.waiting.append(_Waiting(place, entry, result))
        return result

    async def _store(self, results: list[Result]) -> tuple[Sequence[ManagementRecord], Sequence[ManagementRecord]]:
        """Store the secrets that wait, and put what became of each in its place; what is to be put on record: added, changed."""
        intake, owner, replacing = self.imports.secrets.intake, self.shelf.owner, self.options.replace
        held = await intake.held(self.tx, owner.id, [each.entry for each in self.waiting])
        adding: list[Entry] = []
        changed: list[ManagementRecord] = []
        for number, each in enumerate(self.waiting, 1):
            row = held.get(each.entry.named)
            try:
                if row is None:
                    each.entry.egress()
                    adding.append(each.entry)
                    results[each.place] = replace(each.result, outcome="create")
                else:
                    again = self.imports.secrets.put_again(self.tx, self.caller, row, each.entry, replace=replacing)
                    outcome, record = await again
                    changed += [record] if record else []
                    reason = _CONFLICT if outcome == "conflict" else ""
                    results[each.place] = replace(each.result, outcome=outcome, reason=reason)
            except _REFUSALS as error:
                results[each.place] = _refused(each.result, error)
            await self._pause("storing", number, len(self.waiting))
        return await intake.add(self.tx, self.caller, owner, adding), changed

    async def _model(self, item: Item, result: Result, place: int) -> Result:
        fields: dict[str, Any] = dict(item.fields)
        new = NewModel(
            item.provider, str(fields.pop("name", "")), api_key=item.value, **fields, save_anyway=self.options.save_anyway
        )
        raw = item.value.reveal() if item.value is not None else b""
        if (twice := self._twice(result, place, raw, "model", new.provider, new.name)) is not None:
            return twice
        outcome = await self.imports.models.put(self.tx, self.caller, self.shelf, new)
        shown_as = {"provider": self.imports.shown(new.provider), "name": self.imports.shown(new.name)}
        reason = "A model of this name is registered otherwise." if outcome == "conflict" else ""
        return replace(result, outcome=outcome, reason=reason, **shown_as)

    def _twice(self, result: Result, place: int, raw: bytes, *key: str) -> Result | None:
        """Of a name that stands in a file twice; ``None``: it has not stood there before.

        The same value again is no news, unless the first is refused: then it is, too. Another one is a question to its author.
        """
        first, value = self.seen.setdefault(key, (place, raw))
        if first == place:
            return None
        provider, name = self.imports.shown(key[1]), self.imports.shown(key[-1])
        if value.strip() == raw.strip():
            self.again.append((place, first))
            return replace(result, outcome="unchanged", provider=provider, name=name, reason="It stands in the file twice.")
        return replace(result, outcome="invalid", name=name, reason="It stands in the file twice, with different values.")


_REFUSALS = (ProviderUnknown, Conflict, Invalid, TooLarge)


def _refused(result: Result, error: KeybearerError) -> Result:
    """What becomes of an item that cannot be stored; messages never hold a value."""
    result = replace(result, preview="")
    if isinstance(error, ProviderUnknown):
        return replace(result, outcome="unknown", reason=error.message)
    if isinstance(error, Conflict):
        return replace(result, outcome="conflict", reason=error.message)
    return replace(result, outcome="invalid", reason=_reason(error))


_CONFLICT = "There is a secret of this name with another value."


def _read(form: Format, content: str, reader: Reader | None, progress: Progress) -> list[Item]:
    """All items, opened. In a thread: deriving keys takes its time. Raises ``Invalid``, ``TooLarge``."""
    if len(content) > CONTENT_LIMIT:
        raise TooLarge(f"The file has more than {CONTENT_LIMIT} characters.", hint="Split it.")
    readers: dict[str, Callable[[str], Iterator[Item]]] = {
        "env": dotenv.read,
        "json": documents.read_json,
        "csv": documents.read_csv,
    }
    items = list(islice(readers[form](content), ITEMS_LIMIT + 1))
    if len(items) > ITEMS_LIMIT:
        raise TooLarge(f"The file has more than {ITEMS_LIMIT} entries.", hint="Split it.")
    if not items:
        raise Invalid("The file has nothing in it.", fields=(FieldError("content", "is empty"),))
    if reader is None:
        return items
    found = []
    for item in items:
        found.append(_opened(item, reader))
        progress("opening", len(found), len(items))
    return found


def _opened(item: Item, reader: Reader) -> Item:
    if item.problem or item.value is None:
        return item
    try:
        return replace(item, value=reader.open(item.value.reveal().decode("utf-8", "replace"), item.facts))
    except NotOpened:
        return replace(item, value=None, problem="does not open with the keys given: another key, or it is damaged")


def _reason(error: KeybearerError) -> str:
    """What is wrong with an item; messages never hold a value."""
    return " ".join([error.message, *(f"{wrong.field} {wrong.message}." for wrong in error.fields[1:])])

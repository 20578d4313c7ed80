"""What some entries of a journal mean for the database: pure, entries in, rows out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from keybearer.audit import lines
from keybearer.audit.lines import Ended, Entry, Facts, LineError
from keybearer.store.queries.audit import Record
from keybearer.store.queries.usage import SecretUse, UsageRecord


@dataclass(slots=True)
class Batch:
    """Rows to write in one transaction. ``add`` entries in order; outcomes of uses of earlier batches wait in ``orphans``."""

    records: list[Record] = field(default_factory=list)
    uses: dict[str, UsageRecord] = field(default_factory=dict)
    """By request id; with the outcome where it is in this batch too."""
    late: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Outcomes of uses of earlier batches, by request id."""
    secrets: dict[object, SecretUse] = field(default_factory=dict)
    tokens: dict[str, datetime] = field(default_factory=dict)
    orphans: list[tuple[Entry, Ended]] = field(default_factory=list)
    closed_at: datetime | None = None
    """Set by a closing line."""
    _facts: dict[str, Facts] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Take the next entry in. Raises ``LineError`` if its line does not say what its kind must say."""
        kind = lines.kind_of(entry.line)
        if kind == "use":
            self._add_use(entry)
        elif kind == "outcome":
            try:
                ended = lines.decode_outcome(entry.line)
            except ValueError as error:
                raise LineError("not a line of kind outcome") from error
            use = self._facts.get(ended.request_id)
            if use is None:
                self.orphans.append((entry, ended))
            else:
                self._add_outcome(entry, ended, use)
        else:
            facts = lines.facts(entry.line, self._facts.get)
            self.records.append(_record(entry, facts))
            if kind == "close":
                self.closed_at = facts.at

    def adopt(self, uses: Mapping[str, Record]) -> None:
        """Take the orphans in, given the uses that earlier batches brought (those without one stay nobody's)."""
        for entry, ended in self.orphans:
            use = uses.get(ended.request_id)
            facts = lines.facts(use.line.encode(), self._facts.get) if use else None
            self._add_outcome(entry, ended, facts)
        self.orphans = []

    def _add_use(self, entry: Entry) -> None:
        try:
            use = lines.decode_use(entry.line)
            facts = lines.use_facts(use)
        except (ValueError, OverflowError, OSError) as error:
            raise LineError("not a line of kind use") from error
        self.records.append(_record(entry, facts))
        self._facts[use.request_id] = facts
        self.uses[use.request_id] = UsageRecord(
            request_id=use.request_id[: lines.REQUEST_ID],
            at=facts.at,
            user_id=use.user_id,
            token_id=use.token_id[: lines.TOKEN_ID],
            secret_id=use.secret_id,
            owner_id=use.owner.id,
            key_source=use.source,
            provider=use.provider[: lines.PROVIDER],
            model=use.model[: lines.MODEL],
            operation=use.operation[: lines.OPERATION],
            streamed=use.streamed,
            workflow=use.workflow[: lines.WORKFLOW],
            node=use.node[: lines.NODE],
            outcome=lines.UNKNOWN,
        )
        before = self.secrets.get(use.secret_id)
        workflow = use.workflow or (before.workflow if before else None)
        at = max(facts.at, before.at) if before else facts.at
        self.secrets[use.secret_id] = SecretUse(use.secret_id, (before.count if before else 0) + 1, at, workflow)
        if use.token_id:
            self.tokens[use.token_id] = max(facts.at, self.tokens.get(use.token_id, facts.at))

    def _add_outcome(self, entry: Entry, ended: Ended, use: Facts | None) -> None:
        self.records.append(_record(entry, lines.outcome_facts(ended, use)))
        columns = outcome_columns(ended)
        here = self.uses.get(ended.request_id)
        if here is not None:
            self.uses[ended.request_id] = replace(here, **columns)
        elif use is not None:
            self.late[ended.request_id] = columns


def outcome_columns(ended: Ended) -> dict[str, Any]:
    """Return what an outcome adds to a usage record. Counts are the provider's word: kept within what a column holds."""
    usage = ended.usage
    return {
        "outcome": ended.outcome[: lines.USAGE_OUTCOME],
        "status": ended.status,
        "duration_ms": ended.duration_ms,
        "first_byte_ms": ended.first_byte_ms,
        "input_tokens": lines.count(usage.input_tokens),
        "output_tokens": lines.count(usage.output_tokens),
        "cached_tokens": lines.count(usage.cached_tokens),
        "reasoning_tokens": lines.count(usage.reasoning_tokens),
        "cost_micro_usd": lines.count(ended.cost_micro_usd),
    }


def _record(entry: Entry, facts: Facts) -> Record:
    return Record(entry.writer, entry.seq, *facts, entry.nonce, entry.line.decode(), entry.d, entry.h)

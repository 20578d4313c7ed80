"""What some entries of a journal mean for the database: pure, entries in, rows out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from keybearer.audit import lines
from keybearer.audit.lines import Ended, Entry, Facts, LineError
from keybearer.store.queries.audit import Record
from keybearer.store.queries.usage import SecretUse, UsageRecord

Columns = tuple[Any, ...]

_NO_OUTCOME: Columns = (lines.UNKNOWN, None, None, None, None, None, None, None, None)


class Batch:
    """Rows to write in one transaction: ``add`` entries in order, then ``adopt`` the ``orphans``.

    Orphans are outcomes whose use came in an earlier batch; ``known`` has what is remembered of such uses, by request id.
    """

    def __init__(self, known: Mapping[str, Facts]) -> None:
        self.records: list[Record] = []
        self.late: dict[str, Columns] = {}
        """What outcomes add to usage records of earlier batches, by request id."""
        self.tokens: dict[str, datetime] = {}
        self.orphans: list[tuple[Entry, Ended]] = []
        self.closed_at: datetime | None = None
        """Set by a closing line."""
        self.facts: dict[str, Facts] = {}
        """Of the uses of this batch."""
        self.ended: list[str] = []
        """Requests whose outcome is in this batch."""
        self._known = known
        self._uses: dict[str, Columns] = {}
        self._outcomes: dict[str, Columns] = {}
        self._secrets: dict[UUID, tuple[int, datetime, str | None]] = {}

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
            use = self.facts.get(ended.request_id) or self._known.get(ended.request_id)
            if use is None:
                self.orphans.append((entry, ended))
            else:
                self._add_outcome(entry, ended, use)
        else:
            facts = lines.facts(entry.line, self.facts.get)
            self.records.append(_record(entry, facts))
            if kind == "close":
                self.closed_at = facts.at

    def adopt(self, uses: Mapping[str, Record]) -> None:
        """Take the orphans in, given the uses that earlier batches brought (those without one stay nobody's)."""
        for entry, ended in self.orphans:
            use = uses.get(ended.request_id)
            self._add_outcome(entry, ended, Facts(*use[2:10]) if use else None)
        self.orphans = []

    def usage(self) -> dict[str, UsageRecord]:
        """Return the usage records of this batch's uses, by request id, with the outcome where that is in this batch too."""
        outcomes = self._outcomes
        return {request_id: UsageRecord(*use, *outcomes.get(request_id, _NO_OUTCOME)) for request_id, use in self._uses.items()}

    def secrets(self) -> list[SecretUse]:
        """Return how often each secret was used in this batch."""
        return [SecretUse(secret_id, *told) for secret_id, told in self._secrets.items()]

    def _add_use(self, entry: Entry) -> None:
        try:
            use = lines.decode_use(entry.line)
            facts = lines.use_facts(use)
        except (ValueError, OverflowError, OSError) as error:
            raise LineError("not a line of kind use") from error
        self.records.append(_record(entry, facts))
        self.facts[use.request_id] = facts
        self._outcomes.pop(use.request_id, None)  # of an earlier key that was tried for the same request
        self._uses[use.request_id] = (
            facts.request_id,
            facts.at,
            use.user_id,
            use.token_id[: lines.TOKEN_ID],
            use.secret_id,
            use.owner.id,
            use.source.value,
            use.provider[: lines.PROVIDER],
            use.model[: lines.MODEL],
            use.operation[: lines.OPERATION],
            use.streamed,
            use.workflow[: lines.WORKFLOW],
            use.node[: lines.NODE],
        )
        count, at, workflow = self._secrets.get(use.secret_id, (0, facts.at, None))
        self._secrets[use.secret_id] = (count + 1, max(at, facts.at), use.workflow or workflow)
        if use.token_id:
            self.tokens[use.token_id] = max(facts.at, self.tokens.get(use.token_id, facts.at))

    def _add_outcome(self, entry: Entry, ended: Ended, use: Facts | None) -> None:
        self.records.append(_record(entry, lines.outcome_facts(ended, use)))
        self.ended.append(ended.request_id)
        if ended.request_id in self._uses:
            self._outcomes[ended.request_id] = outcome_columns(ended)
        elif use is not None:
            self.late[ended.request_id] = outcome_columns(ended)


def outcome_columns(ended: Ended) -> Columns:
    """Return ``OUTCOME_COLUMNS`` as an outcome tells them. Counts are the provider's word: kept within what a column holds."""
    usage = ended.usage
    return (
        ended.outcome[: lines.USAGE_OUTCOME],
        ended.status,
        ended.duration_ms,
        ended.first_byte_ms,
        lines.count(usage.input_tokens),
        lines.count(usage.output_tokens),
        lines.count(usage.cached_tokens),
        lines.count(usage.reasoning_tokens),
        lines.count(ended.cost_micro_usd),
    )


def _record(entry: Entry, facts: Facts) -> Record:
    return Record(entry.writer, entry.seq, *facts, entry.nonce, entry.line.decode(), entry.d, entry.h)

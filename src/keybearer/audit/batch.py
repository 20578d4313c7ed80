"""What some entries of a journal mean for the database: pure, entries in, rows out.

Rows are spelled as ``store.bulk`` takes them: ids as 32 hex digits, times as ISO text. Every call passes here twice, in the process
that serves it, so what most lines have in common is read once: of a use, all but its first two fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from keybearer.audit import lines
from keybearer.audit.lines import Ended, Entry, LineError, UseRest, split_use, time_text
from keybearer.domain import UseRecord
from keybearer.store.bulk import hex_of, time_of
from keybearer.store.queries.usage import SecretUse

Columns = tuple[Any, ...]

# Without their module's name, which costs a look-up each time.
_REQUEST_ID, _OUTCOME, _UNKNOWN = lines.REQUEST_ID, lines.OUTCOME, lines.UNKNOWN
_NO_OUTCOME: Columns = (_UNKNOWN, None, None, None, None, None, None, None, None)
_NOBODY: Columns = (None, None, None)
_SHAPES = 2000
"""Rests of lines that are remembered."""


class _Shape(NamedTuple):
    """What the rest of a use's line means."""

    action: str
    who: Columns
    """User, owner and secret, as in the columns of a record."""
    whom: Columns
    """User, token, secret and owner, and what follows them in a usage record up to its outcome."""
    token_id: str
    secret: str
    workflow: str


class Shapes:
    """The rests of use lines that came lately, each read once."""

    def __init__(self) -> None:
        self._shapes: dict[bytes, _Shape] = {}

    def of(self, rest: bytes) -> _Shape:
        """Return what ``rest`` means. Raises ``ValueError``."""
        shape = self._shapes.get(rest)
        if shape is None:
            shape = _shape(lines.decode_rest(rest))
            if len(self._shapes) >= _SHAPES:
                self._shapes.clear()
            self._shapes[rest] = shape
        return shape


class Batch:
    """Rows to write in one transaction: ``add`` entries in order, then ``adopt`` the ``orphans``.

    Orphans are outcomes whose use came in an earlier batch; ``known`` has what is remembered of such uses, by request id.
    """

    def __init__(self, known: Mapping[str, Columns], shapes: Shapes | None = None) -> None:
        self.records: list[Columns] = []
        """Rows of ``audit_record``."""
        self.late: dict[str, Columns] = {}
        """What outcomes add to usage records of earlier batches, by request id."""
        self.reserved: dict[str, Columns] = {}
        """Rows of ``reservation``, by request id."""
        self.tokens: dict[str, float] = {}
        """When tokens were used last, in Unix time."""
        self.orphans: list[tuple[Entry, Ended]] = []
        self.closed_at: datetime | None = None
        """Set by a closing line."""
        self.facts: dict[str, Columns] = {}
        """User, owner and secret of the uses of this batch."""
        self.ended: list[str] = []
        """Requests whose outcome is in this batch."""
        self._known = known
        self._shapes = shapes or Shapes()
        self._writer: UUID | None = None
        self._writer_hex = ""
        self._uses: dict[str, Columns] = {}
        self._outcomes: dict[str, Columns] = {}
        self._secrets: dict[str, tuple[int, float, str | None]] = {}

    def add(self, entry: Entry) -> None:
        """Take the next entry in. Raises ``LineError`` if its line does not say what its kind must say."""
        if entry.writer is not self._writer:
            self._writer, self._writer_hex = entry.writer, entry.writer.hex
        kind = lines.kind_of(entry.line)
        try:
            if kind == "use":
                self._add_use(entry)
            elif kind == "outcome":
                ended = lines.decode_outcome(entry.line)
                who = self.facts.get(ended.request_id) or self._known.get(ended.request_id)
                if who is None:
                    lines.time_text(ended.at)  # what is wrong with it is said here, not by ``adopt``
                    self.orphans.append((entry, ended))
                else:
                    self._add_outcome(entry, ended, who)
            else:
                self._add_other(entry)
        except (ValueError, OverflowError, OSError) as error:  # the last two: times beyond the calendar
            raise LineError(f"not a line of kind {kind}") from error

    def adopt(self, uses: Mapping[str, Columns]) -> None:
        """Take the orphans in, given the user, owner and secret of uses that earlier batches brought (others stay nobody's)."""
        for entry, ended in self.orphans:
            self._add_outcome(entry, ended, uses.get(ended.request_id))
        self.orphans = []

    def usage(self) -> Iterator[tuple[str, Columns]]:
        """Yield the usage records of this batch's uses, by request id, with the outcome where that is in this batch too."""
        outcome = self._outcomes.get
        return ((request_id, use + outcome(request_id, _NO_OUTCOME)) for request_id, use in self._uses.items())

    def secrets(self) -> list[SecretUse]:
        """Return how often each secret was used in this batch."""
        return [
            SecretUse(UUID(secret), count, datetime.fromtimestamp(at, UTC), workflow)
            for secret, (count, at, workflow) in self._secrets.items()
        ]

    def _add_use(self, entry: Entry) -> None:
        _, seq, nonce, d, h, line = entry
        try:
            start, rest = split_use(line)
            shape = self._shapes.of(rest)
            request_id, used_at = start.request_id, start.at
            if start.reserved_tokens is not None or start.reserved_micro_usd is not None:
                reserved = (time_text(used_at), lines.count(start.reserved_tokens), lines.count(start.reserved_micro_usd))
                self.reserved[request_id] = (request_id[:_REQUEST_ID], *reserved)
        except ValueError:  # in an order or with fields of another version
            use = lines.decode_use(line)
            request_id, used_at, shape = use.request_id, use.at, _shape(use)
        at = time_text(used_at)
        action, who, whom, token_id, secret, workflow = shape
        user_id, owner_id, secret_id = who
        column = request_id[:_REQUEST_ID]
        text = line.decode()
        self.records.append(
            (self._writer_hex, seq, at, "use", action, user_id, owner_id, secret_id, column, _UNKNOWN, nonce, text, d, h)
        )
        self.facts[request_id] = who
        self._outcomes.pop(request_id, None)  # of an earlier key that was tried for the same request
        self._uses[request_id] = (column, at, *whom)
        count, last, before = self._secrets.get(secret, (0, used_at, None))
        self._secrets[secret] = (count + 1, max(last, used_at), workflow or before)
        if token_id:
            last = self.tokens.get(token_id, used_at)
            self.tokens[token_id] = max(last, used_at)

    def _add_outcome(self, entry: Entry, ended: Ended, who: Columns | None) -> None:
        _, seq, nonce, d, h, line = entry
        request_id = ended.request_id
        user_id, owner_id, secret_id = who or _NOBODY
        at, column, outcome, text = time_text(ended.at), request_id[:_REQUEST_ID], ended.outcome[:_OUTCOME], line.decode()
        self.records.append(
            (
                self._writer_hex,
                seq,
                at,
                "outcome",
                "secret.outcome",
                user_id,
                owner_id,
                secret_id,
                column,
                outcome,
                nonce,
                text,
                d,
                h,
            )
        )
        self.ended.append(request_id)
        if request_id in self._uses:
            self._outcomes[request_id] = outcome_columns(ended)
        elif who is not None:
            self.late[request_id] = outcome_columns(ended)

    def _add_other(self, entry: Entry) -> None:
        facts = lines.facts(entry.line, lambda _: None)
        at, kind, action, user_id, owner_id, secret_id, request_id, outcome = facts
        self.records.append(
            (
                *(self._writer_hex, entry.seq, time_of(at), kind, action, hex_of(user_id), hex_of(owner_id), hex_of(secret_id)),
                *(request_id, outcome, entry.nonce, entry.line.decode(), entry.d, entry.h),
            )
        )
        if kind == "close":
            self.closed_at = at


def _shape(use: UseRest | UseRecord) -> _Shape:
    user, owner, secret = use.user_id.hex, use.owner.id.hex, use.secret_id.hex
    return _Shape(
        action=lines.use_action(use.operation),
        who=(user, owner, secret),
        whom=(
            *(user, use.token_id[: lines.TOKEN_ID], secret, owner, use.source.value),
            *(use.provider[: lines.PROVIDER], use.model[: lines.MODEL], use.operation[: lines.OPERATION], use.streamed),
            *(use.workflow[: lines.WORKFLOW], use.node[: lines.NODE]),
        ),
        token_id=use.token_id,
        secret=secret,
        workflow=use.workflow,
    )


def outcome_columns(ended: Ended) -> Columns:
    """Return ``OUTCOME_COLUMNS`` as an outcome tells them. Counts are the provider's word: kept within what a column holds."""
    usage = ended.usage
    counts = (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens, ended.cost_micro_usd)
    for number in counts:
        if number is not None and number >> 63:  # negative, or too much
            counts = tuple(map(lines.count, counts))  # type: ignore[assignment]  # five again
            break
    return (ended.outcome[: lines.USAGE_OUTCOME], ended.status, ended.duration_ms, ended.first_byte_ms, *counts)

"""How keys fare at their providers, as far as this process knows: which of them rest, until when, and why. Pure: the time is given.

A provider that refuses a key (401, 402, 403) has it *refused* for a minute, one that is asked too often (429) *cooling* for as long as it
says. Limits and permissions go by model at most providers, so these marks do: only a key that is not known any more (401) or not paid
for (402) is so for all. When the time is over, one call tries the key and the others keep to the next, until that call has an answer:
a success takes the mark away, another refusal renews it. Nothing of this is stored, and another process may see it otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import IntEnum
from typing import Final, Literal
from uuid import UUID

from keybearer.gateway.fields import Headers

REFUSED_SECONDS: Final = 60.0
TRIAL_SECONDS: Final = 30.0
"""How long others keep off a key that one call tries, if that call never has an answer."""
FIRST_BACKOFF: Final = 1.0
"""The first rest of a key whose provider does not say how long; it doubles each time ..."""
LONGEST_BACKOFF: Final = 60.0
"""... up to this."""
LONGEST_REST: Final = 3600.0
"""Whatever a provider says: after this a key is tried again."""

KEY_REFUSED: Final = frozenset({401, 402, 403})
TOO_MANY: Final = 429
_OF_THE_KEY: Final = frozenset({401, 402})
_ALL: Final = "*"
"""Instead of a model's name: the mark is for all of them."""
_MARKS: Final = 64
_SHOWN: Final = re.compile(r"[!-~]{1,80}")
_KEYS: Final = 50_000
_NUMBER: Final = re.compile(rb"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_DATE_BYTES: Final = 64

State = Literal["ok", "cooling", "refused"]


class Fitness(IntEnum):
    """What a key is good for at the moment, best first."""

    FIT = 0
    DUE = 1
    """Its rest is over: one call may try it."""
    LAST_RESORT = 2
    """Refused, or being tried by another call: used where there is no other."""
    RESTING = 3
    """Its provider asked to be left alone for a while."""


class Mark:
    """Why a key is passed over, and until when."""

    __slots__ = ("status", "times", "trial_until", "until")

    def __init__(self) -> None:
        self.status = 0
        self.until = 0.0
        self.times = 0
        """In a row, without a success between."""
        self.trial_until = 0.0
        """As long as a call tries the key; 0: none does."""

    @property
    def state(self) -> State:
        return "cooling" if self.status == TOO_MANY else "refused"

    def fitness(self, now: float) -> Fitness:
        """What the key is good for as far as this mark goes."""
        if now >= self.until:
            return Fitness.LAST_RESORT if now < self.trial_until else Fitness.DUE
        return Fitness.RESTING if self.status == TOO_MANY else Fitness.LAST_RESORT

    def renew(self, status: int, now: float, seconds: float | None) -> None:
        """The provider answered ``status``; ``seconds``: how long it wants to be left alone, ``None``: it does not say."""
        if now >= self.until:  # else it is the answer to a call that went out before the mark was made
            self.times += 1
        if seconds is None:
            seconds = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(self.times - 1, 16))
        self.until = max(self.until, now + min(seconds, LONGEST_REST))
        self.status = status
        self.trial_until = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """One key's health, for people."""

    state: State = "ok"
    until: datetime | None = None
    reason: str = ""
    last_status: int | None = None
    """What the provider last answered to this key, in this process."""


class Health:
    """One version of one secret, as its provider answers to it. ``marks`` are by model; empty: nothing is known against it."""

    __slots__ = ("last_status", "marks")

    def __init__(self) -> None:
        self.marks: dict[str, Mark] = {}
        self.last_status = 0

    def fitness(self, model: str, now: float) -> Fitness:
        """What the key is good for when ``model`` is called."""
        return max((mark.fitness(now) for mark in self._about(model)), default=Fitness.FIT)

    def is_refused(self, model: str) -> bool:
        """Whether the provider refused it and has not taken it since."""
        return any(mark.state == "refused" for mark in self._about(model))

    def rests_for(self, model: str, now: float) -> float:
        """Seconds until it may be tried again."""
        return max((mark.until - now for mark in self._about(model)), default=0.0)

    def failed(self, status: int, model: str, now: float, seconds: float | None) -> None:
        """The provider answered 401, 402, 403 or 429; ``seconds``: see ``Mark.renew``."""
        name = _ALL if status in _OF_THE_KEY else model
        mark = self.marks.get(name)
        if mark is None:
            while len(self.marks) >= _MARKS:
                del self.marks[next(iter(self.marks))]
            mark = self.marks[name] = Mark()
        mark.renew(status, now, REFUSED_SECONDS if status in KEY_REFUSED else seconds)

    def begin_trial(self, model: str, now: float) -> None:
        """This call tries the key, if its time is over; the others keep to the next."""
        for mark in self._about(model):
            if now >= mark.until:
                mark.trial_until = now + TRIAL_SECONDS

    def served(self, model: str, now: float) -> None:
        """The provider took it. A rest that it asked for is kept: this may be the answer to an earlier call."""
        for name in (_ALL, model):
            mark = self.marks.get(name)
            if mark is not None and (mark.state == "refused" or now >= mark.until):
                del self.marks[name]

    def report(self, now: float, at: datetime) -> Report:
        """For people; ``at`` is ``now`` by the calendar. Marks whose time is over are no longer told of."""
        last = self.last_status or None
        found = [(mark.state == "refused", mark.until, name, mark) for name, mark in self.marks.items() if now < mark.until]
        if not found:
            return Report(last_status=last)
        _, until, name, mark = max(found, key=lambda entry: entry[:3])
        what = "asked too often" if mark.state == "cooling" else "refused"
        models = f" for the model {name}" if name != _ALL and _SHOWN.fullmatch(name) else ""
        reason = f"The provider answered {mark.status} ({what}){models}."
        return Report(mark.state, at + timedelta(seconds=math.ceil(until - now)), reason, last)

    def _about(self, model: str) -> Iterable[Mark]:
        return [mark for name in (_ALL, model) if (mark := self.marks.get(name)) is not None]


class Healths:
    """Those of one process, by secret and version: a new value is another key."""

    def __init__(self) -> None:
        self._known: dict[tuple[UUID, int], Health] = {}

    def of(self, secret_id: UUID, version: int) -> Health:
        """The health of a key, from now on kept."""
        found = self._known.get((secret_id, version))
        if found is None:
            while len(self._known) >= _KEYS:
                del self._known[next(iter(self._known))]
            found = self._known[secret_id, version] = Health()
        return found

    def report(self, secret_id: UUID, version: int, now: float) -> Report:
        """What is known of a key. Of one that was not used here nothing is, and nothing will be kept."""
        found = self._known.get((secret_id, version))
        return Report() if found is None else found.report(now, datetime.now(UTC))


def stated_wait(headers: Headers, at: datetime) -> float | None:
    """How many seconds a provider asks to be left alone; ``None``: it does not say, or not in a way that is understood.

    ``retry-after-ms`` (OpenAI, Azure) is the finer; ``retry-after`` is seconds or a date (RFC 9110 §10.2.3). A date is measured by the
    provider's own clock where its answer shows it, else by ``at``.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found.setdefault(name, value.strip())
    milliseconds = _number(found.get(b"retry-after-ms", b""))
    if milliseconds is not None:
        return milliseconds / 1000
    stated = found.get(b"retry-after", b"")
    seconds = _number(stated)
    if seconds is not None:
        return seconds
    until = _date(stated)
    if until is None:
        return None
    return max(0.0, (until - (_date(found.get(b"date", b"")) or at)).total_seconds())


def _number(text: bytes) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _date(text: bytes) -> datetime | None:
    if not text or len(text) > _DATE_BYTES:
        return None
    try:
        found = parsedate_to_datetime(text.decode("latin-1"))
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)

"""The keys that may serve one kind of call for one token, all of one scope: in groups of one priority, which take turns.

Lowest number first; inside a group round robin, from a random start so that many tokens do not all begin with the same key. The value
before a rotation stands behind its group and serves only while the provider refuses the one in force.

What a provider keeps (files, batches, stored responses) is in the account of the key that made it, so calls about such things take no
turns: the first key serves as long as it can.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import groupby
from random import randrange
from typing import TYPE_CHECKING, Final, Literal

from keybearer.errors import KeybearerError, RateLimited, UpstreamUnreachable
from keybearer.gateway.health import Fitness, Health

if TYPE_CHECKING:
    from keybearer.gateway.ready import Ready

Kind = Literal["chat", "passing", "keeping"]
PASSING: Final = frozenset(
    {"chat.completions", "completions", "embeddings", "moderations", "rerank", "messages", "messages.count_tokens", "models"}
    | {"images.generations", "images.edits", "images.variations", "audio.speech", "audio.transcriptions", "audio.translations"}
    | {"generateContent", "streamGenerateContent", "embedContent", "batchEmbedContents", "countTokens", "models.get"}
    | {"responses.input_tokens", "responses.compact"}
)
"""Operations that leave nothing behind at the provider: any key may serve them, and sent twice, the worst is that both are paid for."""


def kind_of(operation: str) -> Kind:
    """What matters of an operation when a key is looked for: OpenRouter serves chats, and what is kept is in one key's account."""
    if operation == "chat.completions":
        return "chat"
    return "passing" if operation in PASSING else "keeping"


class Ring:
    """Keys in the order in which they serve. Decides; sends nothing, and changes nobody's health."""

    __slots__ = ("_groups", "_is_steady", "_model", "_turn", "keys", "until")

    def __init__(self, keys: Sequence[Ready]) -> None:
        """``keys``: in their order, at least one, all wanted for the same."""
        self.keys = keys
        self.until = min(key.until for key in keys)
        self._model = keys[0].wanted.model
        self._is_steady = keys[0].wanted.kind == "keeping"
        in_force = {key.credential.secret_id: key.health for key in keys if not key.credential.is_fallback}
        for key in keys:
            key.takes_turns = len(keys) > 1
            if key.credential.is_fallback:
                key.stands_in_for = in_force.get(key.credential.secret_id)
        ordered = sorted(keys, key=_place)
        self._groups = [tuple(group) for _, group in groupby(ordered, key=_place)]
        self._turn = 0 if self._is_steady else randrange(max(map(len, self._groups)))  # noqa: S311  # who begins is no secret

    def next(self, now: float) -> Ready | None:
        """The key for a call that has tried none: it is the next one's turn. As ``pick``."""
        if not self._is_steady:
            self._turn += 1
        group = self._groups[0]
        key = group[self._turn % len(group)]
        if key.health.marks or key.stands_in_for is not None:
            return self.pick(now)
        return key  # as nearly always

    def pick(self, now: float, tried: Container[Health] = ()) -> Ready | None:
        """The key whose turn it is, but for those that this call has tried; ``None``: all the others rest, or there are none."""
        last: Ready | None = None
        rests = False
        for group in self._groups:
            size = len(group)
            for index in range(size):
                key = group[(self._turn + index) % size]
                health = key.health
                if health in tried:
                    continue
                if key.stands_in_for is not None and not key.stands_in_for.is_refused(self._model):
                    continue
                fitness = health.fitness(self._model, now) if health.marks else Fitness.FIT
                if fitness <= Fitness.DUE:
                    return key
                if fitness is Fitness.RESTING:
                    rests = True
                elif last is None or (last.health.is_refused(self._model) and not health.is_refused(self._model)):
                    last = key
        # A refused key would only be refused again: better that the caller comes back when the others have rested.
        return None if last is not None and rests and last.health.is_refused(self._model) else last

    def problem(self, now: float) -> KeybearerError:
        """What to tell a caller whom no key serves: when to come again."""
        waits = [
            key.health.rests_for(self._model, now) for key in self.keys if key.health.fitness(self._model, now) is Fitness.RESTING
        ]
        if not waits:
            return UpstreamUnreachable("None of the keys for this call could serve it.")
        which = "All keys for this provider have" if len(self.keys) > 1 else "The key for this provider has"
        return RateLimited(
            f"{which} reached the provider's rate limit.",
            hint="Wait as long as retry-after says, or add another key.",
            retry_after=max(0.0, min(waits)),
        )

    def drop(self) -> None:
        """None of them is to be used any more."""
        for key in self.keys:
            key.is_dropped = True


def _place(key: Ready) -> tuple[int, bool]:
    return key.credential.priority, key.stands_in_for is not None

"""What the caches of ``credentials`` hold: a verified token, and a key made ready to leave for one target.

Whatever does not change from call to call is worked out here, once: header bytes, receipt, origin, when it ends.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from keybearer.catalog import Provider
from keybearer.catalog.openrouter import StandIn
from keybearer.domain import Asked, Credential, Grant, SecretBytes
from keybearer.errors import EgressRefused, KeyUnreadable
from keybearer.gateway.client_address import Network
from keybearer.gateway.egress import origin_of, placed, require_bound
from keybearer.gateway.fields import CREDENTIAL_NAMES
from keybearer.gateway.handout import Handout
from keybearer.gateway.health import Health
from keybearer.gateway.ring import Kind, Ring
from keybearer.gateway.upstream import Target

SECONDS = 55.0
"""An entry's life; with the seconds between purges a ready key is in memory for at most a minute."""

now: Callable[[], float] = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""The clock of these caches: time asleep counts, as it does for tokens and secrets that expire meanwhile."""

_HEADER_VALUE = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?\Z")


class Wanted(NamedTuple):
    """What a key is wanted for: this very provider (of a user's registry), in this dialect, this model, such a call."""

    provider: Provider
    dialect: str
    model: str
    kind: Kind = "passing"
    is_past_own: bool = False
    """The caller's own keys are at their limits: wanted is one that may serve instead of them."""


class Ready:
    """A key, ready to be sent to one target for one token: header bytes and receipt are made once."""

    __slots__ = (
        "__weakref__",
        "auth_name",
        "credential",
        "defaults",
        "head",
        "health",
        "is_dropped",
        "lines",
        "provider",
        "receipt",
        "stand_in",
        "stands_in_for",
        "takes_turns",
        "target",
        "until",
        "wanted",
    )

    def __init__(self, credential: Credential, wanted: Wanted, target: Target, head: SecretBytes, health: Health) -> None:
        self.credential = credential
        self.wanted = wanted
        self.health = health
        self.stand_in: StandIn | None = None
        """Where the call goes instead of to the provider that was named, and its model there."""
        self.takes_turns = False
        """There are other keys for such calls: whose turn it is, is asked for each."""
        self.stands_in_for: Health | None = None
        """The health of the value in force, where this is the one before a rotation."""
        self.provider = credential.provider
        self.target = target
        self.head = head
        """`` HTTP/1.1``, Host, the provider's auth header and Accept-Encoding: what follows method and path."""
        self.lines = head.reveal().count(b"\n")
        self.until = 0.0
        self.is_dropped = False
        self.auth_name = b""
        """The provider's auth header where it is none of the usual names: a client's header of that name is not relayed."""
        self.defaults: tuple[tuple[bytes, bytes], ...] = ()
        """Headers that the provider wants (``\\r\\nname: ``, value) unless the client sent its own."""
        self.receipt = b""
        """The receipt's header lines for the answer, all but the request id."""

    def check_egress(self) -> None:
        """Before every send: the target is among the hosts bound to the key. Raises ``EgressRefused``."""
        require_bound(self.target.origin, self.credential.egress)

    def is_stale(self) -> bool:
        """Whether something changed since it was made, or its time is over."""
        return self.is_dropped or self.until <= now()


@dataclass(slots=True, eq=False)
class Admission:
    """A verified token and what hangs on it."""

    digest: bytes
    grant: Grant
    until: float
    networks: tuple[Network, ...]
    is_dropped: bool = False
    rings: dict[Wanted, Ring] = field(default_factory=dict)
    handouts: dict[Asked, Handout] = field(default_factory=dict)


def ends_at(started: float, expires_at: datetime | None) -> float:
    """The monotonic time at which an entry read at ``started`` ends."""
    until = started + SECONDS
    if expires_at is not None:
        until = min(until, started + (expires_at - datetime.now(UTC)).total_seconds())
    return until


def prepare(credential: Credential, wanted: Wanted, health: Health, started: float) -> Ready:
    """Make a key ready. Raises ``EgressRefused``, and ``KeyUnreadable`` for a value that no header can carry."""
    provider = placed(wanted.provider, credential.egress)
    if provider is None:
        raise EgressRefused(f"The key is not bound to an address of {wanted.provider.display_name}.")
    auth = provider.apis[wanted.dialect].auth
    origin = origin_of(provider.base_url)
    value = credential.value.reveal()
    if _HEADER_VALUE.match(value) is None:
        raise KeyUnreadable("Your stored key has characters that no header can carry: enter it again.")
    lines = [b" HTTP/1.1\r\nhost: ", origin.authority, b"\r\naccept-encoding: identity"]
    if auth.style == "bearer":
        lines += (b"\r\nauthorization: Bearer ", value)
    elif auth.style == "header":
        lines += (b"\r\n", auth.header.lower().encode("ascii"), b": ", value)
    target = Target.of_owner(origin, provider.owner_id)
    ready = Ready(credential, wanted, target, SecretBytes(b"".join(lines)), health)
    ready.until = ends_at(started, credential.expires_at)
    ready.check_egress()
    if auth.style == "header" and auth.header.lower().encode("ascii") not in CREDENTIAL_NAMES:
        ready.auth_name = b"\r\n" + auth.header.lower().encode("ascii") + b": "
    ready.defaults = tuple(
        (b"\r\n" + name.lower().encode("ascii") + b": ", text.encode("ascii")) for name, text in provider.headers
    )
    ready.receipt = b"x-keybearer-key-source: %b\r\nx-keybearer-secret-id: %b\r\nx-keybearer-provider: %b\r\n" % (
        credential.source.value.encode("ascii"),
        str(credential.secret_id).encode("ascii"),
        provider.name.encode("ascii"),
    )
    return ready

"""Access tokens: ``kb_<12 characters id>_<32 characters secret><6 characters CRC32>``, all base62 (0-9 A-Z a-z).

The checksum covers everything before it (CRC-32 of zlib, as six base62 digits, most significant first, zero-padded): a
mistyped token is told from a revoked one without asking the database, and scanners can tell a token from a look-alike.
Stored are the id and the SHA-256 of the whole; the secret part has 190 bits, so no slow hash is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs, policy
from keybearer.access.attempts import attempt
from keybearer.access.fields import NAME_LIMIT, Fields
from keybearer.audit import management
from keybearer.crypto.keyring import Keyring
from keybearer.crypto.rows import RowField
from keybearer.domain import Caller, Grant, ManagementRecord, Owner, OwnerKind, Role, Scope
from keybearer.errors import EnvelopeError, Forbidden, NotFound, ScopeMissing, TokenInvalid
from keybearer.store import changes
from keybearer.store.db import Actor, Database
from keybearer.store.queries import lookups
from keybearer.store.queries import tokens as rows

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_LENGTH, SECRET_LENGTH, CHECKSUM_LENGTH = 12, 32, 6
LIST_LIMIT = 100
"""Entries of each of a token's lists."""
MODEL_LIMIT = 300
"""Characters of ``provider/model``."""

_SCOPES = tuple(sorted(Scope))
_ID = re.compile(rf"[0-9A-Za-z]{{{ID_LENGTH}}}")
_TOKEN = re.compile(rb"kb_([0-9A-Za-z]{12})_[0-9A-Za-z]{38}")
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_EPOCH = datetime.fromtimestamp(0, UTC)
# Stands in for a token that is not there, so that an unknown id costs what a known one does.
_NOBODYS = SimpleNamespace(
    id="0" * ID_LENGTH,
    token_hash=bytes(32),
    user_id=UUID(int=0),
    scopes=[Scope.GATEWAY_USE.value],
    allowed_providers=None,
    allowed_models=None,
    ip_allowlist=[],
    is_active=False,
    expires_at=None,
    created_at=_EPOCH,
    mac=bytes(32),
    user_role=Role.MEMBER.value,
    user_is_active=False,
    user_mac=bytes(32),
)


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token as listings show it: everything but its secret part."""

    id: str
    user_id: UUID
    name: str
    scopes: tuple[Scope, ...]
    allowed_providers: tuple[str, ...] | None
    """``None``: all."""
    allowed_models: tuple[str, ...] | None
    """``provider/model`` names; ``None``: all."""
    ip_allowlist: tuple[str, ...]
    """CIDRs; empty: any address."""
    is_active: bool
    expires_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewToken:
    """What a token is to be; see ``AccessToken``."""

    name: str
    scopes: frozenset[Scope] = frozenset({Scope.GATEWAY_USE})
    allowed_providers: frozenset[str] | None = None
    allowed_models: frozenset[str] | None = None
    ip_allowlist: tuple[str, ...] = ()
    expires_at: datetime | None = None


CHANGEABLE = frozenset({"name", "is_active", "scopes", "allowed_providers", "allowed_models", "ip_allowlist", "expires_at"})
_LIFTED_BY_NONE = frozenset({"allowed_providers", "allowed_models", "expires_at"})


def generate() -> str:
    """A new random token."""
    token_id, secret = ("".join(secrets.choice(ALPHABET) for _ in range(length)) for length in (ID_LENGTH, SECRET_LENGTH))
    body = f"kb_{token_id}_{secret}"
    return body + checksum(body.encode("ascii"))


def checksum(body: bytes) -> str:
    """Six base62 digits over everything before them."""
    number = zlib.crc32(body)
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def parse(token: bytes) -> str:
    """The id of a well-formed token. Raises ``TokenInvalid`` for anything else, a wrong checksum included."""
    matched = _TOKEN.fullmatch(token)
    if matched is None or not hmac.compare_digest(checksum(token[:-CHECKSUM_LENGTH]).encode("ascii"), token[-CHECKSUM_LENGTH:]):
        raise TokenInvalid
    return matched[1].decode("ascii")


class Tokens:
    """Makes, shows, changes, revokes and verifies access tokens."""

    def __init__(self, db: Database, keyring: Keyring) -> None:
        self._db = db
        self._keyring = keyring

    async def verify(self, token: bytes) -> Grant:
        """The grant behind a token. Raises ``TokenInvalid``.

        Unknown, revoked, expired, its owner disabled, its row tampered with: one answer, after one look-up, one hash and two
        MACs alike.
        """
        token_id = parse(token)
        digest = hashlib.sha256(token).digest()
        async with self._db.read(Actor.lookup()) as tx:
            found = await lookups.token_by_id(tx, token_id)
        row = _NOBODYS if found is None else found
        is_right = self._is_ours(row.mac, macs.TOKEN, macs.token_fields, row)
        is_right &= isinstance(row.token_hash, bytes) and hmac.compare_digest(digest, row.token_hash)
        is_right &= self._is_ours(row.user_mac, macs.USER, macs.user_fields, row.user_id, row.user_role, row.user_is_active)
        is_right &= bool(row.is_active) and bool(row.user_is_active)
        is_right &= row.expires_at is None or row.expires_at > datetime.now(UTC)
        if found is None or not is_right:
            raise TokenInvalid
        return _grant(row)

    async def create(self, caller: Caller, new: NewToken) -> tuple[AccessToken, str]:
        """Make a token of the caller's; its text is given this once. Raises ``Invalid``, ``ScopeMissing``, ``Forbidden``."""
        async with attempt(self._db, "token.create", caller):
            policy.require(caller, Scope.TOKENS_WRITE)
            now = datetime.now(UTC)
            text = generate()
            token = AccessToken(
                parse(text.encode("ascii")),
                caller.user_id,
                **_checked(new, now),
                is_active=True,
                last_used_at=None,
                created_at=now,
            )
            digest = hashlib.sha256(text.encode("ascii")).digest()
            async with self._db.write(policy.actor_of(caller)) as tx:
                await self._check_not_more(tx, caller, token)
                await rows.insert(tx, self._row(token, digest))
                await self._note(tx, caller, "token.create", token, {"name": token.name, "scopes": " ".join(token.scopes)})
        return token, text

    async def page(
        self, caller: Caller, user_id: UUID | None = None, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[AccessToken], str | None]:
        """A page of the caller's tokens, newest first, and the cursor of the next; another's for an administrator.

        Raises ``Forbidden``, ``ScopeMissing``, ``Invalid`` for a foreign cursor.
        """
        policy.require(caller, Scope.TOKENS_WRITE)
        if user_id is not None and user_id != caller.user_id:
            policy.require_admin(caller)
        async with self._db.read(policy.actor_of(caller)) as tx:
            found, following = await rows.of_user(tx, user_id or caller.user_id, cursor, limit)
        return [_token(row) for row in found], following

    async def get(self, caller: Caller, token_id: str) -> AccessToken:
        """One of the caller's tokens; for an administrator anybody's. Raises ``NotFound``, ``ScopeMissing``.

        Those of others are as unknown ones.
        """
        async with attempt(self._db, "token.read", caller, _known_form(token_id)):
            policy.require(caller, Scope.TOKENS_WRITE)
            async with self._db.read(policy.actor_of(caller)) as tx:
                return _token(_found(await rows.get(tx, _owner(caller), _known_form(token_id))))

    async def update(self, caller: Caller, token_id: str, **fields: Any) -> AccessToken:
        """Change the fields given (``CHANGEABLE``). Raises ``NotFound``, ``Invalid``, ``ScopeMissing``, ``Forbidden``.

        ``None`` lifts a limit or an expiry, and leaves all other fields as they are. Whatever a token may do after a change, the
        caller must have; renaming it and switching it off needs no more than its being one's own. An administrator switches off
        anybody's.
        """
        given = {name: value for name, value in fields.items() if value is not None or name in _LIFTED_BY_NONE}
        async with attempt(self._db, "token.update", caller, _known_form(token_id)):
            policy.require(caller, Scope.TOKENS_WRITE)
            async with self._db.write(policy.actor_of(caller)) as tx:
                owner_id = _owner(caller) if given == {"is_active": False} else caller.user_id
                row = _found(await rows.get(tx, owner_id, _known_form(token_id), lock=True))
                if not self._is_ours(row.mac, macs.TOKEN, macs.token_fields, row):
                    raise Forbidden("This token was changed outside Keybearer.", hint="Delete it and create another.")
                token = _changed(_token(row), given, datetime.now(UTC))
                if given.keys() - {"name", "is_active"} or given.get("is_active"):
                    await self._check_not_more(tx, caller, token)
                await rows.update(tx, self._row(token, bytes(row.token_hash)))
                await self._note(tx, caller, "token.update", token, {"fields": " ".join(sorted(given))})
        return token

    async def delete(self, caller: Caller, token_id: str) -> None:
        """Revoke a token for good, in every process within a second; an administrator anybody's. Raises ``NotFound``."""
        async with attempt(self._db, "token.delete", caller, _known_form(token_id)):
            policy.require(caller, Scope.TOKENS_WRITE)
            async with self._db.write(policy.actor_of(caller)) as tx:
                row = _found(await rows.get(tx, _owner(caller), _known_form(token_id), lock=True))
                await rows.delete(tx, row.user_id, row.id)
                await self._note(tx, caller, "token.delete", row, {"name": row.name})

    def _row(self, token: AccessToken, digest: bytes) -> dict[str, Any]:
        """The columns of a token, its MAC last."""
        columns: dict[str, Any] = {
            "id": token.id,
            "token_hash": digest,
            "user_id": token.user_id,
            "name": token.name,
            "scopes": [scope.value for scope in token.scopes],
            "allowed_providers": None if token.allowed_providers is None else list(token.allowed_providers),
            "allowed_models": None if token.allowed_models is None else list(token.allowed_models),
            "ip_allowlist": list(token.ip_allowlist),
            "is_active": token.is_active,
            "expires_at": token.expires_at,
            "created_at": token.created_at,
        }
        return columns | {"mac": self._keyring.row_mac(macs.TOKEN, *macs.token_fields(SimpleNamespace(**columns)))}

    def _is_ours(self, mac: object, table: str, fields: Callable[..., tuple[RowField, ...]], *of: Any) -> bool:
        try:
            self._keyring.check_row(mac, table, fields, *of)
        except EnvelopeError:
            return False
        return True

    async def _check_not_more(self, tx: AsyncConnection, caller: Caller, token: AccessToken) -> None:
        """Nobody can give a token more than they have: scopes, and where the caller is a token, its limits as they are now."""
        missing = frozenset(token.scopes) - caller.scopes
        if missing:
            raise ScopeMissing(f"You cannot give a token what you do not have: {' '.join(sorted(missing))}.")
        if caller.token_id is None:
            return
        row = await rows.get(tx, caller.user_id, caller.token_id)
        if row is None:  # revoked at this moment
            raise TokenInvalid
        own = _token(row)
        wider = [
            name
            for name, ours, theirs in (
                ("allowed_providers", own.allowed_providers, token.allowed_providers),
                ("allowed_models", own.allowed_models, token.allowed_models),
            )
            if ours is not None and (theirs is None or not set(theirs) <= set(ours))
        ]
        if own.ip_allowlist and not _networks_within(token.ip_allowlist, own.ip_allowlist):
            wider.append("ip_allowlist")
        if own.expires_at is not None and (token.expires_at is None or token.expires_at > own.expires_at):
            wider.append("expires_at")
        if wider:
            raise Forbidden(
                f"You cannot give a token more than yours has: {' '.join(wider)}.",
                hint="Set these fields at most as wide as those of the token you call with.",
            )

    async def _note(self, tx: AsyncConnection, caller: Caller, action: str, token: Any, detail: Mapping[str, str]) -> None:
        """Record the change, and tell every process. ``token`` is an ``AccessToken`` or its row."""
        owner = Owner(OwnerKind.USER, token.user_id)
        await management.record(
            self._db, tx, ManagementRecord(action, caller, token.id, owner=owner, detail=tuple(detail.items()))
        )
        await changes.note(self._db, tx, "token", token.id, token.user_id)


def _known_form(token_id: str) -> str:
    """An id as it may stand in a record and a query; anything else is the id of nothing."""
    return token_id if _ID.fullmatch(token_id) else ""


def _owner(caller: Caller) -> UUID | None:
    """Whose tokens the caller may look at and revoke; ``None``: anybody's."""
    return None if caller.is_admin else caller.user_id


def _found(row: Any) -> Any:
    if row is None:
        raise NotFound
    return row


def _token(row: Any) -> AccessToken:
    return AccessToken(
        id=row.id,
        user_id=row.user_id,
        name=row.name,
        scopes=tuple(scope for scope in _SCOPES if scope in row.scopes),
        allowed_providers=_optional(row.allowed_providers),
        allowed_models=_optional(row.allowed_models),
        ip_allowlist=tuple(row.ip_allowlist),
        is_active=row.is_active,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        created_at=row.created_at,
    )


def _grant(row: Any) -> Grant:
    """What the token may do now: what it was given, and its owner still has."""
    role = Role(row.user_role)
    return Grant(
        token_id=row.id,
        user_id=row.user_id,
        role=role,
        scopes=frozenset(scope for scope in policy.scopes_of(role) if scope in row.scopes),
        allowed_providers=None if row.allowed_providers is None else frozenset(row.allowed_providers),
        allowed_models=None if row.allowed_models is None else frozenset(row.allowed_models),
        ip_allowlist=tuple(row.ip_allowlist),
        expires_at=row.expires_at,
    )


def _optional(values: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


def _changed(token: AccessToken, given: Mapping[str, Any], now: datetime) -> AccessToken:
    """The token after the changes, checked like a new one; an expiry that was not touched may have passed."""
    unknown = given.keys() - CHANGEABLE
    fields = Fields()
    fields.unknown(unknown)
    fields.check()
    is_active = bool(given.get("is_active", token.is_active))
    wanted = NewToken(
        given.get("name", token.name),
        frozenset(given.get("scopes", token.scopes)),
        given.get("allowed_providers", token.allowed_providers),
        given.get("allowed_models", token.allowed_models),
        tuple(given.get("ip_allowlist", token.ip_allowlist)),
        given.get("expires_at"),
    )
    checked = _checked(wanted, now)
    if "expires_at" not in given:
        checked["expires_at"] = token.expires_at
    return replace(token, **checked, is_active=is_active)


def _checked(new: NewToken, now: datetime) -> dict[str, Any]:
    """The fields of a new token in their canonical form: sorted, distinct. Raises ``Invalid`` with all that is wrong."""
    fields = Fields()
    checked: dict[str, Any] = {
        "name": fields.name("name", new.name, NAME_LIMIT),
        "scopes": tuple(sorted(new.scopes)),
        "allowed_providers": _names(fields, "allowed_providers", new.allowed_providers),
        "allowed_models": _names(fields, "allowed_models", new.allowed_models),
        "ip_allowlist": _networks(fields, new.ip_allowlist),
        "expires_at": fields.future("expires_at", new.expires_at, now),
    }
    if not new.scopes:
        fields.wrong("scopes", "needs at least one scope")
    fields.check()
    return checked


def _names(fields: Fields, field: str, names: Iterable[str] | None) -> tuple[str, ...] | None:
    """Provider names, or ``provider/model`` names; an empty list would allow nothing and is surely a mistake."""
    if names is None:
        return None
    cleaned = fields.words(field, sorted(names), LIST_LIMIT, MODEL_LIMIT)
    if not cleaned:
        fields.wrong(field, "is empty; leave it out to allow all")
    for number, name in enumerate(cleaned):
        provider, slash, model = name.partition("/")
        if not _PROVIDER.fullmatch(provider) or (field == "allowed_models") != bool(slash and model):
            fields.wrong(
                f"{field}.{number}", "is not of the form provider/model" if field == "allowed_models" else "is not a provider"
            )
    return tuple(sorted(cleaned))


def _networks(fields: Fields, entries: Iterable[str]) -> tuple[str, ...]:
    """Addresses and CIDRs as CIDRs."""
    networks: list[str] = []
    for number, entry in enumerate(fields.words("ip_allowlist", entries, LIST_LIMIT)):
        try:
            networks.append(str(ip_network(entry, strict=False)))
        except ValueError:
            fields.wrong(f"ip_allowlist.{number}", "is not an IP address or CIDR")
    return tuple(sorted(set(networks)))


def _networks_within(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    """Whether every address of ``inner`` is one of ``outer``; an empty list is every address."""
    around = [ip_network(network) for network in outer]
    return bool(inner) and all(
        any(
            network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]  # of one version
            for other in around
        )
        for network in map(ip_network, inner)
    )

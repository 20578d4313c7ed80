"""A value that is ready to be handed to the program of one token: answer and receipt are made once, and kept as ready keys are."""

from __future__ import annotations

import msgspec

from keybearer.audit.lines import use_tail
from keybearer.domain import Client, Fetched, Grant, SecretBytes, UseRecord
from keybearer.gateway.fields import Fields

OPERATION = "fetch"
_TAILS = 64
"""Ends of journal lines kept: one for each workflow, node and address that a program calls from."""


class Handout:
    """One value for one token; ``credentials`` keeps it, for a minute at most, and drops it when anything about it changes."""

    __slots__ = ("_credential", "_tails", "body", "is_dropped", "receipt", "until")

    def __init__(self, found: Fetched, until: float) -> None:
        """``until``: on the clock of ``ready.now``."""
        credential = found.credential
        self.until = until
        self.is_dropped = False
        self._credential = credential
        self._tails: dict[tuple[str, str, Client], bytes] = {}
        said = {
            "id": credential.secret_id,
            "provider": credential.provider,
            "secret_type": found.secret_type,
            "name": found.name,
            "version": credential.secret_version,
            "expires_at": credential.expires_at,
            "value": credential.value.reveal().decode(),
        }
        self.body = SecretBytes(msgspec.json.encode(said))
        """The answer, as JSON."""
        self.receipt = b"x-keybearer-key-source: %b\r\nx-keybearer-secret-id: %b\r\nx-keybearer-provider: %b\r\n" % (
            credential.source.value.encode("ascii"),
            str(credential.secret_id).encode("ascii"),
            credential.provider.encode("ascii"),
        )

    def is_good(self, at: float) -> bool:
        """Whether nothing changed since it was made, and its time is not over at ``at``."""
        return not self.is_dropped and at < self.until

    def use_tail(self, grant: Grant, fields: Fields, client: Client) -> bytes:
        """The end of the journal's line for a use by these."""
        key = (fields.workflow, fields.node, client)
        tail = self._tails.get(key)
        if tail is None:
            if len(self._tails) >= _TAILS:
                self._tails.clear()
            tail = self._tails[key] = use_tail(self._use(grant, fields, client))
        return tail

    def _use(self, grant: Grant, fields: Fields, client: Client) -> UseRecord:
        credential = self._credential
        return UseRecord(
            request_id="",
            at=0.0,
            user_id=grant.user_id,
            token_id=grant.token_id,
            secret_id=credential.secret_id,
            secret_version=credential.secret_version,
            owner=credential.owner,
            source=credential.source,
            provider=credential.provider,
            model="",
            operation=OPERATION,
            streamed=False,
            workflow=fields.workflow,
            node=fields.node,
            client=client,
        )

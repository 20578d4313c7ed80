"""Masking a key in what a provider says: error bodies that echo the key, whole, escaped, or cut across chunks.

The mask is as long as what it covers, so a ``content-length`` stays true and the text stays readable where it was.
"""

from __future__ import annotations

import json
from urllib.parse import quote_from_bytes

from keybearer.domain import SecretBytes

MIN_KEY_BYTES = 4
"""Shorter ones are no secret, and masking them would shred every text."""
_MASK = b"*"
_TRIES = 256
"""Places of a piece where the key may begin that are looked at."""


class Scrubber:
    """Masks one key in bytes as they pass: ``feed`` each piece, then ``finish``.

    Holds back only a tail that may be the beginning of the key, hence fewer bytes than the key is long. Covers the key as it
    is, percent-encoded, and as JSON writes it, with slashes escaped or not. Not what a provider masks or cuts itself.
    """

    __slots__ = ("_forms", "_held")

    def __init__(self, key: SecretBytes) -> None:
        value = key.reveal()
        in_json = json.dumps(value.decode("latin-1"))[1:-1].encode()
        forms = {value, in_json, in_json.replace(b"/", b"\\/"), quote_from_bytes(value, safe="").encode()}
        self._forms = sorted(forms, key=len, reverse=True) if len(value) >= MIN_KEY_BYTES else []
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what may be passed on now."""
        if self._held:
            data, self._held = self._held + data, b""
        for form in self._forms:
            if form in data:
                data = data.replace(form, _MASK * len(form))
        held = max((_tail_that_begins(form, data) for form in self._forms), default=0)
        if held:
            data, self._held = data[:-held], data[-held:]
        return data

    def finish(self) -> bytes:
        """Return what was held back: the end has come, so it was not the key."""
        held, self._held = self._held, b""
        return held

    def whole(self, data: bytes) -> bytes:
        """Mask a text that is complete in itself."""
        return self.feed(data) + self.finish()

    def __repr__(self) -> str:
        return "<scrubber>"


def _tail_that_begins(form: bytes, data: bytes) -> int:
    """Measure the longest end of ``data`` that is a beginning of ``form``, short of the whole; of what repeats itself, no shorter one.

    To hold back more is safe. To look on would take as long as the squared length of a key, which may have 64 kB.
    """
    start = max(0, len(data) - len(form) + 1)
    tries = _TRIES
    while (start := data.find(form[:1], start)) >= 0:
        tries -= 1
        if form.startswith(data[start:]) or not tries:
            return len(data) - start
        start += 1
    return 0

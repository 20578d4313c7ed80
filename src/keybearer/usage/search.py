"""Where in a stream of events usage is stated: pure. Each chunk of each stream is searched, so this is done with care."""

from __future__ import annotations

import re
from typing import Final

USAGE: Final = re.compile(rb'"usage"[ \t]*:[ \t]*\{')
"""Where an event may state its usage, in all dialects but Gemini's."""
_KEY: Final = b'"usage"'
_COMPACT, _SPACED = b'"usage":{', b'"usage": {'
_USUAL: Final = (b":n", b":{", b": n", b": {")


def usage_at(data: bytes) -> int:
    """Where ``USAGE`` is found first in a piece of a stream; -1: nowhere. Five times as fast as asking it, for each chunk is searched.

    JSON is written with a space there or without one, by whoever made the event. Only whoever begins with another spelling is asked
    for the others.
    """
    key = data.find(_KEY)
    if key < 0:
        return -1
    if not data.startswith(_USUAL, key + len(_KEY)):
        found = USAGE.search(data, key)
        return -1 if found is None else found.start()
    compact, spaced = data.find(_COMPACT, key), data.find(_SPACED, key)
    return spaced if compact < 0 else compact if spaced < 0 else min(compact, spaced)

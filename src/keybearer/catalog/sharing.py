"""What a key of several people may be used for: decided from method and path, as the catalogue has them. Pure.

A team's or the system's key must not show one user another's files, batches or stored responses. So with such a key a call is
either harmless to the others (``free``), or makes an object that is then its maker's (``creates``), or names one object, which
must be its caller's own (``uses``). Everything else is ``refused``, above all lists. The gateway keeps whose object is whose
(docs/adr/0013-whose-objects.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

_CALL: Final = re.compile(r"(?P<method>[A-Z]{3,7}) (?P<path>/[A-Za-z0-9_.:~{}*/-]*)")
_ID: Final = r"(?P<id>[A-Za-z0-9_-]{1,200})"
_SEGMENTS: Final = r"[A-Za-z0-9_@:~-][A-Za-z0-9_.@:~-]*(?:/[A-Za-z0-9_@:~-][A-Za-z0-9_.@:~-]*)*"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a call is, for a shared key."""

    rule: Literal["free", "creates", "uses", "refused"]
    kind: str = ""
    """Of the object: ``file``, ``batch``, ``response`` …"""
    object_id: str = ""
    """Where the path names one."""


REFUSED: Final = Verdict("refused")
FREE: Final = Verdict("free")


@dataclass(frozen=True, slots=True)
class Call:
    """A method and the paths that go with it, relative to the API's root."""

    method: str
    path: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Sharing:
    """The rules of one API."""

    free: tuple[Call, ...] = ()
    creates: tuple[tuple[str, Call], ...] = ()
    uses: tuple[tuple[str, Call], ...] = ()
    references: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Fields of request bodies that name an object, at any depth, and its kind: it must be the caller's own, too."""
    yields: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    """By kind of object, the fields of its description that name what came of it, and of which kind that is."""

    def judge(self, method: str, path: str) -> Verdict:
        """What a call with a shared key is. ``path`` follows the API's root, without query, as it goes to the provider."""
        for kind, call in self.uses:
            found = call.path.fullmatch(path) if call.method == method else None
            if found is not None:
                return Verdict("uses", kind, found["id"])
        for kind, call in self.creates:
            if call.method == method and call.path.fullmatch(path):
                return Verdict("creates", kind)
        return FREE if any(call.method == method and call.path.fullmatch(path) for call in self.free) else REFUSED


NOT_SHARED: Final = Sharing()
"""Nothing is allowed: what the catalogue does not know of."""


def call_of(text: str, *, names_object: bool = False) -> Call:
    """Read ``GET /files/{id}``: ``{id}`` is an object's id, a last ``*`` one or more segments. Raises ``ValueError``."""
    found = _CALL.fullmatch(text)
    if found is None or ("{id}" in text) != names_object or text.count("{id}") > 1 or "*" in text[:-1]:
        raise ValueError(f"not a call: {text}")
    parts = re.split(r"(\{id\}|\*)", found["path"])
    pattern = "".join({"{id}": _ID, "*": _SEGMENTS}.get(part) or re.escape(part) for part in parts)
    return Call(found["method"], re.compile(pattern))

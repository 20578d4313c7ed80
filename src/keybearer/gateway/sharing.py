"""With a key of several people: which calls are served, and which objects a call names. Pure; what is decided is a call's *guard*.

Files, batches and stored responses belong to an account with the provider, so whoever uses its key could ask for everybody's. The
catalogue says which calls are harmless, which make an object and which name one (``catalog.sharing``); a body may name objects, too.
Everything named must have been made by the same caller with the same owner's key: ``gateway.objects`` knows.

A body is decoded only where it can name something. Names count in any case and at any depth, and each time that they stand there:
readers of JSON disagree on which of two keys counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from keybearer.catalog import GEMINI, Sharing, Verdict
from keybearer.domain import Credential, Grant, OwnerKind
from keybearer.errors import Invalid, InvalidJson, SharedKeyRefused, TooLarge, UnsupportedMediaType
from keybearer.gateway.body import decode_keys
from keybearer.gateway.fields import Lines
from keybearer.gateway.form import Form, is_form
from keybearer.gateway.plan import Plan

Named = frozenset[tuple[str, str]]
"""Kind and id of each object."""


class Asked(NamedTuple):
    """Who asks for objects, made with whose key, and where they are kept."""

    owner_id: UUID
    origin: str
    provider: str
    user_id: UUID
    token_id: str


NOTHING: Final[Named] = frozenset()
_DECODED_LIMIT: Final = 4 * 2**20
"""Bytes that are decoded of one request: at some 20 MB a second, other calls wait meanwhile."""
_PARTS_LIMIT: Final = 200_000
"""Objects and keys of them: of small ones, 4 MB hold a million, and take seconds."""
_ID: Final = r"[A-Za-z0-9_-]{1,200}"
_ABSENT: Final = msgspec.Raw(b"")
_WRITTEN: Final = re.compile(rf"(?:(?:https://[a-z0-9.-]+(?::[0-9]+)?/v1(?:alpha|beta)?/)?(?:files|cachedContents)/)?({_ID})")
"""An id alone, or as Gemini writes it: ``files/abc``, ``https://generativelanguage.googleapis.com/v1beta/files/abc``."""
_LINE_END: Final = re.compile(rb"[\r\n]")
_OF_AN_OBJECT: Final = ".id"
"""Ends names of fields that name something only as an object with an id: a ``prompt`` may be plain text."""
_VALUE_OF: Final = {"reasoning": "encrypted_content", "compaction": "encrypted_content", "image_generation_call": "result"}
"""Items of a conversation that the provider looks up by their id, unless they bring their content in this field."""
_INPUT: Final = "input"
_NOT_SHARED: Final = frozenset(
    {b"\r\nidempotency-key: ", b"\r\nx-idempotency-key: "}
    | {b"\r\nopenai-organization: ", b"\r\nopenai-project: ", b"\r\nx-goog-user-project: "}
)
"""Headers by which a provider repeats an answer that it gave before: it would not ask to whom; and those that choose another account of
the key's owner to work in and to pay."""


class Guard:
    """What holds for calls of one course. ``verdict``: what the catalogue says of method and path."""

    __slots__ = ("_id_field", "_needle", "_reads_items", "_takes", "asked", "deletes", "keeps", "sharing", "verdict")

    def __init__(self, sharing: Sharing, verdict: Verdict, planned: Plan, asked: Asked) -> None:
        self.sharing = sharing
        self.verdict = verdict
        self.asked = asked
        self.deletes = verdict.rule == "uses" and planned.method == b"DELETE"
        """Whether the object that the path names is gone when this succeeds."""
        self.keeps = verdict.rule == "creates" or (verdict.rule == "uses" and bool(sharing.yields.get(verdict.kind)))
        """Whether the answer may tell of an object that is the caller's from then on."""
        self._needle = _needle(tuple(sharing.references))
        self._reads_items = "previous_response_id" in sharing.references and planned.call.startswith(("/responses", "/conv"))
        self._takes = planned.takes
        self._id_field = "name" if planned.dialect == GEMINI else "id"

    @staticmethod
    def of(planned: Plan, credential: Credential, origin: str, grant: Grant) -> Guard | None:
        """The guard of calls with this key at ``origin``; ``None``: it is the caller's own. Raises ``SharedKeyRefused``."""
        if credential.owner.kind is OwnerKind.USER and credential.owner.id == grant.user_id:
            return None
        if planned.api is None:
            raise SharedKeyRefused
        sharing = planned.api.sharing
        method = "GET" if planned.method == b"HEAD" else planned.method.decode("ascii")
        verdict = sharing.judge(method, planned.call) if planned.call else None
        if verdict is None or verdict.rule == "refused":
            raise SharedKeyRefused(f"{credential.source.capitalize()} keys may not be used for this call.")
        asked = Asked(credential.owner.id, origin, credential.provider, grant.user_id, grant.token_id)
        return Guard(sharing, verdict, planned, asked)

    def forwarded(self, lines: Lines) -> Lines:
        """The client's headers without those that are not for who only borrows the key."""
        pairs = list(zip(lines.pieces[::2], lines.pieces[1::2], strict=True))
        if not any(name in _NOT_SHARED for name, _ in pairs):
            return lines
        return Lines([piece for pair in pairs if pair[0] not in _NOT_SHARED for piece in pair])

    def named(self, body: bytes, content_type: bytes) -> Named:
        """The objects that a call names, in its path and in its body. Raises ``SharedKeyRefused``, ``InvalidJson``, ``TooLarge``."""
        in_path = frozenset({(self.verdict.kind, self.verdict.object_id)}) if self.verdict.rule == "uses" else NOTHING
        references = self.sharing.references
        if not body or not references:
            return in_path
        if is_form(content_type):
            return in_path | self._in_form(Form(body, content_type))
        if self._takes == "json" and not self._reads_items and self._needle.search(body) is None:
            return in_path  # it was found to be JSON
        if self._takes == "anything" and content_type.partition(b";")[0].strip().lower() != b"application/json":
            # One text can be JSON and something else: what it is read as is said here.
            raise UnsupportedMediaType("With a shared key, only JSON and forms are passed on here.")
        if len(body) > _DECODED_LIMIT:
            raise TooLarge("With a shared key, a body that may name stored objects has at most 4 MB.")
        return in_path | self._in_json(body)

    def made(self, answer: bytes, *, streamed: bool) -> Named:
        """What an answer, or the beginning of a stream, tells of that is the caller's from now on."""
        if not streamed:
            return self._told(answer)
        for event in re.split(rb"\r\n\r\n|\n\n|\r\r", answer)[:-1]:
            data = b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
            found = self._told(data)
            if found:
                return found
        return NOTHING

    def _told(self, text: bytes) -> Named:
        try:
            told = decode_keys(text)
            wrapped = told.get("response", _ABSENT)
            told = decode_keys(bytes(wrapped)) if bytes(wrapped)[:1] == b"{" else told
            values = [(kind, msgspec.json.decode(told[name])) for name, kind in self._telling().items() if name in told]
        except (ValueError, RecursionError, Invalid):
            return NOTHING
        ids = [(kind, _WRITTEN.fullmatch(value)) for kind, value in values if isinstance(value, str)]
        return frozenset((kind, found[1]) for kind, found in ids if found is not None)

    def _telling(self) -> Mapping[str, str]:
        """The fields of an answer that tell an id: ``id``, or Gemini's ``name`` (``cachedContents/abc``)."""
        kind = self.verdict.kind
        made = {self._id_field: kind} if self.verdict.rule == "creates" else {}
        return made | dict(self.sharing.yields.get(kind, {}))

    def _in_json(self, body: bytes) -> Named:
        found = _Found(self.sharing.references)
        document = found.read(body)
        if self._reads_items:
            found.items(document)
        return frozenset(found.named)

    def _in_form(self, form: Form) -> Named:
        """Fields by their names (``images[0][file_id]``); files by their lines, which a batch may consist of."""
        found = _Found(self.sharing.references)
        for name, value in form.fields():
            for part in re.split(r"[\[\].]+", name):
                found.pair(part, value.decode("utf-8", "replace"))
        if self.verdict.rule == "creates":
            decoded = 0
            for line in (line for content in form.files() for line in _lines_with(self._needle, content)):
                decoded += len(line)
                if decoded > _DECODED_LIMIT:
                    raise TooLarge("With a shared key, a file that names stored objects has at most 4 MB of them.")
                self._in_line(found, line)
        return frozenset(found.named)

    def _in_line(self, found: _Found, line: bytes) -> None:
        """One line of a file: if it is a call of a batch, it names objects as a call does; if it is no JSON, it is no call."""
        try:
            call = found.read(line)
        except InvalidJson:
            return
        if isinstance(call, dict):
            found.items(_value(call, "body"))


class _Found:
    """What is named, collected while JSON is read: the hook sees each pair of each object, also of keys that stand twice."""

    def __init__(self, references: Mapping[str, str]) -> None:
        self.named: set[tuple[str, str]] = set()
        self._kinds = _kinds(tuple(references.items()))
        self._parts = 0

    def read(self, body: bytes) -> Any:
        """Decode a body. Raises ``InvalidJson``, ``TooLarge``."""
        self._parts += body.count(b"{") + body.count(b":") + 1
        if self._parts > _PARTS_LIMIT:
            raise TooLarge(f"With a shared key, a body that may name stored objects has at most {_PARTS_LIMIT} keys and objects.")
        try:
            return json.loads(body.decode(), object_pairs_hook=self._object)
        except (ValueError, RecursionError):
            raise InvalidJson("With a shared key, only JSON and forms are passed on here.") from None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, value in pairs:
            self.pair(name, value)
        made = dict(pairs)
        if len({name.casefold() for name in made}) != len(pairs) and any(name.casefold() in _CONFUSED for name in made):
            raise SharedKeyRefused("With a shared key, no key of an object may stand twice in a body.")
        return made

    def pair(self, name: str, value: Any) -> None:
        """One key, or field of a form, with its value."""
        known = self._kinds.get(name.casefold())
        if known is None:
            return
        kind, is_text = known
        for each in value if isinstance(value, list) else (value,):
            written = _value(each, "id") if isinstance(each, dict) else each if is_text else None
            if isinstance(written, str) and written:
                found = _WRITTEN.fullmatch(written)
                self.named.add((kind, found[1] if found else written))

    def items(self, call: Any) -> None:
        """Items of a conversation that stand there by their id alone: nobody's, for it is not known who made them."""
        for name in (_INPUT, "items"):
            listed = _value(call, name) if isinstance(call, dict) else None
            for item in listed if isinstance(listed, list) else ():
                if isinstance(item, dict) and isinstance(_value(item, "id"), str) and _is_looked_up(item):
                    raise SharedKeyRefused(
                        "With a shared key, an item of a conversation cannot be named by its id alone.",
                        hint="Send 'store': false and 'include': ['reasoning.encrypted_content'], or previous_response_id.",
                    )


_CONFUSED: Final = frozenset({"id", "type", _INPUT, "items", "encrypted_content", "result", "body", "role"})
"""Keys that decide here what an object names: of two, a reader might take the other one."""


def _is_looked_up(item: Mapping[str, Any]) -> bool:
    kind = _value(item, "type")
    if kind is None:
        return _value(item, "role") is None
    return kind == "item_reference" or (kind in _VALUE_OF and not item.get(_VALUE_OF[kind]))


def _value(found: Mapping[str, Any], name: str) -> Any:
    """A key's value, in whatever case: providers written in Go take ``"ID"`` for ``"id"``."""
    return next((value for key, value in found.items() if key.casefold() == name), None)


@lru_cache(maxsize=64)
def _kinds(references: tuple[tuple[str, str], ...]) -> Mapping[str, tuple[str, bool]]:
    """By folded name: the kind of object, and whether plain text names one."""
    return {name.removesuffix(_OF_AN_OBJECT).casefold(): (kind, not name.endswith(_OF_AN_OBJECT)) for name, kind in references}


@lru_cache(maxsize=64)
def _needle(names: Iterable[str]) -> re.Pattern[bytes]:
    """Finds in JSON whatever may be one of these keys: in any case, or with letters escaped.

    Two letters beyond ASCII count as ``s`` and ``k`` where case does not (Unicode's simple folding): what has them is decoded.
    """
    folded = sorted(re.escape(name.removesuffix(_OF_AN_OBJECT)) for name in names)
    alternatives = "|".join([*folded, _INPUT, "item_reference"])
    return re.compile(rf'"(?:{alternatives})"|\\u(?:00[2-7]|017f|212a)|\xc5\xbf|\xe2\x84\xaa'.encode(), re.IGNORECASE)


def _lines_with(needle: re.Pattern[bytes], content: bytes) -> Iterator[bytes]:
    """The lines in which it is found. Others are not looked at: a file may have millions."""
    at = 0
    for found in needle.finditer(content):
        if found.start() >= at:
            start = max(content.rfind(b"\n", at, found.start()), content.rfind(b"\r", at, found.start()), at - 1) + 1
            end = _LINE_END.search(content, found.end())
            at = len(content) if end is None else end.start()
            yield content[start:at]

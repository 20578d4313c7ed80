"""``multipart/form-data`` bodies: the few fields that decide, read so strictly that no other reader can see another form.

Readers of multipart disagree on nearly everything at the edges: lines that end without CR, white space after a boundary, quotes in
names, fields that stand twice. A provider that reads a form otherwise would follow another model than the one that was checked. So
whatever is not spelled as the SDKs, browsers and curl spell it (RFC 7578, RFC 2046 section 5.1) is refused. The content of files is
never looked at, but for the boundary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from keybearer.errors import FieldError, Invalid, InvalidRequest, UnsupportedMediaType
from keybearer.gateway.body import Head

_TYPE: Final = re.compile(
    rb"multipart/form-data[ \t]*;[ \t]*boundary=(?:\"([A-Za-z0-9'()+_,./:=?-]{1,70})\"|([A-Za-z0-9'+_.-]{1,70}))[ \t]*",
    re.IGNORECASE,
)
_PARTS_LIMIT: Final = 128
_HEAD_LIMIT: Final = 4096  # bytes of one part's headers
_FIELD_LIMIT: Final = 256  # bytes of a field that decides
_NAME: Final = rb"[A-Za-z0-9_.\[\]-]{1,128}"
_DISPOSITION: Final = re.compile(
    rb"form-data;[ \t]*name=(?:\"(?P<quoted>" + _NAME + rb")\"|(?P<bare>[A-Za-z0-9_.-]{1,128}))"
    rb"(?P<file>;[ \t]*filename=(?:\"[^\"\\\x00-\x1f\x7f]*\"|[!#$%&'*+.^_`|~0-9A-Za-z-]+))?"
    rb"(?P<encoded>;[ \t]*filename\*=[Uu][Tt][Ff]-8''[A-Za-z0-9!#$&+.^_`|~%-]*)?[ \t]*",
    re.IGNORECASE,
)
_LINE: Final = re.compile(rb"([A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_PLAIN_TEXT: Final = re.compile(rb'text/plain(?:[ \t]*;[ \t]*charset="?utf-8"?)?[ \t]*', re.IGNORECASE)
_TRANSFER: Final = frozenset({b"binary", b"8bit", b"7bit"})
_HEADERS: Final = frozenset({b"content-disposition", b"content-type", b"content-length", b"content-transfer-encoding"})
_DECISIVE: Final = frozenset({"model", "stream", "_charset_"})
_TRUE: Final = frozenset({"true", "1"})
_DASHES: Final = b"--"
_LINE_END: Final = b"\r\n"


class Part(NamedTuple):
    """One part of a form."""

    name: str
    is_file: bool
    start: int
    """Where its headers begin, after the boundary's line."""
    at: int
    """Where its content begins."""
    end: int
    content_type: bytes


def is_form(content_type: bytes) -> bool:
    """Whether a content type says ``multipart/form-data``."""
    return content_type[:19].lower() == b"multipart/form-data"


class Form:
    """A form with its decisive fields, as ``Document`` is for JSON. Raises at construction.

    ``UnsupportedMediaType``: no form; ``InvalidRequest``: not spelled as one must be; ``Invalid``: a decisive field is wrong or
    stands twice.
    """

    __slots__ = ("_renamed", "body", "head", "parts")

    def __init__(self, body: bytes, content_type: bytes) -> None:
        self.body = body
        self.parts = tuple(_parts(body, _boundary(content_type)))
        self._renamed = b""
        self.head = Head()
        decisive = {name: self._decisive(name) for name in _DECISIVE}
        if decisive["_charset_"] is not None:
            raise Invalid("The form states a charset.", fields=(FieldError("_charset_", "must not be sent: UTF-8 it is"),))
        if decisive["model"] is not None:
            self.head.model = decisive["model"]
        if decisive["stream"] is not None:
            self.head.stream = decisive["stream"].lower() in _TRUE

    def rename(self, model: str) -> None:
        """Write the part of the field ``model`` anew."""
        part = next(part for part in self.parts if part.name == "model")
        text = b'Content-Disposition: form-data; name="model"\r\n\r\n%b' % model.encode()
        self._renamed = b"".join((self.body[: part.start], text, self.body[part.end :]))

    def ask_usage(self) -> bool:
        """No form has a way to ask for usage."""
        return False

    def put_defaults(self, parameters: Mapping[str, Any]) -> None:
        """A registered model's defaults are parameters of JSON bodies; a form goes on as it is."""

    def spliced(self) -> bytes:
        """The body with the change made, every other byte as it came."""
        return self._renamed or self.body

    def fields(self) -> Iterator[tuple[str, bytes]]:
        """Names and values of all that is no file."""
        return ((part.name, self.body[part.at : part.end]) for part in self.parts if not part.is_file)

    def files(self) -> Iterator[bytes]:
        """The contents of all files."""
        return (self.body[part.at : part.end] for part in self.parts if part.is_file)

    def _decisive(self, name: str) -> str | None:
        """The text of a field that decides; ``None``: it does not stand there. Case does not tell fields apart here."""
        found = [part for part in self.parts if part.name.casefold() in {name, f"{name}[]"}]
        if not found:
            return None
        part = found[0]
        if len(found) > 1 or part.name != name:
            raise Invalid(
                f"The form has the field '{name}' twice, or in another spelling.", fields=(FieldError(name, "is unclear"),)
            )
        if part.is_file or not (part.content_type == b"" or _PLAIN_TEXT.fullmatch(part.content_type)):
            raise Invalid(f"The field '{name}' is not plain text.", fields=(FieldError(name, "must be text, not a file"),))
        if part.end - part.at > _FIELD_LIMIT:
            raise Invalid(f"The field '{name}' is too long.", fields=(FieldError(name, "is too long"),))
        try:
            return self.body[part.at : part.end].decode()
        except UnicodeDecodeError:
            raise Invalid(f"The field '{name}' is not UTF-8.", fields=(FieldError(name, "is not UTF-8"),)) from None


def _boundary(content_type: bytes) -> bytes:
    found = _TYPE.fullmatch(content_type)
    if found is None:
        raise UnsupportedMediaType(
            "The content type is not 'multipart/form-data; boundary=…'; this route takes a form.",
            hint="Let the HTTP client write this header: it knows the boundary.",
        )
    return bytes(found[1] or found[2])


def _parts(body: bytes, boundary: bytes) -> Iterator[Part]:
    """The parts in their order. The boundary stands where a part begins or all end, and nowhere else."""
    delimiter = _DASHES + boundary
    if not body.startswith(delimiter + _LINE_END):
        raise _malformed("it does not begin with its boundary")
    start = len(delimiter) + 2
    for _ in range(_PARTS_LIMIT):
        end = body.find(delimiter, start)
        if end < 0:
            raise _malformed("it has no end")
        after = body[end + len(delimiter) : end + len(delimiter) + 2]
        if body[end - 2 : end] != _LINE_END or after not in {_LINE_END, _DASHES} or end - 2 < start:
            raise _malformed("its boundary stands where no part begins or ends")
        yield _part(body, start, end - 2)
        start = end + len(delimiter) + 2
        if after == _DASHES:
            if body[start:] not in {b"", _LINE_END}:
                raise _malformed("something follows its end")
            return
    raise _malformed(f"it has more than {_PARTS_LIMIT} parts")


def _part(body: bytes, start: int, end: int) -> Part:
    head_end = body.find(b"\r\n\r\n", start, min(start + _HEAD_LIMIT, end))
    if head_end < 0:
        raise _malformed("a part has no headers, or too many")
    headers: dict[bytes, bytes] = {}
    for line in body[start:head_end].split(_LINE_END):
        found = _LINE.fullmatch(line)
        name = found[1].lower() if found else b""
        if found is None or name not in _HEADERS or name in headers:
            raise _malformed("a part has a header that is malformed, unknown or twice there")
        headers[name] = found[2]
    disposition = _DISPOSITION.fullmatch(headers.get(b"content-disposition", b""))
    if disposition is None:
        raise _malformed("a part's Content-Disposition is not plainly a field's or a file's")
    if headers.get(b"content-transfer-encoding", b"binary").strip().lower() not in _TRANSFER:
        raise _malformed("a part is encoded once more")
    at = head_end + 4
    stated = headers.get(b"content-length")
    if stated is not None and stated.strip() != b"%d" % (end - at):
        raise _malformed("a part states another length than it has")
    is_file = disposition["file"] is not None or disposition["encoded"] is not None
    name = (disposition["quoted"] or disposition["bare"]).decode("ascii")
    return Part(name, is_file, start, at, end, headers.get(b"content-type", b""))


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The form is malformed: {reason}.", hint="Send multipart/form-data as RFC 7578 has it.")

r"""Reading ``.env`` files as they are found in the wild. Pure.

``NAME=value``, with or without ``export``, spaces around the sign, quotes (single, double, backticks) that may span lines, comments on
lines of their own and behind values. In double quotes ``\n``, ``\r``, ``\t``, ``\"``, ``\$`` and ``\\`` mean what they do in a
shell; in the others nothing does. A value that names another variable (``${OTHER}``) is refused: it is none itself. A quote that is
never closed spoils its own line and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from keybearer.access.fields import secret_value
from keybearer.vault.transfer.items import VARIABLE, Item

# A pattern that looks at one place over and over takes hours of a large file, and nobody else in the process has a turn meanwhile.
_ASSIGNMENT = re.compile(r"([^=\n]*)=[ \t]*")
_EXPORT = re.compile(r"[ \t]*(?:export[ \t]+)?")
_BLANK = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_QUOTED = {
    '"': re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL),
    "'": re.compile(r"'([^']*)'"),
    "`": re.compile(r"`([^`]*)`"),
}
_AFTER = re.compile(r"[ \t]*(?:#[^\n]*)?(?=\n|\Z)")
_LINE = re.compile(r"[^\n]*")
_COMMENT = re.compile(r"(?:^|[ \t])#.*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_REFERENCE = re.compile(r"(?<!\\)\$(?:(\{)[A-Za-z_]|\()")


def read(text: str) -> Iterator[Item]:
    """Yield the items of a file in their order, broken lines included."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    at, line = 0, 1
    while at < len(text):
        blank = _BLANK.match(text, at)
        if blank and blank.end() > at:
            end = blank.end()
        else:
            end, item = _entry(text, at, f"line {line}")
            yield item
        line += text.count("\n", at, end)
        at = end


def _entry(text: str, at: int, place: str) -> tuple[int, Item]:
    """The entry at ``at``, and where the line after it begins."""
    found = _ASSIGNMENT.match(text, at)
    end = _end_of_line(text, at)
    if not found:
        return end, Item(place, problem="is not of the form NAME=value")
    name = found.group(1)[_EXPORT.match(found.group(1)).end() :].rstrip(" \t")  # type: ignore[union-attr]  # it matches always
    if not VARIABLE.fullmatch(name):
        return end, Item(place, problem="has no variable's name before the sign =")
    start = found.end()
    quote = text[start : start + 1]
    if quote in _QUOTED:
        quoted = _QUOTED[quote].match(text, start)
        after = _AFTER.match(text, quoted.end()) if quoted else None
        if quoted is None:
            return end, Item(place, name, problem="has a quotation mark that is never closed")
        if after is None:
            return end, Item(place, name, problem="goes on after the closing quotation mark")
        raw, end = quoted.group(1), _end_of_line(text, after.end())
    else:
        raw = _COMMENT.sub("", _LINE.match(text, start).group(0), count=1).rstrip(" \t")  # type: ignore[union-attr]  # it matches always
    if quote not in {"'", "`"} and _refers(raw):
        return end, Item(place, name, problem="refers to another variable; write the value itself")
    if quote == '"':
        raw = _ESCAPED.sub(lambda escaped: _ESCAPES.get(escaped.group(1), escaped.group(1)), raw)
    if not raw.strip():
        return end, Item(place, name, problem="is empty")
    return end, Item(place, name, secret_value(raw))


def _refers(raw: str) -> bool:
    """Whether a value names another variable, or a command: ``${OTHER}``, ``$(date)``."""
    brace, parenthesis = raw.rfind("}"), raw.rfind(")")
    return any(found.end() <= (brace if found.group(1) else parenthesis) for found in _REFERENCE.finditer(raw))


def _end_of_line(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1

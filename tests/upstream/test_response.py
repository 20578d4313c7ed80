"""Reading responses without a socket: a table of well-formed and malformed ones, every chunking, and arbitrary bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybearer.errors import UpstreamError, UpstreamMalformed, UpstreamUnreachable
from keybearer.gateway import response
from keybearer.gateway.response import MAX_HEAD_BYTES, MAX_HEADERS, MAX_INTERIM, ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass
class Read:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    is_complete: bool
    is_reusable: bool


def read(*pieces: bytes, head_only: bool = False, eof: bool = False) -> Read:
    reader = ResponseReader()
    reader.begin(head_only=head_only)
    body = b""
    for piece in pieces:
        assert not reader.is_complete
        reader.feed(piece)
        body += b"".join(reader.pieces)
        reader.pieces.clear()
    if eof:
        reader.feed_eof()
    return Read(reader.status, reader.headers, body, reader.is_complete, reader.is_reusable)


@dataclass
class Good:
    raw: bytes
    body: bytes = b""
    status: int = 200
    head_only: bool = False
    eof: bool = False
    is_reusable: bool = True
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


GOOD = {
    "length": Good(OK + b"Content-Length: 5\r\n\r\nhello", b"hello", headers=[(b"content-length", b"5")]),
    "no body": Good(OK + b"Content-Length: 0\r\n\r\n", headers=[(b"content-length", b"0")]),
    "chunked": Good(CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
    "chunked, other case": Good(OK + b"transfer-encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "chunked, hexadecimal size": Good(CHUNKED + b"1A\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n", b"x" * 26),
    "chunk extension": Good(CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", b"hello"),
    "chunked, empty": Good(CHUNKED + b"0\r\n\r\n"),
    "trailers are dropped": Good(CHUNKED + b"5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", b"hello", is_reusable=False),
    "until the end": Good(OK + b"\r\nhello", b"hello", eof=True, is_reusable=False),
    "until the end, nothing": Good(OK + b"\r\n", eof=True, is_reusable=False),
    "close": Good(
        OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nab", b"ab", is_reusable=False, headers=[(b"content-length", b"2")]
    ),
    "keep-alive and close": Good(
        OK + b"Connection: keep-alive, close\r\nContent-Length: 2\r\n\r\nab",
        b"ab",
        is_reusable=False,
        headers=[(b"content-length", b"2")],
    ),
    "HTTP/1.0": Good(
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", b"ab", is_reusable=False, headers=[(b"content-length", b"2")]
    ),
    "HTTP/1.0 keep-alive": Good(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nab", b"ab", headers=[(b"content-length", b"2")]
    ),
    "no reason": Good(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", headers=[(b"content-length", b"0")]),
    "204": Good(b"HTTP/1.1 204 No Content\r\n\r\n", status=204),
    "204 with a length": Good(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", status=204),
    "304 tells the length it leaves out": Good(
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", status=304, headers=[(b"content-length", b"99")]
    ),
    "HEAD tells the length it leaves out": Good(
        OK + b"Content-Length: 99\r\n\r\n", head_only=True, is_reusable=False, headers=[(b"content-length", b"99")]
    ),
    "HEAD, chunked": Good(CHUNKED, head_only=True, is_reusable=False),
    # Interim and final response in one read: where the head ends is not worth finding out, so the connection is closed after it.
    "100": Good(
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nab",
        b"ab",
        is_reusable=False,
        headers=[(b"content-length", b"2")],
    ),
    "103 with headers and a length": Good(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 7\r\nConnection: x-a\r\n\r\n"
        + OK
        + b"X-A: 1\r\nContent-Length: 2\r\n\r\nab",
        b"ab",
        is_reusable=False,
        headers=[(b"x-a", b"1"), (b"content-length", b"2")],
    ),
    "104": Good(
        b"HTTP/1.1 104 Upload Resumption Supported\r\nUpload-Limit: max-age=9\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nab",
        b"ab",
        is_reusable=False,
        headers=[(b"content-length", b"2")],
    ),
    "error status": Good(
        b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\nContent-Length: 1\r\n\r\nx",
        b"x",
        status=429,
        headers=[(b"retry-after", b"3"), (b"content-length", b"1")],
    ),
    "a redirect leads nowhere": Good(
        b"HTTP/1.1 307 Temporary\r\nLocation: https://evil.example/\r\nRefresh: 0;url=x\r\nContent-Length: 0\r\n\r\n",
        status=307,
        headers=[(b"content-length", b"0")],
    ),
    "201 keeps its location": Good(
        b"HTTP/1.1 201 Created\r\nLocation: /v1/files/1\r\nContent-Length: 0\r\n\r\n",
        status=201,
        headers=[(b"location", b"/v1/files/1"), (b"content-length", b"0")],
    ),
    "what is dropped": Good(
        OK
        + b"Connection: X-Hop , keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\n"
        + b"Trailer: x\r\nTE: x\r\n"
        + b"Set-Cookie: a=b\r\nset-cookie2: a=b\r\nX-Hop: 1\r\nx-hop: 2\r\nX-Keybearer-Request-Id: forged\r\nX-KEYBEARER-X: y\r\n"
        + b"Alt-Svc: h3\r\nStrict-Transport-Security: max-age=1\r\nClear-Site-Data: *\r\n"
        + b"X-Accel-Redirect: /internal/backup\r\nX-SendFile: /etc/passwd\r\nX-Accel-Expires: 3600\r\n"
        + b"X-Request-ID: req_1\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n",
        headers=[(b"x-request-id", b"req_1"), (b"content-type", b"text/plain"), (b"content-length", b"0")],
    ),
    "repeated headers stay": Good(
        OK + b"Vary: a\r\nVary: b\r\nContent-Length: 0\r\n\r\n",
        headers=[(b"vary", b"a"), (b"vary", b"b"), (b"content-length", b"0")],
    ),
    "white space around a value": Good(
        OK + b"A:  b\r\nContent-Length:0 \t\r\n\r\n", headers=[(b"a", b"b"), (b"content-length", b"0")]
    ),
    "bytes beyond ASCII in a value": Good(
        OK + b"A: \xc3\xb6\r\nContent-Length: 0\r\n\r\n", headers=[(b"a", b"\xc3\xb6"), (b"content-length", b"0")]
    ),
    "100 headers": Good(
        OK + b"A: b\r\n" * 99 + b"Content-Length: 0\r\n\r\n", headers=[(b"a", b"b")] * 99 + [(b"content-length", b"0")]
    ),
    "an upgrade that is only offered": Good(
        OK + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nab", b"ab", headers=[(b"content-length", b"2")]
    ),
    # bytes after the end: the answer stands, the connection does not
    "a byte after": Good(OK + b"Content-Length: 2\r\n\r\nabX", b"ab", is_reusable=False, headers=[(b"content-length", b"2")]),
    "a line break after": Good(
        OK + b"Content-Length: 2\r\n\r\nab\r\n", b"ab", is_reusable=False, headers=[(b"content-length", b"2")]
    ),
    "a second answer after": Good(
        OK + b"Content-Length: 2\r\n\r\nab" + OK + b"Content-Length: 3\r\n\r\nxyz",
        b"ab",
        is_reusable=False,
        headers=[(b"content-length", b"2")],
    ),
    "a second answer after no body": Good(
        OK + b"Content-Length: 0\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nxyz",
        is_reusable=False,
        headers=[(b"content-length", b"0")],
    ),
    "a byte after the last chunk": Good(CHUNKED + b"2\r\nab\r\n0\r\n\r\nX", b"ab", is_reusable=False),
    "a line break after the last chunk": Good(CHUNKED + b"2\r\nab\r\n0\r\n\r\n\r\n", b"ab", is_reusable=False),
    "a body after 204": Good(b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello", status=204, is_reusable=False),
    "a chunked body after 204": Good(
        b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", status=204, is_reusable=False
    ),
    "a body after 304": Good(
        b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\nhello",
        status=304,
        is_reusable=False,
        headers=[(b"content-length", b"5")],
    ),
    "a body after HEAD": Good(
        OK + b"Content-Length: 5\r\n\r\nhello", head_only=True, is_reusable=False, headers=[(b"content-length", b"5")]
    ),
    "bytes after close": Good(
        OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nabX", b"ab", is_reusable=False, headers=[(b"content-length", b"2")]
    ),
}


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD.keys())
def test_well_formed(case: Good) -> None:
    found = read(case.raw, head_only=case.head_only, eof=case.eof)
    assert found == Read(case.status, case.headers, case.body, is_complete=True, is_reusable=case.is_reusable)


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD.keys())
def test_well_formed_byte_by_byte(case: Good) -> None:
    reader = ResponseReader()
    reader.begin(head_only=case.head_only)
    body = b""
    for index in range(len(case.raw)):
        reader.feed(case.raw[index : index + 1])
        body += b"".join(reader.pieces)
        reader.pieces.clear()
        if reader.is_complete:
            break  # what comes later meets an idle connection
    if case.eof:
        reader.feed_eof()
    assert (reader.status, reader.headers, body) == (case.status, case.headers, case.body)
    assert reader.is_complete


MALFORMED = {
    "both lengths": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, the other way round": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "the same length twice": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "a negative length": OK + b"Content-Length: -5\r\n\r\nhello",
    "a signed length": OK + b"Content-Length: +5\r\n\r\nhello",
    "a hexadecimal length": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "an empty length": OK + b"Content-Length: \r\n\r\nhello",
    "a length that overflows": OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, gzip": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, chunked": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "xchunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": OK + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "empty transfer coding": OK + b"Transfer-Encoding: \r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is none": CHUNKED + b"zz\r\nhello\r\n",
    "an empty chunk size": CHUNKED + b"\r\nhello\r\n",
    "a negative chunk size": CHUNKED + b"-5\r\nhello\r\n",
    "a prefixed chunk size": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a space after the chunk size": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "a chunk size that overflows": CHUNKED + b"fffffffffffffffff\r\nhello\r\n",
    "bare LF after the chunk size": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "bare LF in a chunk extension": CHUNKED + b"5;a\nhello\r\n0\r\n\r\n",
    "a chunk longer than said": CHUNKED + b"5\r\nhelloX\r\n0\r\n\r\n",
    "a length in the trailers": CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n",
    "NUL in a value": OK + b"A: b\x00c\r\nContent-Length: 0\r\n\r\n",
    "a control character in a value": OK + b"A: b\x01c\r\nContent-Length: 0\r\n\r\n",
    "DEL in a value": OK + b"A: b\x7fc\r\nContent-Length: 0\r\n\r\n",
    "bare CR in a value": OK + b"A: b\rc\r\nContent-Length: 0\r\n\r\n",
    "bare LF in a value": OK + b"A: b\nC: d\r\nContent-Length: 0\r\n\r\n",
    "obs-fold": OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "obs-fold with a tab": OK + b"A: b\r\n\tc\r\nContent-Length: 0\r\n\r\n",
    "obs-fold in the first line": OK + b" A: b\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": OK + b"A : b\r\nContent-Length: 0\r\n\r\n",
    "NUL in a name": OK + b"A\x00: b\r\nContent-Length: 0\r\n\r\n",
    "no name": OK + b": b\r\nContent-Length: 0\r\n\r\n",
    "no colon": OK + b"A\r\nContent-Length: 0\r\n\r\n",
    "bare LF everywhere": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare LF at the end of the head": OK + b"Content-Length: 0\r\n\n",
    "a line break first": b"\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "HTTP/0.9": b"hello",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2's own preface": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "another answer's version": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "four digits of status": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "two digits of status": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "status 000": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nrest",
    "101 without Upgrade": b"HTTP/1.1 101 Switching\r\n\r\nrest",
    "101 after 100": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching\r\n\r\n",
    "an interim response with a body": b"HTTP/1.1 104 X\r\nContent-Length: 3\r\n\r\nabc" + OK + b"Content-Length: 0\r\n\r\n",
    "an interim response with chunks": b"HTTP/1.1 199 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + OK,
    "too many headers": OK + b"A: b\r\n" * MAX_HEADERS + b"Content-Length: 0\r\n\r\n",
    "headers too large": OK + b"A: " + b"b" * MAX_HEAD_BYTES + b"\r\nContent-Length: 0\r\n\r\n",
    "headers too large together": OK + (b"A: " + b"b" * 5000 + b"\r\n") * 14 + b"Content-Length: 0\r\n\r\n",
    "a reason too large": b"HTTP/1.1 200 " + b"o" * MAX_HEAD_BYTES + b"\r\nContent-Length: 0\r\n\r\n",
    "too many interim responses": b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM + 1) + OK + b"Content-Length: 0\r\n\r\n",
}


def feed(reader: ResponseReader, *pieces: bytes) -> None:
    for piece in pieces:
        reader.feed(piece)
        assert not reader.is_complete
        reader.pieces.clear()


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_malformed(raw: bytes, size: int) -> None:
    reader = ResponseReader()
    with pytest.raises(UpstreamMalformed):
        feed(reader, *(raw[start : start + size] for start in range(0, len(raw), size)))


def test_a_header_that_never_ends_is_given_up_at_the_limit() -> None:
    reader = ResponseReader()
    reader.feed(OK + b"A: ")
    feed(reader, *[b"b" * 1000] * 60)
    with pytest.raises(UpstreamMalformed):
        feed(reader, *[b"b" * 1000] * 6)


@pytest.mark.parametrize("filler", [b"0\r\nX: " + b"y" * 999, b"5;" + b"e" * 998], ids=["trailers", "extension"])
def test_framing_that_never_ends_is_given_up_at_the_limit(filler: bytes) -> None:
    reader = ResponseReader()
    reader.feed(CHUNKED + filler)
    feed(reader, *[b"z" * 1000] * 60)
    with pytest.raises(UpstreamMalformed):
        feed(reader, *[b"z" * 1000] * 6)


@pytest.mark.parametrize(
    ("fed", "expected"),
    [
        (b"", UpstreamUnreachable),
        (b"HTTP/1.1 2", UpstreamMalformed),
        (OK + b"Content-Length: 5\r\n", UpstreamMalformed),
        (OK + b"Content-Length: 5\r\n\r\n", UpstreamMalformed),
        (OK + b"Content-Length: 5\r\n\r\nhell", UpstreamMalformed),
        (CHUNKED + b"5\r\nhello\r\n", UpstreamMalformed),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", UpstreamMalformed),
        (b"HTTP/1.1 100 Continue\r\n\r\n", UpstreamMalformed),
    ],
)
def test_an_end_in_the_middle(fed: bytes, expected: type[UpstreamError]) -> None:
    reader = ResponseReader()
    if fed:
        reader.feed(fed)
    with pytest.raises(expected):
        reader.feed_eof()
    assert not reader.is_complete


def test_names_in_the_same_order_mean_the_same_again_and_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[tuple[bytes, ...], object] = {}
    monkeypatch.setattr(response, "_LAYOUTS", known)
    for number in range(700):
        for value in (b"first", b"second"):
            raw = b"X-%d: %b\r\nSet-Cookie: %b\r\nX: %b\r\nContent-Length: 0\r\n\r\n" % (number, value, value, value)
            assert read(OK + raw).headers == [(b"x-%d" % number, value), (b"x", value), (b"content-length", b"0")]
        assert 0 < len(known) <= 256
    many = b"".join(b"X-%d%b: y\r\n" % (number, b"z" * 100) for number in range(50))
    assert len(read(OK + many + b"Content-Length: 0\r\n\r\n").headers) == 51
    assert not any(len(names) > 50 for names in known)


def test_one_reader_reads_one_response_after_the_other() -> None:
    reader = ResponseReader()
    for number in range(3):
        reader.begin()
        reader.feed(OK + b"X: %d\r\nConnection: X-Hop\r\nContent-Length: 1\r\n\r\n%d" % (number, number))
        assert (reader.status, reader.headers[0], reader.pieces) == (200, (b"x", b"%d" % number), [b"%d" % number])
        assert reader.is_reusable
        reader.pieces.clear()
        reader.begin()
        reader.feed(CHUNKED + b"1\r\nx\r\n0\r\n\r\n")
        assert reader.is_reusable
        reader.pieces.clear()


def test_an_interim_response_of_its_own_leaves_the_connection_usable() -> None:
    found = read(b"HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n", OK + b"Content-Length: 2\r\n\r\nab")
    assert (found.body, found.is_reusable, found.headers) == (b"ab", True, [(b"content-length", b"2")])


def test_the_last_chunk_may_come_alone() -> None:
    assert read(CHUNKED + b"5\r\nhello\r\n", b"0\r\n\r\n").is_reusable
    assert read(CHUNKED, b"5\r\nhello\r\n0\r\n\r\n").is_reusable


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 5),
        (b"timeout=5, max=100", 5),
        (b"max=100, timeout=20", 20),
        (b"Timeout=0", 0),
        (b"max=5", None),
        (b"x", None),
    ],
)
def test_the_announced_idle_time(value: bytes, seconds: float | None) -> None:
    reader = ResponseReader()
    reader.feed(OK + b"Keep-Alive: " + value + b"\r\nContent-Length: 0\r\n\r\n")
    assert reader.keep_alive_seconds == seconds


# Whatever the bytes and their chunking


def outcome(raw: bytes, cuts: list[int]) -> tuple[int, list[tuple[bytes, bytes]], bytes, bool] | None:
    """What a reader makes of bytes cut at places; ``None``: malformed."""
    reader, body = ResponseReader(), b""
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        try:
            reader.feed(raw[start:end])
        except UpstreamMalformed:
            return None
        body += b"".join(reader.pieces)
        reader.pieces.clear()
        assert reader._fed <= MAX_HEAD_BYTES
        assert len(reader.headers) <= max(MAX_HEADERS, len(raw) // 4)
        if reader.is_complete:
            break
    return reader.status, reader.headers, body, reader.is_complete


PARTS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 204 No\r\n",
        b"HTTP/1.1 304 X\r\n",
        b"HTTP/1.1 101 S\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive, upgrade\r\n",
        b"Upgrade: x\r\n",
        b"X: y\r\n",
        b"A: b\r\n c\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"\x00",
        b" ",
        b"hello",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\n",
        b"5;x\r\n",
        b"ffffffffffffffff\r\n",
        b"-1\r\n",
    ]
)
STREAMS = st.one_of(
    st.binary(max_size=200), st.lists(st.one_of(PARTS, PARTS, PARTS, st.binary(max_size=5)), max_size=12).map(b"".join)
)


@settings(max_examples=300, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 1 << 16), max_size=6))
def test_no_bytes_raise_anything_else_and_no_chunking_changes_the_meaning(raw: bytes, cuts: list[int]) -> None:
    assert outcome(raw, cuts) == outcome(raw, [])


@settings(max_examples=300, deadline=None)
@given(STREAMS)
def test_a_reusable_answer_is_one_that_another_parser_reads_to_the_last_byte(raw: bytes) -> None:
    reader = ResponseReader()
    try:
        reader.feed(raw)
    except UpstreamMalformed:
        return
    if not reader.is_reusable:
        return
    other = h11.Connection(h11.CLIENT)
    other.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    other.send(h11.EndOfMessage())
    other.receive_data(raw)
    body = b""
    while not isinstance(event := other.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        if isinstance(event, h11.Response):
            assert event.status_code == reader.status
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
    assert other.trailing_data == (b"", False)
    assert body == b"".join(reader.pieces)

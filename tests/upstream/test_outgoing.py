"""Writing requests: what a caller hands over cannot end a line, add a header or change the framing."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybearer.errors import InvalidRequest
from keybearer.gateway.outgoing import build_head, build_request


def test_a_request() -> None:
    request = build_request(b"POST", b"/v1/chat?x=%20y", b"api.example", [(b"Authorization", b"Bearer kbtest-1")], b"{}")
    assert request == (
        b"POST /v1/chat?x=%20y HTTP/1.1\r\nhost: api.example\r\nAuthorization: Bearer kbtest-1\r\ncontent-length: 2\r\n\r\n{}"
    )


def test_a_length_stands_where_a_body_may_be_expected() -> None:
    assert b"content-length" not in build_request(b"GET", b"/", b"a", [])
    assert b"content-length: 0\r\n" in build_request(b"POST", b"/", b"a", [])
    assert b"content-length: 0\r\n" in build_request(b"PUT", b"/", b"a", [])
    assert build_head(b"POST", b"/", b"a", [], 7).endswith(b"content-length: 7\r\n\r\n")


@pytest.mark.parametrize("method", [b"", b"get", b"GET ", b"GET /", b"G\r\nT", b"GET\x00", b"A" * 21])
def test_methods_that_are_none(method: bytes) -> None:
    with pytest.raises(InvalidRequest):
        build_request(method, b"/", b"a", [])


@pytest.mark.parametrize(
    "path",
    [b"", b"v1", b"*", b"http://evil.example/", b"/a b", b"/a\tb", b"/a\r\nX: y", b"/a\n", b"/a\x00", b"/\xc3\xb6", b"/\x7f"],
)
def test_paths_that_are_none(path: bytes) -> None:
    with pytest.raises(InvalidRequest):
        build_request(b"GET", path, b"a", [])


@pytest.mark.parametrize("host", [b"", b"a b", b"a\r\nX: y", b"\xc3\xb6"])
def test_hosts_that_are_none(host: bytes) -> None:
    with pytest.raises(InvalidRequest):
        build_request(b"GET", b"/", host, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"", b"x"),
        (b"a b", b"x"),
        (b"a:", b"x"),
        (b"a\r\nb", b"x"),
        (b"a\x00", b"x"),
        (b"\xc3\xb6", b"x"),
        (b"authorization", b"Bearer kbtest-secret\r\nX-Evil: 1"),
        (b"authorization", b"Bearer kbtest-secret\n"),
        (b"authorization", b"Bearer kbtest-secret\r"),
        (b"authorization", b"Bearer kbtest-secret\x00"),
        (b"authorization", b"\x7fkbtest-secret"),
        (b"Host", b"evil.example"),
        (b"content-length", b"5"),
        (b"Transfer-Encoding", b"chunked"),
        (b"connection", b"close"),
        (b"Upgrade", b"h2c"),
        (b"expect", b"100-continue"),
        (b"TE", b"trailers"),
    ],
)
def test_headers_that_are_refused_without_showing_their_value(name: bytes, value: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_request(b"GET", b"/", b"a", [(name, value)])
    assert "kbtest" not in str(caught.value)


@settings(deadline=None)  # the machine may be busy
@given(
    st.binary(max_size=8),
    st.binary(max_size=20),
    st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=12)), max_size=4),
    st.binary(max_size=20),
)
def test_whatever_is_not_refused_is_read_as_exactly_that_by_another_parser(
    method: bytes, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    try:
        raw = build_request(method, b"/" + path, b"api.example", headers, body)
    except InvalidRequest:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(raw)
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (method, b"/" + path)
    found = [(name, value) for name, value in request.headers if name not in (b"host", b"content-length")]
    assert found == [(name.lower(), value.strip(b" \t")) for name, value in headers]
    got = b""
    while isinstance(event := server.next_event(), h11.Data):
        got += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert got == body
    assert server.trailing_data == (b"", False)

"""What hostile clients and hostile providers tried against a running gateway, and what stopped them."""

from __future__ import annotations

import asyncio

import pytest
from tests.plane.conftest import CHAT, House
from tests.plane.wire import Received

SPLIT = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
"""An answer that a provider would like to see taken for the gateway's own, to the request that comes next on a proxy's connection."""


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


# --- a hostile provider -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framed",
    [
        b"content-length: %d\r\n\r\n%b" % (len(SPLIT), SPLIT),
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SPLIT), SPLIT),
    ],
    ids=["length", "chunks"],
)
@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["at once", "in pieces"])
async def test_an_interim_answer_with_a_body_says_nothing_in_our_name(house: House, framed: bytes, pause: float) -> None:
    """llhttp reads a body after 104 to 199; relayed before our own head, it would be an answer of the provider's making."""

    async def script(request: Received) -> None:
        request.writer.write(b"HTTP/1.1 104 Look\r\n" + framed)
        await asyncio.sleep(pause)
        request.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(CHAT), CHAT))

    house.provider.script = script
    connection = await house.connect()
    await connection.send(house.request())
    answer = await connection.answer()
    assert (answer.status, answer.body.find(b"evil")) == (502, -1)
    assert answer["x-keybearer-request-id"], "this is the gateway's own answer"
    assert (await house.outcome())["outcome"] == "upstream_error"

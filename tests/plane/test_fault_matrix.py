"""Every fault of ``bench.faults`` a few times: a provider that breaks off, stalls or says too much, a client that leaves just then.

``bench.soak`` meets each ten thousand times; here it is what every change must keep: the right answers, and nothing left behind.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trustme
from bench.faults import ABORTED, FAULTS, GOOD, GOOD_STREAM, Scene
from tests.plane.conftest import House, Opener, credential
from tests.plane.wire import until

from keybearer.catalog import Catalog, Registry, with_base_url
from keybearer.domain import Budget, BudgetKind, BudgetSubject
from keybearer.gateway.connection import Call, Connection
from keybearer.gateway.exchange import Exchange
from keybearer.gateway.protocol import GatewayProtocol
from keybearer.gateway.relay import Relay
from keybearer.gateway.response import ResponseReader

EACH = 3
AT_ONCE = 24
SILENCE = 0.8
CALLS = (Exchange, Relay, Call, GatewayProtocol, Connection, ResponseReader)
"""What calls are made of."""
SECOND = [FAULTS["a second answer later"]]
"""It may come after the next question, and is then the answer to that, as far as anybody can tell."""
LIMITED = [fault for name, fault in FAULTS.items() if "429" in name]
"""While a key rests, others are told so."""
GROUPS = (
    [*(fault for fault in FAULTS.values() if fault not in (*SECOND, *LIMITED)), ABORTED, GOOD, GOOD_STREAM],
    LIMITED,
    SECOND,
)


async def limited(house: House) -> list[Budget]:
    """Limits that every call is held to and none reaches."""
    at, who = datetime.now(UTC), UUID(int=1)
    kinds = (BudgetKind.REQUESTS_MINUTE, BudgetKind.TOKENS_MINUTE, BudgetKind.USD_DAY)
    budgets = [Budget(uuid4(), who, BudgetSubject.DEPLOYMENT, "", kind, 10**12, True, True, who, at, at, False) for kind in kinds]
    counters = house.services.counters
    await counters._counts.keep(budgets, ())
    counters._budgets = {budget.id: budget for budget in budgets}
    counters._by_subject = {(BudgetSubject.DEPLOYMENT, ""): list(counters._budgets)}
    return budgets


def meets(house: House, scene: Scene, *, tls: bool) -> None:
    """Let the scene be what the house's clients and its provider do."""
    scene.gateway, scene.token, scene.client_tls = house.port, house.token, house.tls
    base = f"{'https' if tls else 'http'}://127.0.0.1:{scene.port}"
    provider = with_base_url(Catalog.load().providers["openai"], base)
    house.vault.providers = Registry([provider])
    house.vault.keys["openai"] = credential(provider)


async def rest(house: House, scene: Scene) -> None:
    """Nothing is under way, and nothing is left of what was."""
    scene.drop()
    upstream = house.services.upstream
    await until(lambda: not house.server.server_state.connections)
    await until(lambda: upstream.open_connections == upstream.idle_connections and not upstream._dialing)
    await until(lambda: len(scene.open) <= upstream.open_connections)
    assert not house.plane._tasks
    assert not house.server.server_state.tasks
    assert house.plane.budget.held == 0


@contextmanager
def without_collector() -> Iterator[Callable[[], Counter[str]]]:
    """Keep the collector from freeing anything; what is called at the end says what it would have had to, of what calls are made of.

    A process that serves lets it look seldom, because calls leave no reference cycles (``app.settle``).
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield lambda: Counter(type(found).__name__ for found in gc.get_objects() if type(found) in CALLS)
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize("tls", [False, True])
async def test_whoever_fails_or_leaves_at_whatever_point_nothing_is_left(open_house: Opener, tmp_path: Path, tls: bool) -> None:  # noqa: FBT001
    scene, ca = Scene(0, ""), None
    if tls:
        authority, ca = trustme.CA(), tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(ca))
        scene.provider_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(scene.provider_tls)
    async with scene, open_house(tls=tls, upstream={"read_timeout": SILENCE, "ca_file": ca}) as house:
        meets(house, scene, tls=tls)
        budgets = await limited(house)
        await scene.run([GOOD], 4, 4, lambda asked: None)
        with without_collector() as left:
            for faults in GROUPS:
                outcome = await scene.run(faults, EACH * len(faults), AT_ONCE, lambda asked: None)
                assert (outcome.wrong, outcome.first_wrong) == (0, "")
                assert outcome.asked == EACH * len(faults)
                await asyncio.sleep(0.05)  # keys rest for a millisecond, and so long a second answer takes
            assert scene.leaks == 0
            await rest(house, scene)
            await house.services.upstream.close()
            assert left() == {}
        states = await house.services.counters.states(budgets)
        assert [state.reserved for state in states.values()] == [0, 0, 0]
        assert states[budgets[-1].id].used  # the day's; a minute may just have begun
        lines = house.lines()
        kinds = Counter(line["kind"] for line in lines)
        assert kinds["use"] == kinds["outcome"] == len({line["request_id"] for line in lines}) > 0
        ends = {line["outcome"] for line in lines if line["kind"] == "outcome"}
        assert {"ok", "upstream_error", "aborted"} <= ends <= {"ok", "upstream_error", "aborted", "refused"}

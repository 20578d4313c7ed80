"""The OpenAPI description, turned against the server: whatever a request holds, the answer is never a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from tests.support import server as servers
from tests.support.server import ROOT, Person

from keybearer.domain import Scope

DESCRIPTION = ROOT / "docs" / "openapi.json"
schema = schemathesis.openapi.from_path(DESCRIPTION)


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with servers.running(tmp_path_factory.mktemp("schema") / "data") as server:
        person = servers.set_up(server)
        yield servers.program(server, person.token("schema", tuple(Scope)))


@schema.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
def test_no_request_makes_the_server_fail(admin: Person, case: schemathesis.Case[Any]) -> None:
    headers = {"authorization": admin.http.headers["authorization"]}
    answer = case.call(base_url=admin.server.url, headers=headers)
    case.validate_response(answer, checks=[not_a_server_error])


def test_lists_are_pages_but_for_those_of_providers() -> None:
    paths = json.loads(DESCRIPTION.read_text(encoding="utf-8"))["paths"]
    answers = {path: kinds["get"]["responses"].get("200", {}) for path, kinds in paths.items() if "get" in kinds}
    arrays = {path for path, answer in answers.items() if '"type": "array"' in json.dumps(answer)}
    assert {path for path in arrays if not path.startswith("/api/v1/providers")} <= {"/api/v1/usage/summary"}

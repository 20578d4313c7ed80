"""The frozen vectors, as the tests read them."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from tests.crypto.make_vectors import VECTORS

from keybearer.crypto.envelope import Context

Json = dict[str, Any]


def load(name: str) -> Json:
    found: Json = json.loads((VECTORS / name).read_text(encoding="utf-8"))
    return found


def context_of(vector: Json) -> Context:
    ids = {name: UUID(vector[name]) for name in ("deployment", "owner", "record")}
    return Context(**(vector | ids | {"egress": tuple(vector["egress"])}))

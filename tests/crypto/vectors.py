"""The frozen vectors, as the tests read them."""

from __future__ import annotations

import json
from datetime import datetime
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


def row_of(vector: Json) -> list[Any]:
    """The fields of a row, as a MAC is made over them."""
    read: dict[str, Any] = {"y": bytes.fromhex, "u": UUID, "t": datetime.fromisoformat}
    return [read.get(tag, lambda value: value)(value) for tag, value in vector["fields"]]

"""Sums of what providers and callers claim: they may be beyond 64 bits, where SQLite's ``sum`` fails, and with it whoever asked."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa


def total(amounts: Any) -> sa.ColumnElement[Any]:
    """The sum, 0 of nothing; exact up to 2**53: that many micro-dollars are nine thousand million dollars."""
    return sa.func.coalesce(sa.func.sum(sa.cast(amounts, sa.Double)), 0)

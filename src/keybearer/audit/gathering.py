"""What comes in one turn of the event loop, and in the next where a turn has several, is dealt with together.

What comes alone waits for the next turn only.

Under load each step is then taken for many calls in a row, by one system call or right after each other, and whoever waits for them
in another process is woken once. At two turns it ends: with three, all callers come to wait for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathering(Generic[T]):
    """See the module. ``deal`` is called from the event loop and must not raise: with what is gathered, in its order."""

    __slots__ = ("_deal", "_is_second_turn", "_items")

    def __init__(self, deal: Callable[[list[T]], None]) -> None:
        self._deal = deal
        self._items: list[T] = []
        self._is_second_turn = False
        """What the turn before has brought waits for what this one brings."""

    def add(self, item: T) -> None:
        """Have ``item`` dealt with, one or two turns from now."""
        items = self._items
        items.append(item)
        if len(items) == 1:
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        if len(self._items) > 1 and not self._is_second_turn:
            self._is_second_turn = True
            asyncio.get_running_loop().call_soon(self._turn)
            return
        self._is_second_turn = False
        items, self._items = self._items, []
        self._deal(items)

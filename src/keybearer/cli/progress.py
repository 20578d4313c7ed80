"""How far long work is: a bar on standard error, where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from keybearer.cli.output import printable

Show = Callable[[str, int, int], None]
"""Says what is being done, how much of it is, and of how much: 0 where that is not known."""


@contextmanager
def bar(*, quiet: bool = False) -> Iterator[Show]:
    """Yield what moves a bar, which goes away at the end. Nothing is shown if ``quiet``, or where standard error is no terminal.

    What is being done may quote others, a key service's error say: it is shown as it is, and neither marks up nor steers the terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich import progress as rich  # noqa: PLC0415  # only where somebody watches
    from rich.console import Console  # noqa: PLC0415  # likewise

    columns = (
        *(rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), rich.MofNCompleteColumn()),
        *(rich.TimeElapsedColumn(), rich.TimeRemainingColumn()),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=printable(what), completed=done, total=total or None)

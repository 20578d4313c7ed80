"""How many connections a process may have open: as many as the system allows it.

Shells and service managers give 1,024, which twelve hundred idle connections of strangers use up; then nobody is let in until their
deadlines pass. The limit above it is theirs to set and ours to use.
"""

from __future__ import annotations

import resource
from contextlib import suppress

_WANTED = (65_536, 10_240)
"""The second is what macOS allows at most where it says that there is no limit."""


def raise_limit() -> None:
    """Raise this process's limit of open files, and its children's, as far as it may. Never raises."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in _WANTED:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= most:
            return
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return

"""Keys stay out of core dumps. Python cannot wipe memory; what holds keys must at least not be written to disk by a crash."""

from __future__ import annotations

import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4
"""From ``linux/prctl.h``."""


def forbid_core_dumps() -> None:
    """Switch core dumps off for this process and its children; on Linux also attaching debuggers of the same user.

    The limit alone would not do on Linux: a core that goes to a program (``core_pattern`` with ``|``, as systemd and Ubuntu have
    it) ignores it (core(5)); a process that is not dumpable dumps nowhere (PR_SET_DUMPABLE(2const)). Call it in every worker:
    execve resets the attribute. Raises ``OSError`` if the system refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, *(ctypes.c_ulong(0) for _ in range(4))) != 0:
            raise OSError(ctypes.get_errno(), "prctl")

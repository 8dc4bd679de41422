"""Work for processes, some of which it kills; a module of its own because a new process imports it."""

from __future__ import annotations

import os
import signal


def double(item: int) -> int:
    """Twice ``item``; a negative one kills the process."""
    if item < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item

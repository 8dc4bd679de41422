"""How long the fuzz tests go on: ``make fuzz`` sets the factor, ``make test`` leaves it at one."""

from __future__ import annotations

import os

FACTOR = int(os.environ.get("FEDSTILL_FUZZ_FACTOR", "1"))
"""Times as many messages as in ``make test``. The first ones are the same; the random streams just go on."""

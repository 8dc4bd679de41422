"""Where the real data is: not every machine has it."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ.get("FEDSTILL_DATA", Path(__file__).parents[3] / "shared" / "data"))
"""``FEDSTILL_DATA``, or ``shared/data`` next to the repository; the folder may be missing."""

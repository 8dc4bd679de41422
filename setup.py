"""Only to stop the build of an empty wheel; everything else is in ``pyproject.toml``.

``importroot/fedstill`` holds links to the folders of the checkout. Windows and some archives make text files of them,
and setuptools would then build a wheel without a single module, with success.
"""

import sys
from pathlib import Path

from setuptools import setup

FEDSTILL = Path(__file__).parent / "importroot" / "fedstill"

for path in sorted(FEDSTILL.iterdir()):
    if not path.suffix and not path.is_dir():
        sys.exit(
            f"importroot/fedstill/{path.name} is no link to a folder: check out again where symbolic links work "
            "(git config core.symlinks true), or copy every folder that importroot/fedstill links"
        )

setup()

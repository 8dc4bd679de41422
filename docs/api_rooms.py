"""Shows the room ``datasets`` to the API pages: griffe skips folders without ``__init__.py``, and that one has none."""

from __future__ import annotations

from typing import Any

import griffe


class ApiRooms(griffe.Extension):
    """Gives ``fedstill`` its member ``datasets`` (docs/decisions/001-import-names.md says why it is a plain folder)."""

    def on_module_instance(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        if mod.path == "fedstill" and not isinstance(mod.filepath, list):
            init = mod.filepath.parent / "datasets" / "__init__.py"
            mod.set_member("datasets", griffe.Module("datasets", filepath=init, parent=mod))

"""The core of a server: an engine, its profile, and the tasks that it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.engine_runs import Infer
from fedstill.cloud_server.serving.server.loading_dispatcher import Loadable
from fedstill.cloud_server.serving.server.residency import Residency
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks

OnProgress = Callable[[str], None]
"""Called with each step of a start, one line for a person."""


@dataclass(frozen=True)
class Loading:
    """Trunks that share a memory budget, by name."""

    residency: Residency
    trunks: Mapping[str, Loadable]


@dataclass(frozen=True)
class ServedModels:
    """Measured and warm.

    tasks: of the dispatcher that serves them. close: to be called at the end. loading: None if all stay in memory.
    """

    profile: Profile
    infer: Infer
    image_size: int
    tasks: Callable[[Dispatcher], ServedTasks]
    close: Callable[[], None] = lambda: None
    loading: Loading | None = None

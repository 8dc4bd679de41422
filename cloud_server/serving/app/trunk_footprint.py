"""What a trunk takes in memory and to load: as it was measured the last time, or as its weights let expect."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.openvino_backend import graph_bytes
from fedstill.cloud_server.serving.engine.openvino_library import missing_library
from fedstill.cloud_server.serving.server.residency import Footprint
from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.common.errors import first_line
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.without_weights import weight_bytes

LOG = logging.getLogger(__name__)

FORMAT = 1
TORCH_COPIES, TORCH_BYTES = 2.2, 60 * 2**20
"""Of weights in torch: as they are, laid out for oneDNN, and what batches leave behind."""
READ_BYTES_A_SECOND, GRAPH_SECONDS, WARM_UP_SECONDS = 100e6, 1.5, 0.1
"""Of a slow machine: reading weights, compiling a graph, running a schedule for the first time."""


@dataclass(frozen=True)
class FootprintFile:
    """What was measured of one trunk with these settings on this machine; whatever its tasks are."""

    file: Path

    def read(self) -> Footprint | None:
        """None if nothing, or nothing usable, was kept."""
        try:
            plain = json.loads(self.file.read_text(encoding="utf-8"))
            if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
                return None
            found: Footprint = from_plain(Footprint, plain)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            LOG.warning("event=footprint_unreadable file=%s reason=%r", self.file, first_line(error))
            return None
        return found if found.bytes > 0 and 0 < found.seconds < float("inf") else None

    def write(self, footprint: Footprint) -> None:
        """Raises OSError."""
        replace_text(self.file, json.dumps({"format": FORMAT, **to_plain(footprint)}))


def footprint_file(folder: Path, trunk: str, settings: EngineSettings, engine: str) -> FootprintFile:
    """In the server's folder. engine: the machine, its libraries and what was asked of the engine."""
    schedules = [schedule.name for schedule in settings.schedules]
    plain = [trunk, schedules, settings.batch_buckets, engine]
    digest = hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]
    return FootprintFile(folder / f"footprint-{digest}.json")


def expected(net: ElasticViT, settings: EngineSettings) -> Footprint:
    """Of a trunk that was never loaded: rather too much than too little."""
    weights, schedules = weight_bytes(net), len(settings.schedules)
    size = TORCH_COPIES * weights + TORCH_BYTES
    seconds = weights / READ_BYTES_A_SECOND + WARM_UP_SECONDS * schedules
    if _may_compile(settings):
        graphs = 2 * graph_bytes(net, schedules)
        if settings.memory is not None:  # fewer sizes are compiled then
            graphs = min(graphs, max(graph_bytes(net, schedules), settings.memory - weights))
        size = max(size, weights + graphs)
        seconds += 2 * GRAPH_SECONDS * schedules
    return Footprint(int(size), seconds)


def least_bytes(net: ElasticViT, settings: EngineSettings) -> int:
    """Below this nothing can be loaded: one copy of the weights, or half of one in bf16; graphs, if they are asked
    for."""
    weights = weight_bytes(net)
    if settings.backend == "openvino":
        return int(weights + graph_bytes(net, len(settings.schedules)))
    return weights if settings.precision == "fp32" else weights // 2


def _may_compile(settings: EngineSettings) -> bool:
    asked: Sequence[str] = ("auto", "openvino")
    if settings.variant:
        return settings.variant.startswith("openvino")
    return settings.backend in asked and not missing_library()

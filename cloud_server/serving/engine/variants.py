"""Which way of running the trunk is fastest here: measured once, then told apart from noise, then kept.

A variant is a backend, a precision and a kind of linear layers. Its name is stored with the profile that was measured
with it, so a later start takes the same one without a trial (``EngineSettings.variant``).
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from fedstill.cloud_server.serving.engine.backend import Backend
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.openvino_backend import (
    PRECISIONS,
    OpenVinoBackend,
    has_room,
    why_not,
)
from fedstill.cloud_server.serving.engine.torch_backend import TorchBackend
from fedstill.common.errors import DataError
from fedstill.models.vit.activation_ranges import Ranges, read_ranges
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.packed_linear import can_pack, pack_linears
from fedstill.models.vit.schedules import TokenSchedule, constant_schedule

log = logging.getLogger(__name__)

TRIAL_BATCHES, TRIAL_ROUNDS = (1, 8), 9
QUANTILE = 0.25
"""Of a trial's times. Whatever else runs on the machine makes a batch slower, never faster."""
HOPELESS = 3.0
"""A variant this many times slower than the fastest one in its first run is not worth further runs."""
WORTH = 1.05
"""How many times faster than a simpler variant another one must be: less is noise."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Maker = Callable[[], Backend]


def make_backend(net: ElasticViT, settings: EngineSettings) -> tuple[Backend, str]:
    """The backend that the settings name or leave to a trial, and the name of its variant.

    Args:
        net: with fp32 weights; it is copied, not changed.

    Raises:
        ValueError: the settings leave no variant that is possible here.
    """
    makers = possible_variants(net, settings)
    if settings.variant in makers:
        return makers[settings.variant](), settings.variant
    if settings.variant:
        log.warning("event=variant_not_here wanted=%r possible=%s", settings.variant, ",".join(makers))
    if len(makers) == 1:
        (only,) = makers
        return makers[only](), only
    schedule = _trial_schedule(net, settings)
    seconds = time_backends(backends := _that_run(makers, schedule), net.image_size, schedule)
    best = choose(seconds)
    log.info("engine variants %s", " ".join(f"{name}={1e3 * t:.1f}ms" for name, t in seconds.items()))
    return backends[best], best


def possible_variants(net: ElasticViT, settings: EngineSettings) -> dict[str, Maker]:
    """Makers by name, the simplest first. Raises ValueError, one line, if there is none."""
    device = settings.torch_device
    precisions = [name for name in DTYPES if settings.precision in ("auto", name)]
    makers: dict[str, Maker] = {}
    if settings.backend in ("auto", "torch"):
        for name in precisions:
            makers[f"torch {name}"] = _torch_maker(net, device, DTYPES[name], packed=False)
            if device.type == "cpu" and can_pack(DTYPES[name]):
                makers[f"torch {name} packed"] = _torch_maker(net, device, DTYPES[name], packed=True)
    reasons: list[str] = []
    if settings.backend in ("auto", "openvino"):
        found, reasons = _openvino_makers(net, settings)
        makers |= found
    if not makers:
        raise ValueError(f"openvino: {reasons[0]}")
    if any(
        schedule.int8 for schedule in settings.schedules
    ):  # who runs those is worth more than the trial shows
        return dict(sorted(makers.items(), key=lambda one: not one[0].startswith("openvino")))
    return makers


def _that_run(makers: Mapping[str, Maker], schedule: TokenSchedule) -> dict[str, Backend]:
    """The backends that run here: one that fails is no reason to serve nothing. Raises what the last one raised if all
    fail."""
    backends: dict[str, Backend] = {}
    failure: Exception | None = None
    for name, make in makers.items():
        try:
            backend = make()
            with torch.inference_mode():
                backend.warm_up(schedule, TRIAL_BATCHES)
        except Exception as error:  # a compiler's may be of any kind
            log.warning("event=variant_failed variant=%r", name, exc_info=error)
            failure = error
        else:
            backends[name] = backend
    if failure is not None and not backends:
        raise failure
    return backends


def time_backends(
    backends: Mapping[str, Backend], image_size: int, schedule: TokenSchedule
) -> dict[str, float]:
    """Seconds of a small and a larger batch (geometric mean), interleaved so that a busy neighbour slows all.

    A variant that is far behind after its first run (bf16 on a CPU without it) is not run again.
    """
    with torch.inference_mode():
        for backend in backends.values():
            backend.warm_up(schedule, TRIAL_BATCHES)
        seconds: dict[str, dict[int, list[float]]] = {
            name: {size: [] for size in TRIAL_BATCHES} for name in backends
        }
        contenders = dict(backends)
        for turn in range(TRIAL_ROUNDS):
            for name, backend in contenders.items():
                for size in TRIAL_BATCHES:
                    images = torch.zeros(size, 3, image_size, image_size)
                    started = time.perf_counter()
                    backend.features(images, schedule, None).cpu()  # waits for the device, too
                    seconds[name][size].append(time.perf_counter() - started)
            if not turn:
                best = min(times[TRIAL_BATCHES[-1]][0] for times in seconds.values())
                contenders = {
                    name: backend
                    for name, backend in backends.items()
                    if seconds[name][TRIAL_BATCHES[-1]][0] < HOPELESS * best
                }
    return {name: _typical(times) for name, times in seconds.items()}


def choose(seconds: Mapping[str, float]) -> str:
    """The simplest (first) variant that is as fast as the fastest, within ``WORTH``."""
    best = min(seconds.values())
    return next(name for name, time in seconds.items() if time <= WORTH * best)


def _typical(times: Mapping[int, list[float]]) -> float:
    return math.exp(np.mean([math.log(np.quantile(some, QUANTILE)) for some in times.values()]))


def _trial_schedule(net: ElasticViT, settings: EngineSettings) -> TokenSchedule:
    """One that will be served, so that what is compiled for the trial is of use; prompts need a task."""
    without = [schedule for schedule in settings.schedules if not schedule.prompts and not schedule.int8]
    return without[0] if without else constant_schedule(0, net.layers)


def _torch_maker(net: ElasticViT, device: torch.device, dtype: torch.dtype, packed: bool) -> Maker:
    def make() -> Backend:
        ready = copy.deepcopy(net).to(device, dtype).eval().requires_grad_(False)
        return TorchBackend(pack_linears(ready) if packed else ready, device, dtype)

    return make


def _openvino_makers(net: ElasticViT, settings: EngineSettings) -> tuple[dict[str, Maker], list[str]]:
    """Makers, and why there are no others."""
    makers: dict[str, Maker] = {}
    reasons = []
    limits = settings.maximum_batch, settings.memory
    rounded = sum(schedule.int8 for schedule in settings.schedules)
    plain = max(1, len(settings.schedules) - rounded)
    ranges = _ranges(net, settings) if has_room(net, plain, rounded, *limits) else None
    size = (plain if ranges is None else plain + rounded, *limits)
    for name in PRECISIONS:
        if settings.precision not in ("auto", name):
            continue
        reason = (
            why_not(net, name, *size)
            if settings.torch_device.type == "cpu"
            else "it runs on the CPU only: use --device cpu"
        )
        if reason:
            reasons.append(reason)
        else:
            makers[f"openvino {name}"] = partial(OpenVinoBackend, net, name, *size, ranges=ranges)
    for reason in dict.fromkeys(reasons):
        log.info("event=variant_left_out backend=openvino reason=%r", reason)
    return makers, reasons


def _ranges(net: ElasticViT, settings: EngineSettings) -> Ranges | None:
    if settings.ranges is None or not any(schedule.int8 for schedule in settings.schedules):
        return None
    try:
        return read_ranges(settings.ranges, net)
    except DataError as error:
        log.warning("event=int8_left_out reason=%r", str(error))
        return None

"""A load test of the server at an address: connects, finds the pictures to send, runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.evaluation.serving.live_loadtest import LiveSettings, run_live
from fedstill.evaluation.serving.results import ServingResults
from fedstill.evaluation.serving.target import GrpcTarget
from fedstill.evaluation.serving.task_images import TaskImages, drawn_images
from fedstill.evaluation.serving.virtual import LoadTest, Progress

NOISE_PICTURES = 64  # per task


async def measure_server(
    test: LoadTest,
    settings: LiveSettings,
    address: ServingAddress,
    pictures: Sequence[TaskImages] | None,
    *,
    data_dir: Path | None,
    profile: Profile | None,
    measured_on: str,
    command: str,
    progress: Progress,
) -> ServingResults:
    """As `run_live`. pictures: None for noise, for all tasks of the server. Raises DataError as `run_live`."""
    async with GrpcTarget(address) as target:
        return await run_live(
            test,
            settings,
            target,
            await _noise(target) if pictures is None else pictures,
            data_dir=data_dir,
            profile=profile,
            measured_on=measured_on,
            command=command,
            progress=progress,
        )


async def _noise(target: GrpcTarget) -> list[TaskImages]:
    generator = np.random.default_rng(0)
    served = (await target.describe()).tasks
    return [drawn_images(name, served[name], NOISE_PICTURES, generator) for name in sorted(served)]

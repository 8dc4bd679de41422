"""Inversion: rebuild the sound and the picture of a clip from the device's upload.

The attacker simulates devices with the clips of its own speakers, and trains a decoder from uploaded row to clip. It is
given the row that a clip belongs to (the nearest one), which favours it. The decoder's last layer is the principal
components of the attacker's clips, so that a small network reaches the full resolution; it starts as the mean clip, and
the epoch that does best on attacker's speakers left out of training is kept.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedstill.evaluation.redteam.intervals import Measured, Numbers, over_devices
from fedstill.evaluation.redteam.releases import Channel, DeviceClips, nearest
from fedstill.evaluation.redteam.similarity import psnr, squared_error, ssim
from fedstill.evaluation.redteam.stage import Floats, View

COMPONENTS = 64
HIDDEN = 256
EPOCHS = 30
BATCH = 128
LEARNING_RATE = 2e-3
LEFT_OUT = 6
"""One attacker's speaker in so many chooses the epoch."""


@dataclass(frozen=True)
class Basis:
    """Mean clip and principal components of one modality.

    Attributes:
        mean: float32 (values,).
        components: float32 (components, values), orthonormal rows.
        shape: height and width.
        peak: span of the values.
        scale: root of the mean squared coefficient, the unit in which the decoder learns.
    """

    mean: Tensor
    components: Tensor
    shape: tuple[int, int]
    peak: float
    scale: float

    def to_coefficients(self, pictures: Floats) -> Tensor:
        flat = torch.from_numpy(pictures).flatten(1)
        return (flat - self.mean) @ self.components.T / self.scale

    def to_pictures(self, coefficients: Tensor) -> Tensor:
        flat = self.mean + self.scale * coefficients @ self.components
        return flat.reshape(-1, *self.shape)


@dataclass(frozen=True)
class Rebuilt:
    """Success on one modality; ``explained`` is 1 - MSE / MSE of the mean clip."""

    mse: float
    psnr: float
    ssim: Measured
    explained: Measured


def bases(view: View, seed: int) -> tuple[Basis, Basis]:
    """Bases of the attacker's sounds and pictures."""
    return _basis(view.sound, seed), _basis(view.picture, seed)


def rows_of_clips(channel: Channel, view: View, devices: list[DeviceClips]) -> Floats:
    """The attacker's input for every member of every device: its row and count, zeros if there is none."""
    parts = []
    for device in devices:
        seen = channel.seen(view)[device.members]
        upload = channel.upload(seen, device.seed)
        _, owner = nearest(seen, upload)
        known = np.zeros((len(seen), seen.shape[1] + 1), np.float32)
        has = owner >= 0
        known[has, :-1] = upload.rows[owner[has]]
        known[has, -1] = np.log1p(upload.counts[owner[has]])
        parts.append(known)
    return np.concatenate(parts)


def invert(
    channel: Channel,
    attacker: View,
    shadows: list[DeviceClips],
    victims: View,
    devices: list[DeviceClips],
    known: tuple[Basis, Basis],
    seed: int,
) -> tuple[Rebuilt, Rebuilt]:
    """Train on the attacker's devices, rebuild the victims' clips: success on sound and on picture."""
    rows = rows_of_clips(channel, attacker, shadows)
    clips = np.concatenate([device.members for device in shadows])
    wanted = torch.cat(
        [
            basis.to_coefficients(part[clips])
            for basis, part in zip(known, (attacker.sound, attacker.picture), strict=True)
        ],
        dim=1,
    )
    left_out = np.unique(attacker.speaker)[::LEFT_OUT]
    checked = np.isin(attacker.speaker[clips], left_out)
    decoder = _trained(torch.from_numpy(rows), wanted, torch.from_numpy(checked), seed)
    with torch.no_grad():
        guess = decoder(torch.from_numpy(rows_of_clips(channel, victims, devices)))
    widths = [len(basis.components) for basis in known]
    return judged(tuple(guess.split(widths, dim=1)), victims, devices, known, seed)


def judged(
    guess: tuple[Tensor, ...],
    victims: View,
    devices: list[DeviceClips],
    known: tuple[Basis, Basis],
    seed: int,
) -> tuple[Rebuilt, Rebuilt]:
    """The quality of coefficients (clips, components) per modality, for the devices' members in order."""
    sound, picture = (
        _judged_one(coefficients, part, devices, basis, seed)
        for coefficients, part, basis in zip(guess, (victims.sound, victims.picture), known, strict=True)
    )
    return sound, picture


def _judged_one(
    coefficients: Tensor, truth: Floats, devices: list[DeviceClips], basis: Basis, seed: int
) -> Rebuilt:
    sums = np.zeros((len(devices), 4))  # error, error of the mean clip, similarity, clips
    start = 0
    mean_clip = basis.mean.reshape(1, *basis.shape)
    for number, device in enumerate(devices):
        wanted = torch.from_numpy(truth[device.members])
        found = basis.to_pictures(coefficients[start : start + len(wanted)])
        start += len(wanted)
        parts = (
            squared_error(found, wanted),
            squared_error(mean_clip, wanted),
            ssim(found, wanted, basis.peak),
        )
        sums[number] = [*(float(part.sum()) for part in parts), len(wanted)]

    def explained(some: Numbers) -> float:
        return float(1 - sums[some, 0].sum() / sums[some, 1].sum())

    def similarity(some: Numbers) -> float:
        return float(sums[some, 2].sum() / sums[some, 3].sum())

    mse = float(sums[:, 0].sum() / sums[:, 3].sum())
    return Rebuilt(
        mse,
        psnr(mse, basis.peak),
        over_devices(similarity, len(devices), seed),
        over_devices(explained, len(devices), seed),
    )


def _basis(pictures: Floats, seed: int) -> Basis:
    from sklearn.decomposition import PCA

    flat = pictures.reshape(len(pictures), -1)
    count = min(COMPONENTS, *flat.shape)
    found = PCA(count, svd_solver="randomized", random_state=seed % 2**32).fit(flat)
    scale = float(np.sqrt(np.mean(found.explained_variance_)))
    low, high = float(flat.min()), float(flat.max())
    height, width = pictures.shape[1:]
    return Basis(_tensor(found.mean_), _tensor(found.components_), (height, width), high - low, scale)


def _tensor(values: npt.NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


class _Decoder(nn.Module):
    """Standardise, two hidden layers, coefficients; the mean clip until it is trained."""

    mean: Tensor
    spread: Tensor

    def __init__(self, rows: Tensor, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("mean", rows.mean(dim=0))
        self.register_buffer("spread", rows.std(dim=0) + 1e-6)
        self.hidden = nn.Sequential(
            nn.Linear(rows.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()
        )
        for parameter in self.hidden.parameters():
            nn.init.uniform_(parameter, -(HIDDEN**-0.5), HIDDEN**-0.5, generator=generator)
        self.output = nn.Linear(HIDDEN, outputs)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = self.output(self.hidden((rows - self.mean) / self.spread))
        return result


def _trained(rows: Tensor, wanted: Tensor, checked: Tensor, seed: int) -> _Decoder:
    """The decoder of the epoch that does best on the ``checked`` rows, which it is not trained on."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = rows[~checked], wanted[~checked]
    decoder = _Decoder(ours, wanted.shape[1], generator)
    optimiser = torch.optim.AdamW(decoder.parameters(), LEARNING_RATE, weight_decay=0.01)
    best, kept = float("inf"), copy.deepcopy(decoder)
    for _ in range(EPOCHS):
        with torch.no_grad():
            error = float(F.mse_loss(decoder(rows[checked]), wanted[checked]))
        if error < best:
            best, kept = error, copy.deepcopy(decoder)
        order = torch.randperm(len(ours), generator=generator)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            loss = F.mse_loss(decoder(ours[batch]), theirs[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return kept.eval()

"""The quality of a reconstruction: mean squared error, peak signal-to-noise ratio, structural similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 7
"""Side of the square neighbourhood of SSIM, as in scikit-image's default."""


def squared_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error per picture; (n, height, width) each -> (n,)."""
    return ((found - wanted) ** 2).flatten(1).mean(dim=1)


def psnr(error: float, peak: float) -> float:
    """Decibels of a mean squared error, for values that span ``peak``."""
    return float(10 * torch.log10(torch.tensor(peak**2 / error, dtype=torch.float64)))


def ssim(found: Tensor, wanted: Tensor, peak: float) -> Tensor:
    """Mean structural similarity per picture (Wang et al. 2004, equation 13), uniform window, sample covariance.

    Args:
        found, wanted: float (n, height, width), at least 7 each way.
        peak: span of the values.

    Returns:
        (n,), 1 for equal pictures.
    """
    mean = _local(found), _local(wanted)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    variance = [unbiased * (_local(one * one) - m * m) for one, m in zip((found, wanted), mean, strict=True)]
    covariance = unbiased * (_local(found * wanted) - mean[0] * mean[1])
    small = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    closeness = (2 * mean[0] * mean[1] + small[0]) * (2 * covariance + small[1])
    spread = (mean[0] ** 2 + mean[1] ** 2 + small[0]) * (variance[0] + variance[1] + small[1])
    return (closeness / spread).flatten(1).mean(dim=1)


def _local(pictures: Tensor) -> Tensor:
    return F.avg_pool2d(pictures.unsqueeze(1), WINDOW, stride=1).squeeze(1)

"""Augmented views repeat with their seed, whatever other threads do, and keep what carries the label."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fedstill.datasets.audiovisual.augment import flip_and_shift, spec_augment


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(seed: int) -> Tensor:
    """Ten rounds of both augmentations, with draws from the global generator (dropout) in between."""
    draws = generator(seed)
    audio, frames = torch.ones(8, 16, 40), torch.rand(8, 2, 1, 12, 12, generator=draws)
    for _ in range(10):
        torch.dropout(audio, 0.5, train=True)
        frames = flip_and_shift(frames, draws, 2)
        audio = audio + spec_augment(torch.ones(8, 16, 40), draws, 6, 12)
    return torch.cat([audio.flatten(), frames.flatten()])


def test_same_seed_same_views() -> None:
    assert torch.equal(views(3), views(3))
    assert not torch.equal(views(3), views(4))


def test_two_threads_do_not_disturb_each_other() -> None:
    alone = [views(seed) for seed in range(6)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        together = list(pool.map(views, range(6)))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    spec_augment(torch.ones(2, 8, 8), generator(0), 4, 4)
    flip_and_shift(torch.rand(2, 1, 1, 8, 8, generator=generator(1)), generator(0), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_are_bands_within_the_widths_and_differ_per_clip() -> None:
    audio = torch.ones(64, 32, 50)
    hidden = spec_augment(audio, generator(0), 8, 10) == 0
    bins = hidden.all(dim=2)  # (64, 32): rows hidden for all time
    steps = hidden.all(dim=1)
    assert torch.equal(hidden, bins[:, :, None] | steps[:, None, :])
    for band, widest in ((bins, 8), (steps, 10)):
        assert widest - 3 <= int(band.sum(1).max()) <= widest
        edges = band.int().diff(dim=1, prepend=torch.zeros(64, 1), append=torch.zeros(64, 1)).abs().sum(1)
        assert int(edges.max()) == 2  # one contiguous band
        assert len(band.unique(dim=0)) > 20
    assert (audio == 1).all()


def test_zero_width_changes_nothing() -> None:
    audio = torch.rand(3, 8, 9, generator=generator(0)) + 1
    frames = torch.rand(64, 1, 1, 6, 6, generator=generator(0))
    assert torch.equal(spec_augment(audio, generator(0), 0, 0), audio)
    still = flip_and_shift(frames, generator(0), 0)
    mirrored = (still == frames.flip(4)).flatten(1).all(1)
    assert torch.equal(mirrored, ~(still == frames).flatten(1).all(1))
    assert 20 <= int(mirrored.sum()) <= 44  # half of 64, within three standard deviations


def test_every_view_is_an_edge_padded_crop_the_same_for_all_frames_of_a_clip() -> None:
    frames = torch.rand(40, 2, 3, 9, 11, generator=generator(0))
    padded = torch.nn.functional.pad(frames.flatten(1, 2), (2, 2, 2, 2), mode="replicate")
    moved = flip_and_shift(frames, generator(1), 2).flatten(1, 2)
    seen = set()
    for clip in range(40):
        matches = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(
                padded[clip, :, top : top + 9, left : left + 11].flip([2] if flip else []), moved[clip]
            )
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert len({top for top, _, _ in seen}) == len({left for _, left, _ in seen}) == 5

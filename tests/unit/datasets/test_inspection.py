"""What `data check` measures and shows: per split, per class, as a model will see it."""

from __future__ import annotations

import base64
import re
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from helpers.command import CliRunner
from PIL import Image

from fedstill.cli.main import app
from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.audiovisual.folds import FoldSource
from fedstill.datasets.audiovisual.manifest import COLUMNS, ManifestSource
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.waveform import feature_shape
from fedstill.datasets.inspection.clip_measures import ClipMeasures, measure
from fedstill.datasets.inspection.dataset_check import check_dataset, feature_steps, split_table
from fedstill.datasets.inspection.picture_sheet import picture_sheet

RATE = 16_000
TONE = (0.1 * np.sin(np.arange(RATE) / 7)).astype(np.float32)


def write(folder: Path, sounds: dict[str, npt.NDArray[np.float32]], rate: int = RATE) -> Path:
    """A manifest whose clips have these sounds, (samples,) or (samples, channels); the last one is private."""
    rows = [",".join(COLUMNS)]
    Image.new("RGB", (8, 6), (200, 0, 0)).save(folder / "face.png")
    for place, (name, sound) in enumerate(sounds.items()):
        soundfile.write(folder / f"{name}.wav", sound, rate)
        split = "private" if place == len(sounds) - 1 else "public"
        rows.append(f"{name},{split},ann{place},sad,{name}.wav,face.png")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder / "manifest.csv"


def measured(folder: Path, sound: npt.NDArray[np.float32]) -> ClipMeasures:
    return measure(ManifestSource(write(folder, {"one": sound})), 0)


def test_a_plain_clip(tmp_path: Path) -> None:
    found = measured(tmp_path, TONE)
    assert (found.length, found.sample_rate, found.size) == (1.0, RATE, (6, 8))
    assert found.loudness == pytest.approx(20 * np.log10(0.1 / np.sqrt(2)), abs=0.1)
    assert not any((found.silent, found.constant, found.antiphase, found.clipped, found.problem))


@pytest.mark.parametrize(
    ("sound", "fault", "is_problem"),
    [
        (0 * TONE, "silent", True),
        (TONE / 1000, "silent", False),
        (np.clip(20 * TONE, -1, 1), "clipped", False),
        (np.stack([TONE, np.clip(20 * TONE, -1, 1)], axis=1), "clipped", False),
        (np.stack([TONE, -TONE], axis=1), "antiphase", True),
    ],
)
def test_faults_of_a_recording(
    tmp_path: Path, sound: npt.NDArray[np.float32], fault: str, is_problem: bool
) -> None:
    found = measured(tmp_path, sound)
    assert getattr(found, fault)
    assert bool(found.problem) is is_problem
    assert [name for name in ("clipped", "antiphase") if getattr(found, name)] == [
        name for name in ("clipped", "antiphase") if name == fault
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("scale", "decibels"), [(32768, "+67 dBFS"), (3e38, "+747 dBFS")])
def test_samples_of_another_scale_are_named(tmp_path: Path, scale: float, decibels: str) -> None:
    """Whole numbers stored as floats; and the largest that there are, whose squares are no floats any more."""
    table = write(tmp_path, {"one": TONE})
    soundfile.write(tmp_path / "one.wav", (TONE * scale).astype(np.float32), RATE, subtype="FLOAT")
    problem = measure(ManifestSource(table), 0).problem
    assert problem == f"its samples are not between -1 and 1 ({decibels}): scale them"


def test_a_single_peak_at_full_scale_is_not_clipped(tmp_path: Path) -> None:
    sound = TONE.copy()
    sound[[5, 6, 100]] = 1, 1, -1
    assert not measured(tmp_path, sound).clipped


def test_a_fold_knows_the_channels_of_its_source(tmp_path: Path) -> None:
    table = write(tmp_path, {"a": np.stack([TONE, -TONE], axis=1), "b": TONE})
    assert measure(FoldSource(ManifestSource(table), 0, 2), 0).antiphase


class Noisy:
    """Clips of which every third cannot be decoded, the first ones slowest."""

    name, class_names = "noisy", ("sad",)
    index = tuple(ClipInfo(f"c{n}", "public", "ann", 0) for n in range(9))

    def load(self, position: int) -> Clip:
        time.sleep(0.02 * (position < 2))
        if position % 3 == 0:
            raise DataError(f"c{position}.wav: is truncated: download it again")
        return Clip(self.index[position], TONE, np.zeros((1, 4, 4, 3), np.uint8), RATE)


@pytest.mark.parametrize("workers", [1, 3])
def test_bad_clips_stop_nothing_and_are_counted_in_order(workers: int) -> None:
    counts: list[tuple[int, int, int]] = []
    found = check_dataset(Noisy(), lambda *count: counts.append(count), workers)
    assert found.problems == tuple(f"clip c{n}: c{n}.wav: is truncated: download it again" for n in (0, 3, 6))
    assert [one.info.clip_id for one in found.measures] == ["c1", "c2", "c4", "c5", "c7", "c8"]
    assert counts[0] == (1, 9, 1)
    assert counts[-1] == (9, 9, 3)


def test_the_table_of_splits(tmp_path: Path) -> None:
    sounds = {
        "short": TONE[:4000], "loud": np.clip(20 * TONE, -1, 1), "long": np.tile(TONE, 3),
        "odd": np.stack([TONE, -TONE], axis=1), "own": TONE,
    }  # fmt: skip
    header, *lines = write(tmp_path, sounds).read_text().replace("ann0", "ann1").splitlines()
    grouped = [f"{line},{'' if line.startswith('odd') else line.split(',')[1]}" for line in lines]
    (tmp_path / "manifest.csv").write_text("\n".join([f"{header},group", *grouped]))
    source = ManifestSource(tmp_path / "manifest.csv")
    rows = dict(split_table(check_dataset(source), AudioSpec(seconds=1.0)))
    assert rows == {
        "decoded clips": ["4", "1"],
        "speakers": ["3", "1"],
        "recordings": ["2", "1"],
        "length in s": ["0.25 to 3.00, median 1.00", "1.00"],
        "shorter than 1 s, repeated": ["1", "0"],
        "longer than 1 s, cut": ["1", "0"],
        "sample rate in Hz": ["16000", "16000"],
        "loudness in dBFS": [rows["loudness in dBFS"][0], "-23"],
        "silent (below -60 dBFS)": ["1 (odd)", "0"],
        "antiphase": ["1 (odd)", "0"],
        "clipped": ["1 (loud)", "0"],
        "frames, height x width": ["6 x 8", "6 x 8"],
    }
    assert rows["loudness in dBFS"][0].endswith(" to -1, median -23")


def features(folder: Path, lengths: dict[str, int]) -> ManifestSource:
    table = write(folder, dict.fromkeys(lengths, TONE))
    for name, length in lengths.items():
        np.save(folder / f"{name}.npy", np.ones((4, length), np.float32))
    table.write_text(table.read_text().replace(".wav", ".npy"))
    return ManifestSource(table)


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [
        ({"a": 9, "b": 9, "own": 30}, 9),
        ({"a": 9, "b": 8, "own": 9}, feature_shape(AudioSpec())[1]),
        ({"own": 5}, 5),
    ],
)
def test_features_are_shown_at_the_length_that_a_store_gives_them(
    tmp_path: Path, lengths: dict[str, int], steps: int
) -> None:
    found = check_dataset(features(tmp_path, lengths))
    assert feature_steps(found, AudioSpec()) == steps
    rows = dict(split_table(found, AudioSpec()))
    longer = sum(length > steps for name, length in lengths.items() if name == "own")
    assert rows[f"longer than {steps} columns, cut"][1] == str(longer)
    assert "length in s" not in rows


def pictures(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    return [Image.open(BytesIO(base64.b64decode(one))).convert("RGB") for one in found]


def test_the_sheet_shows_frames_and_spectrogram_and_fetches_nothing(tmp_path: Path) -> None:
    rising = (
        np.concatenate([np.sin(np.arange(RATE) / 20), np.sin(np.arange(RATE) * 1.5)]).astype(np.float32) / 4
    )
    source = ManifestSource(write(tmp_path, {"a": rising, "<b>": rising, "own": rising}), frame_count=3)
    audio = AudioSpec(seconds=2.0)
    page = picture_sheet(source, audio, FrameSpec(size=16, count=3, channels=3))
    assert not re.search(r"<script|https?:|<b><b>|src=\"(?!data:)", page)
    assert "&lt;b&gt;" in page
    strip, matrix = pictures(page)[:2]
    assert strip.size == (3 * 16 + 2 * 2, 16)
    assert np.abs(np.asarray(strip)[8, 8] - [200, 0, 0]).max() < 12
    assert matrix.size == feature_shape(audio)[::-1]
    brightness = np.asarray(matrix, float).sum(axis=2)
    height, width = brightness.shape
    assert brightness[height // 2 :, : width // 2].mean() > brightness[: height // 2, : width // 2].mean()
    assert brightness[: height // 2, width // 2 :].mean() > brightness[height // 2 :, width // 2 :].mean()


def test_the_sheet_takes_a_few_clips_of_each_class_and_tells_of_bad_ones() -> None:
    page = picture_sheet(Noisy(), AudioSpec(), FrameSpec(size=8))
    assert len(re.findall("<figure>", page)) == 4
    assert "is truncated" in page
    assert "sad <small>(9 clips)" in page


def test_the_command_writes_the_sheet_and_prints_the_table(tmp_path: Path) -> None:
    table = write(tmp_path, {"a": TONE, "own": TONE})
    options = ["data", "check", "quickstart", "--set", "dataset.kind=manifest"]
    options += ["--set", f"dataset.manifest={table}", "--sheet"]
    found = CliRunner().invoke(app, [*options, str(tmp_path / "sheet.html")])
    assert found.exit_code == 0
    assert "sample rate in Hz" in found.output
    assert "2/2" in found.stderr
    assert "2/2" not in found.stdout
    assert (tmp_path / "sheet.html").read_text().startswith("<!doctype html>")
    (tmp_path / "sheets").mkdir()
    folder = CliRunner().invoke(app, [*options, str(tmp_path / "sheets")])
    assert folder.exit_code == 2
    assert "is a folder: name a file in it" in folder.output
    assert "decoded clips" not in folder.output
    refused = CliRunner().invoke(app, [*options, str(tmp_path / "absent" / "sheet.html")])
    assert refused.exit_code == 2
    assert "no such folder" in refused.output

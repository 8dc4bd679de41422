"""What do frames.crop = "face" and audio.voice = true find, cost and gain?

    python benchmarks/students/faces_and_speech.py DATA

DATA holds `cremad_sample`, `emotion_pairs` and `image_tasks`; what is absent is left out, and said. The first table is
of real films and sounds: how many have a face and speech, and the CPU time for a clip. The others are small probes of
the gain, on speakers and faces that were not trained on. A probe is no student, but both ways are judged by the same
one: speech by a linear discriminant on means and deviations of log mel bands in four quarters of the clip, faces by a
support vector machine on the principal components of 48 x 48 grey pixels.

Sounds are RAVDESS sentences: as recorded (about a second of silence before the speech), and at a random place in eight
seconds of pink noise. The alternatives are the beginning of the clip (the default) and `audio.skip_silence`. Pictures
are FER-2013 faces pasted onto other pictures, which is artificial: no set at hand has whole pictures with labels. The
alternatives are the whole picture (the default) and the middle square; the pasted face itself is the upper reference.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from fedstill.datasets.audiovisual.clip_tensors import frame_tensor
from fedstill.datasets.audiovisual.manifest import ManifestSource
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.spectrogram_numpy import audio_features, resample
from fedstill.datasets.decoding.decode import read_audio, read_video_frames
from fedstill.datasets.decoding.image_files import read_image
from fedstill.datasets.focus.face_crop import crop_to_face
from fedstill.datasets.focus.face_track import middle_square
from fedstill.datasets.focus.faces import require_faces
from fedstill.datasets.focus.speech import require_speech
from fedstill.datasets.focus.speech_window import speech_stretch

FRAMES = 10
PLAIN = AudioSpec(seconds=2.5, normalise="fixed")
SOUND_WAYS = {
    "beginning": PLAIN,
    "skip_silence": replace(PLAIN, skip_silence=True),
    "voice": replace(PLAIN, voice=True),
    "voice and skip_silence": replace(PLAIN, voice=True, skip_silence=True),
}
FOLDS = 6
PLACED_SECONDS, NOISE_DB = 8.0, 20.0  # the speech is this much louder than the noise
SCENE = (240, 320)
FACE_SIDES = (80, 141)  # pixels
PICTURE = FrameSpec(size=48)

Floats = npt.NDArray[np.float32]
Pictures = npt.NDArray[np.uint8]


@dataclass
class Cost:
    """How often something was found, and the CPU time that this took."""

    found: int = 0
    clips: int = 0
    seconds: float = 0.0

    def add(self, found: bool, begun: float) -> None:
        """One more clip, looked at since the CPU time ``begun``."""
        self.seconds += time.process_time() - begun
        self.found += found
        self.clips += 1

    def row(self, name: str) -> tuple[str, ...]:
        return name, f"{self.found} of {self.clips}", f"{1000 * self.seconds / max(self.clips, 1):.1f}"


def measure(folder: Path) -> list[tuple[str, ...]]:
    """Of CREMA-D: found in how many clips, CPU ms per clip."""
    one, ten, speech = Cost(), Cost(), Cost()
    require_faces()
    require_speech()  # weights are loaded before the clock runs
    for film in sorted(folder.glob("VideoFlash/*.flv")):
        frames = read_video_frames(film, FRAMES)
        for cost, seen in ((one, frames[5:6]), (ten, frames)):
            begun = time.process_time()
            cost.add(crop_to_face(seen)[1], begun)
    for file in sorted(folder.glob("AudioWAV/*.wav")):
        sound, rate = read_audio(file)
        begun = time.process_time()
        speech.add(speech_stretch(sound, rate, 1.5, resample)[1], begun)
    return [one.row("face, 1 frame"), ten.row(f"face, {FRAMES} frames"), speech.row("speech")]


def sound_gain(data: Path, limit: int) -> Iterator[tuple[str, str, npt.NDArray[np.float64]]]:
    """(recording, way, accuracy of each fold of actors in percent)."""
    sounds, labels, actors = _sentences(data, limit)
    kinds = {
        "as recorded": sounds,
        "within 8 s of noise": [_placed(one, row) for row, one in enumerate(sounds)],
    }
    for kind, heard in kinds.items():
        spoken = [_spoken(one) for one in heard]
        for way, spec in SOUND_WAYS.items():
            taken = (
                spoken if spec.voice else heard
            )  # a stretch is its own stretch: nothing is looked for twice
            features = np.stack([_pooled(audio_features(one, 16_000, spec)) for one in taken])
            yield kind, way, _by_actor(features, labels, actors)


def face_gain(data: Path, limit: int) -> tuple[dict[str, float], tuple[int, int]]:
    """Accuracy in percent by way, and in how many scenes of how many a face was found."""
    faces, labels, public = _faces(data, limit)
    scenes = list(_scenes(data, faces))
    left, top, side = middle_square(*SCENE)
    cropped = [crop_to_face(scene[None]) for scene in scenes]
    ways = {
        "the pasted face itself": [face[None] for face in faces],
        "whole picture": [scene[None] for scene in scenes],
        "middle square": [scene[None, top : top + side, left : left + side] for scene in scenes],
        "face": [frames for frames, _ in cropped],
    }
    found = {}
    for way, pictures in ways.items():
        rows = np.stack([frame_tensor(one, PICTURE).ravel() for one in pictures]).astype(np.float32) / 255
        net = make_pipeline(PCA(min(100, public.sum() // 2), random_state=0), StandardScaler(), SVC(C=3.0))
        net.fit(rows[public], labels[public])
        found[way] = 100 * float(net.score(rows[~public], labels[~public]))
    return found, (sum(face for _, face in cropped), len(cropped))


def _sentences(data: Path, limit: int) -> tuple[list[Floats], npt.NDArray[np.int64], npt.NDArray[np.str_]]:
    """Each RAVDESS recording once."""
    source = ManifestSource(data / "emotion_pairs" / "manifest.csv", frame_count=1)
    first = {info.recording: row for row, info in reversed(list(enumerate(source.index)))}
    rows = sorted(first.values())[:: max(1, len(first) // limit)]
    clips = [source.load(row) for row in rows]
    labels = np.array([clip.info.label for clip in clips])
    return [clip.audio for clip in clips], labels, np.array([clip.info.speaker for clip in clips])


def _spoken(sound: Floats) -> Floats:
    stretch, _ = speech_stretch(sound, 16_000, PLAIN.seconds, resample)
    return sound if stretch is None else stretch.of(sound, 16_000)


def _placed(sound: Floats, seed: int) -> Floats:
    """A sentence somewhere in eight seconds of pink noise."""
    rng, length = np.random.default_rng(seed), round(PLACED_SECONDS * 16_000)
    spectrum = np.fft.rfft(rng.standard_normal(length))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))), length)
    level = np.sqrt(np.square(sound).mean()) * 10 ** (-NOISE_DB / 20)
    heard = noise * (level / np.sqrt(np.square(noise).mean()))
    begin = int(rng.integers(max(1, length - len(sound))))
    heard[begin : begin + len(sound)] += sound[: length - begin]
    return np.asarray(heard, np.float32)


def _pooled(bands: Floats) -> Floats:
    quarters = np.array_split(bands, 4, axis=1)
    pooled = [(part.mean(axis=1), part.std(axis=1)) for part in quarters]
    return np.asarray(np.concatenate([one for pair in pooled for one in pair]), np.float32)


def _by_actor(
    features: Floats, labels: npt.NDArray[np.int64], actors: npt.NDArray[np.str_]
) -> npt.NDArray[np.float64]:
    scores = []
    for held in np.array_split(np.unique(actors), FOLDS):
        test = np.isin(actors, held)
        net = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        net.fit(features[~test], labels[~test])
        scores.append(100 * net.score(features[test], labels[test]))
    return np.array(scores)


def _faces(data: Path, limit: int) -> tuple[list[Pictures], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """FER-2013's faces, uint8 (48, 48, 3), their classes, and which to train on."""
    with ZipFile(data / "emotion_pairs" / "fer2013_faces.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        sides = ([name for name in names if side in Path(name).parts] for side in ("public", "private"))
        names = [name for side in sides for name in side[:: max(1, len(side) // limit)]]
        faces = [read_image(Path(name), archive.read(name)) for name in names]
    classes = np.unique([Path(name).parts[-2] for name in names], return_inverse=True)[1]
    return faces, classes, np.array(["public" in Path(name).parts for name in names])


def _scenes(data: Path, faces: Sequence[Pictures]) -> Iterator[Pictures]:
    """Each face somewhere on another picture."""
    with ZipFile(data / "image_tasks" / "tinyimagenet100.zip") as archive:
        names = sorted(
            name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png"))
        )
        for number, face in enumerate(faces):
            rng = np.random.default_rng(number)
            name = names[rng.integers(len(names))]
            behind = Image.fromarray(read_image(Path(name), archive.read(name)))
            scene = np.array(behind.resize(SCENE[::-1], Image.Resampling.BICUBIC))
            side = int(rng.integers(*FACE_SIDES))
            top, left = (int(rng.integers(length - side)) for length in SCENE)
            pasted = Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC)
            scene[top : top + side, left : left + side] = np.asarray(pasted)
            yield scene


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help="few clips; the figures mean nothing")
    options = parser.parse_args(arguments)
    console, limit = Console(), 40 if options.quick else 1_200
    if (options.data / "cremad_sample").is_dir():
        rows = measure(options.data / "cremad_sample")
        _table(console, "CREMA-D sample", ("what", "found", "CPU ms per clip"), rows)
    else:
        console.print("no cremad_sample: nothing is measured on real films")
    if not (options.data / "emotion_pairs").is_dir() or not (options.data / "image_tasks").is_dir():
        console.print("no emotion_pairs or image_tasks: no gain is measured")
        return
    usual: dict[str, npt.NDArray[np.float64]] = {}
    rows = []
    for kind, way, scores in sound_gain(options.data, limit):
        gains = scores - usual.setdefault(kind, scores)
        rows.append(
            (kind, way, f"{scores.mean():.1f}", f"{gains.mean():+.1f} ± {gains.std(ddof=1) / FOLDS**0.5:.1f}")
        )
    columns = ("recording", "sound taken", "accuracy in %", "gain in points, standard error over folds")
    _table(console, "Emotion from speech, actors held out", columns, rows)
    accuracies, (found, scenes) = face_gain(options.data, limit)
    rows = [(way, f"{accuracy:.1f}") for way, accuracy in accuracies.items()]
    title = f"Emotion from pasted faces; a face was found in {found} of {scenes} scenes"
    _table(console, title, ("picture taken", "accuracy in %"), rows)


if __name__ == "__main__":
    main(sys.argv[1:])

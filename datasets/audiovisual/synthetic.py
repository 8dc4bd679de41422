"""Synthetic faces and voices that express an emotion, so that everything runs without any download.

Real emotion sets need a licence, a form or gigabytes. Here a clip is computed from (seed, split, number) in
about three milliseconds: eyebrows, eyelids and mouth of a cartoon face, pitch, tempo and timbre of a buzzing
voice. It is hard in the way real sets are: intensity varies, a modality may stay blank, emotions look alike (fear, sad,
neutral) or sound alike (happy, angry), people differ, and the private people come from a shifted distribution, for
which personalisation is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import EMOTIONS, Clip, ClipInfo, Split

Array = npt.NDArray[np.float64]

SAMPLE_RATE = 16_000
TABLE_LENGTH = 512  # samples of one period of the voice
SPLITS: tuple[Split, ...] = ("public", "private")

# brow lift, brow slant (inner end up), open lids, mouth curve (smile), mouth opening, mouth width, raised lip
FACES = np.array(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # neutral
        [0.2, 0.1, -0.2, 1.0, 0.5, 0.6, 0.0],  # happy
        [0.1, 0.7, -0.5, -0.7, 0.0, -0.2, 0.0],  # sad
        [0.6, 0.7, 0.6, -0.4, 0.4, 0.1, 0.0],  # fear
        [-0.4, -0.4, -0.6, -0.3, 0.2, 0.0, 1.0],  # disgust
        [-0.6, -1.0, 0.1, -0.6, 0.2, 0.1, 0.2],  # angry
    ]
)

# pitch, its range, its rise over the clip (all in semitones), syllables/s, brightness, breath, tremor, attack
VOICES = np.array(
    [
        [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # neutral
        [4.0, 3.5, 3.0, 0.6, 0.5, 0.0, 0.1, 0.4],  # happy
        [-2.5, 0.6, -4.0, -0.9, -0.6, 0.5, 0.2, -0.6],  # sad
        [4.5, 1.5, 2.0, 0.8, -0.1, 0.6, 0.8, 0.1],  # fear
        [-2.5, 1.8, -3.0, -0.6, 0.2, 0.2, 0.1, 0.0],  # disgust
        [3.0, 3.0, -3.0, 0.4, 0.9, 0.1, 0.1, 0.8],  # angry
    ]
)
VOICE_SPREAD = np.array([1.5, 0.7, 3.0, 0.5, 0.3, 0.2, 0.2, 0.3])

MOST_CLASSES = 100

DARK = np.array([0.10, 0.06, 0.06])

VOWELS = np.array(
    [[730, 1090, 2440], [530, 1840, 2480], [270, 2290, 3010], [570, 840, 2410], [300, 870, 2240]]
)
"""The first three formants in Hz (Peterson and Barney, 1952)."""


@dataclass(frozen=True, slots=True)
class Person:
    """The traits that a speaker's clips share; lengths in units of half the picture."""

    skin: Array
    hair: Array
    backdrop: Array
    width: float
    height: float
    hairline: float
    long_hair: bool
    eye_distance: float
    eye_size: float
    brow_thickness: float
    nose: float
    mouth_height: float
    beard: float
    glasses: bool
    resting_face: Array
    pitch: float
    formants: float
    resting_voice: Array


def draw_person(generator: np.random.Generator, shift: float) -> Person:
    """One speaker; ``shift`` moves the whole population (0 public, 1 private): darker, rounder, higher."""
    tone = np.clip(generator.beta(2.0, 2.0) + 0.2 * shift, 0.0, 1.0)
    dark = generator.uniform()
    return Person(
        skin=np.array([0.96, 0.80, 0.69]) * (1 - tone) + np.array([0.42, 0.27, 0.20]) * tone,
        hair=np.array([0.75, 0.58, 0.32]) * dark**3 + np.array([0.12, 0.09, 0.08]) * (1 - dark**3),
        backdrop=generator.uniform(0.3, 0.8) + generator.uniform(-0.15, 0.15, 3) - 0.1 * shift,
        width=generator.uniform(0.50, 0.60) + 0.04 * shift,
        height=generator.uniform(0.68, 0.78) - 0.03 * shift,
        hairline=generator.uniform(-0.56, -0.38),
        long_hair=bool(generator.uniform() < 0.45),
        eye_distance=generator.uniform(0.22, 0.28),
        eye_size=generator.uniform(0.12, 0.15),
        brow_thickness=generator.uniform(0.026, 0.048),
        nose=generator.uniform(0.07, 0.11),
        mouth_height=generator.uniform(0.36, 0.42),
        beard=max(0.0, generator.uniform(-1.2, 0.6)),
        glasses=bool(generator.uniform() < 0.15 + 0.15 * shift),
        resting_face=generator.normal(0.0, 0.13, size=(FACES.shape[1],)),
        pitch=90.0 * 2.0 ** generator.uniform(0.0, 1.15) * (1 + 0.12 * shift),
        formants=generator.uniform(0.88, 1.12) + 0.06 * shift,
        resting_voice=VOICE_SPREAD * generator.normal(0.0, 0.4, size=VOICES.shape[1]),
    )


class SyntheticSource:
    """A ClipSource generated from a seed. Clip ``i`` does not depend on which clips were loaded before.

    Args:
        seed: of people and clips.
        public_per_class, private_per_class: clips per class.
        public_speakers, private_speakers: people of each split; no one is in both.
        frame_size: height and width of a frame in pixels.
        frame_count: frames per clip.
        class_count: the first of the six emotions, or all of them and further expressions that are drawn from the seed.
        difficulty: 0 = every clip shows its emotion fully, 1 = as ambiguous as acted emotion, more = harder.

    Raises:
        DataError: a count or size that leaves nothing to generate.
    """

    def __init__(
        self,
        seed: int = 0,
        public_per_class: int = 200,
        private_per_class: int = 40,
        public_speakers: int = 16,
        private_speakers: int = 6,
        frame_size: int = 48,
        frame_count: int = 2,
        difficulty: float = 1.0,
        class_count: int = len(EMOTIONS),
    ) -> None:
        if not 2 <= class_count <= MOST_CLASSES:
            raise DataError(f"synthetic: class_count is {class_count}: choose 2 to {MOST_CLASSES}")
        if min(seed, public_per_class, private_per_class) < 0 or not public_per_class + private_per_class:
            raise DataError(
                "synthetic: seed and clips per class must be 0 or more, and one split must have clips"
            )
        if min(public_speakers, private_speakers, frame_count) < 1 or frame_size < 16:
            raise DataError("synthetic: choose at least 1 speaker per split, 1 frame, and 16 pixels per side")
        if not 0 <= difficulty <= 5:
            raise DataError(f"synthetic: difficulty is {difficulty}: choose a number from 0 to 5")
        self.seed = seed
        self.per_class = (public_per_class, private_per_class)
        self.speakers = (public_speakers, private_speakers)
        self.frame_size = frame_size
        self.frame_count = frame_count
        self.difficulty = difficulty
        drawn = [f"expression{number:02d}" for number in range(len(EMOTIONS), class_count)]
        self.class_names = (*EMOTIONS[:class_count], *drawn)

    @property
    def name(self) -> str:
        return "synthetic"

    @cached_property
    def index(self) -> tuple[ClipInfo, ...]:
        """Public clips, then private ones; labels and speakers alternate, so that every speaker shows all emotions."""
        classes = len(self.class_names)
        return tuple(
            ClipInfo(
                clip_id=f"{split}-{number:05d}-{self.class_names[number % classes]}",
                split=split,
                speaker=f"{split}-{number // classes % speakers:03d}",
                label=number % classes,
            )
            for split, per_class, speakers in zip(SPLITS, self.per_class, self.speakers, strict=True)
            for number in range(per_class * classes)
        )

    @cached_property
    def people(self) -> dict[str, Person]:
        """The speakers of both splits by the name that ``index`` gives them."""
        return {
            f"{split}-{number:03d}": draw_person(self._generator(2 + part, number), shift=float(part))
            for part, split in enumerate(SPLITS)
            for number in range(self.speakers[part])
        }

    @cached_property
    def expressions(self) -> tuple[Array, Array]:
        """(classes, 7) faces and (classes, 8) voices, rows like those of ``FACES`` and ``VOICES``."""
        generator, count = self._generator(2 + len(SPLITS), 0), len(self.class_names) - len(EMOTIONS)
        faces, voices = (
            np.concatenate(
                [known, known.std(axis=0) * generator.normal(size=(max(count, 0), known.shape[1]))]
            )
            for known in (FACES, VOICES)
        )
        return faces, voices

    def load(self, position: int) -> Clip:
        """Draw clip ``position`` of ``index``."""
        info = self.index[position]
        assert info.label is not None
        part = SPLITS.index(info.split)
        generator = self._generator(part, position - part * self.per_class[0] * len(self.class_names))
        person = self.people[info.speaker]
        ease = 1.0 / (1.0 + self.difficulty)
        # Each modality shows the emotion more or less, and now and then hardly at all.
        shown = ease + (1 - ease) * generator.beta(2.2, 1.4, 2)
        shown *= np.where(generator.uniform(size=2) < 0.1 * self.difficulty, 0.15, 1.0)
        faces, voices = self.expressions
        face = shown[0] * faces[info.label] + person.resting_face
        face += 0.14 * self.difficulty * generator.normal(size=len(face))
        voice = VOICES[0] + shown[1] * (voices[info.label] - VOICES[0]) + person.resting_voice
        voice += 0.55 * self.difficulty * VOICE_SPREAD * generator.normal(size=len(voice))
        return Clip(
            info=info,
            audio=sing(person, voice, 0.02 * self.difficulty, generator),
            frames=draw_face(person, face, self.frame_size, self.frame_count, self.difficulty, generator),
            sample_rate=SAMPLE_RATE,
        )

    def _generator(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(stream, number)))


def draw_face(
    person: Person,
    expression: Array,
    size: int,
    count: int,
    difficulty: float,
    generator: np.random.Generator,
) -> npt.NDArray[np.uint8]:
    """Paint ``count`` frames of a talking head, back to front.

    Args:
        person: who.
        expression: float (7,), a row like those of ``FACES``.
        size: height and width in pixels.
        count: frames; the expression grows a little and the head drifts over them.
        difficulty: scales the noise and how often something covers the face.
        generator: of pose, light, occlusion and noise.

    Returns:
        uint8 RGB (count, size, size, 3).
    """
    x, y, pixel = _posed_grid(size, count, generator)
    canvas = _Canvas(person.backdrop[:, None, None, None] * (1 - 0.15 * y), pixel)
    _paint_head(canvas, person, x, y)
    grown = np.multiply.outer(expression, np.linspace(0.8, 1.0, count))
    lift, slant, lids, curve, opening, width, raised = grown[..., None, None]  # each (count, 1, 1)
    talking = np.clip(opening + 0.15 * generator.uniform(0, 1, (count, 1, 1)), 0, None)
    turn, nod = generator.normal(0.0, 0.05, 2)
    inner_x, inner_y = x - turn, y - nod  # features move further than the outline when a head turns
    _paint_nose(canvas, person, inner_x, inner_y, raised)
    _paint_eyes(canvas, person, inner_x, inner_y, lift, slant, lids)
    _paint_mouth(canvas, person, inner_x, inner_y, curve, talking, width, raised)

    light = generator.normal(0.0, 0.18, 2)
    canvas.picture *= 1 + light[0] * x + light[1] * y + generator.normal(0.0, 0.06)
    if generator.uniform() < 0.12 * difficulty:  # a microphone in the way
        around, away = generator.uniform(0, 2 * np.pi), generator.uniform(0.35, 0.55)
        ball = np.hypot(x - away * np.cos(around), y - away * np.sin(around)) - 0.22
        canvas.paint(ball, generator.uniform(0.1, 0.6))
    noisy = canvas.picture + generator.normal(0.0, 0.015 + 0.02 * difficulty, (count, size, size))
    return np.ascontiguousarray((255 * np.clip(noisy, 0, 1) + 0.5).astype(np.uint8).transpose(1, 2, 3, 0))


class _Canvas:
    """RGB (3, count, size, size) in [0, 1]; ``pixel`` is the side of a pixel in face coordinates."""

    def __init__(self, picture: Array, pixel: float) -> None:
        self.picture = picture
        self.pixel = pixel

    def paint(self, distance: Array, colour: Array | float, opacity: Array | float = 1.0) -> None:
        """Fill the region of negative signed ``distance``, its edge softened over one pixel."""
        cover = opacity * np.clip(0.5 - distance / self.pixel, 0.0, 1.0)
        self.picture += cover * (np.reshape(colour, (-1, 1, 1, 1)) - self.picture)


def _ellipse(x: Array, y: Array, width: Array | float, height: Array | float) -> Array:
    """About the signed distance to an ellipse with these half axes."""
    return (np.hypot(x / width, y / height) - 1) * np.minimum(width, height)


def _paint_head(canvas: _Canvas, person: Person, x: Array, y: Array) -> None:
    hair_back = _ellipse(x, y + 0.1, person.width + 0.12, person.height + 0.08)
    head = _ellipse(x, y, person.width * (1 - 0.22 * np.clip(y, 0, 1) ** 2), person.height)
    fringe = y - person.hairline - 0.35 * x**2 + 0.1 * np.abs(x)
    canvas.paint(np.maximum(hair_back, y - (0.75 if person.long_hair else 0.05)), person.hair)
    canvas.paint(np.maximum(np.abs(x) - 0.26, 0.5 - y), 0.8 * person.skin)  # neck
    canvas.paint(head, person.skin)
    canvas.paint(np.maximum(head, 0.22 - y + 0.5 * x**2), person.hair, 0.8 * person.beard)
    canvas.paint(np.maximum(head - 0.03, fringe), person.hair)


def _paint_nose(canvas: _Canvas, person: Person, x: Array, y: Array, raised: Array) -> None:
    """A shadow below, and the wrinkles of disgust above."""
    canvas.paint(_ellipse(x, y - 0.14 + 0.03 * raised, person.nose, 0.035), 0.4 * person.skin, 0.35)
    wrinkle = np.abs(y + 0.02 - 0.3 * np.abs(x)) - 0.012
    canvas.paint(np.maximum(wrinkle, np.abs(x) - 0.08), 0.5 * person.skin, np.clip(0.7 * raised, 0, 0.8))


def _paint_eyes(
    canvas: _Canvas, person: Person, x: Array, y: Array, lift: Array, slant: Array, lids: Array
) -> None:
    """Both eyes and brows at once: the left half of the face is the mirrored right half."""
    size = person.eye_size
    x, y = np.abs(x) - person.eye_distance, y + 0.12  # x > 0 towards the ear
    almond = np.abs(y) - size * np.clip(0.55 + 0.45 * lids, 0.06, 1.2) * (1 - (x / size) ** 2)
    canvas.paint(almond - 0.014, 0.35 * person.skin)
    canvas.paint(almond, 0.95)
    canvas.paint(np.maximum(almond, np.hypot(x, y) - 0.5 * size), DARK)

    along = x / (1.35 * size)  # -1 at the nose, 1 at the temple
    brow = y + size * (1.55 + 0.55 * lift) - 0.085 * slant * along + 0.025 * (1 - along**2)
    ends = (np.abs(along) - 1) * 1.35 * size
    canvas.paint(np.maximum(np.abs(brow) - person.brow_thickness, ends), 0.6 * person.hair)
    if person.glasses:
        canvas.paint(np.abs(_ellipse(x, y, 0.19, 0.17)) - 0.012, DARK, 0.8)


def _paint_mouth(
    canvas: _Canvas,
    person: Person,
    x: Array,
    y: Array,
    curve: Array,
    opening: Array,
    width: Array,
    raised: Array,
) -> None:
    """The dark gap between two parabolas, lips around it, teeth below the upper one."""
    half_width = 0.24 * (1 + 0.3 * width)
    bow = 1 - (x / half_width) ** 2  # 1 in the middle, 0 at the corners
    line = y - person.mouth_height - 0.13 * curve * (bow - 0.5)
    below_upper = line + bow * (0.02 + 0.05 * opening + 0.05 * raised)
    below_lower = line - bow * (0.03 + 0.16 * opening)
    gap = np.maximum(np.maximum(-below_upper, below_lower), np.abs(x) - half_width)
    canvas.paint(gap - 0.03, 0.6 * person.skin + np.array([0.22, 0.02, 0.04]))
    canvas.paint(gap - 0.004, DARK)
    canvas.paint(np.maximum(gap, below_upper - 0.05), 0.92, np.clip(2 * opening, 0, 1))


def _posed_grid(size: int, count: int, generator: np.random.Generator) -> tuple[Array, Array, float]:
    """Face coordinates x (right) and y (down) of the pixels, (count, size, size), and a pixel's side."""
    scale = generator.uniform(0.74, 0.90)
    drift = np.linspace(0.0, 1.0, count)[:, None, None]
    start, path = generator.normal(0.0, [[0.05, 0.05, 0.10], [0.02, 0.02, 0.03]])[..., None, None, None]
    left, up, tilt = start + path * drift  # each (count, 1, 1)
    ticks = ((np.arange(size) + 0.5) * 2 / size - 1) * scale
    x, y = ticks - left, ticks[:, None] - up
    return np.cos(tilt) * x + np.sin(tilt) * y, np.cos(tilt) * y - np.sin(tilt) * x, 2 * scale / size


def sing(
    person: Person, manner: Array, noise: float, generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A voiced utterance of 1.5 to 2.5 s: a vowel per syllable, each one period read at the pitch's pace.

    Args:
        person: whose pitch and formants.
        manner: float (8,), a row like those of ``VOICES``.
        noise: amplitude of the room.
        generator: of length, vowels, accents and noise.

    Returns:
        float32 (samples,) in [-1, 1] at 16 kHz.
    """
    pitch, spread, rise, tempo, brightness, breath, tremor, attack = manner
    seconds = generator.uniform(1.5, 2.5)
    time = np.arange(0.0, seconds, 0.005)  # contours move slowly: 5 ms steps
    syllables = max(3, round(seconds * max(2.0, 4.0 + tempo)))
    edges = np.linspace(0.0, 1.0, syllables + 1) + generator.normal(0.0, 0.08 / syllables, syllables + 1)

    place = np.interp(time / seconds, edges, np.arange(syllables + 1))
    syllable = np.minimum(place.astype(np.int64), syllables - 1)
    within = place - syllable

    accents = pitch + rise * np.linspace(-0.5, 0.5, syllables)
    accents += max(spread, 0.2) * generator.normal(0.0, 0.7, syllables)
    semitones = np.interp(place, np.arange(syllables) + 0.5, accents)
    semitones += np.clip(tremor, 0, None) * np.sin(2 * np.pi * generator.uniform(5.5, 7.5) * time)
    stress = generator.uniform(0.6, 1.0, syllables)[syllable]
    swell = stress * np.clip(1 - (2 * within - 1) ** 2, 0, 1) ** np.clip(1.0 - 0.7 * attack, 0.2, 2.0)
    consonant = stress * (within < 0.15) * 0.1 * np.clip(1.0 + attack, 0.0, 2.5)
    breathing = swell * (0.05 + 0.25 * np.clip(breath, 0.0, None)) + consonant + noise

    step = SAMPLE_RATE // 200
    cycles = np.cumsum(np.repeat(person.pitch / SAMPLE_RATE * 2 ** (semitones / 12), step))
    tables = _vowel_tables(person, accents, brightness, generator)
    place_in_period = (cycles * TABLE_LENGTH).astype(np.int64) % TABLE_LENGTH
    voiced = np.take(tables, np.repeat(syllable * TABLE_LENGTH, step) + place_in_period)
    samples, knots = np.arange(len(cycles)), np.arange(len(time)) * step
    air = generator.standard_normal(len(cycles), dtype=np.float32)
    sound = np.interp(samples, knots, swell) * voiced + np.interp(samples, knots, breathing) * air
    peak = np.clip(0.4 + 0.25 * (brightness + attack), 0.1, 0.95)
    return np.asarray(peak / np.abs(sound).max() * sound, dtype=np.float32)


def _vowel_tables(person: Person, accents: Array, brightness: float, generator: np.random.Generator) -> Array:
    """One period per syllable, (syllables, TABLE_LENGTH): harmonics under three formants, unit deviation."""
    base = person.pitch * 2 ** (accents / 12)
    vowel = person.formants * VOWELS[generator.integers(len(VOWELS), size=len(accents))]  # (syllables, 3)
    harmonic = np.arange(1, TABLE_LENGTH // 2 + 1)
    hertz = base[:, None] * harmonic  # (syllables, harmonics)
    away = (hertz[:, None, :] - vowel[..., None]) / np.array([90.0, 120.0, 180.0])[:, None]
    gain = 0.03 + (1 / (1 + away**2)).sum(axis=1)
    amplitude = gain * harmonic ** -(1.2 - 0.6 * brightness) * (hertz < 0.45 * SAMPLE_RATE)
    wave = np.fft.irfft(np.pad(amplitude, ((0, 0), (1, 0))), axis=1)
    tables: Array = wave / wave.std(axis=1, keepdims=True)
    return tables

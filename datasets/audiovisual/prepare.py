"""Decode a raw dataset once into small files, so that training needs no video decoder.

Downloads are often incomplete: files are missing, cut short, or differ from the original. So every clip of the split
list is either prepared or in the report with the reason. The work is parallel and resumable: each clip is one file that
appears complete or not at all, and finished ones are not decoded again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from fedstill.common.atomic_files import replace_text
from fedstill.common.errors import DataError
from fedstill.common.worker_processes import NoProcess, in_parallel
from fedstill.datasets.audiovisual import ave, cremad
from fedstill.datasets.audiovisual.clip import EMOTIONS, Clip, ClipInfo
from fedstill.datasets.decoding.decode import read_audio, read_video_frames, resample
from fedstill.datasets.decoding.decoder_errors import decoder_errors
from fedstill.datasets.decoding.image_files import resize_frames
from fedstill.datasets.files.file_names import REPLACE
from fedstill.datasets.files.tables import read_table
from fedstill.datasets.focus.face_crop import crop_to_face
from fedstill.datasets.focus.faces import require_faces

SAMPLE_RATE = 16_000
FRAME_COUNT = 10
FORMAT_VERSION = 1
PACKING = 3
"""Of zlib. Its default, 6, takes 70 % longer than this for frames, which was more than decoding, and saves 4 %."""
INDEX_COLUMNS = ("clip_id", "split", "speaker", "label")
GROUP_COLUMN = "group"  # older sets lack it: each clip is its own recording

Progress = Callable[[int, int, int], None]
Crop = Literal["none", "face"]
Outcome = Literal["prepared", "reused", "missing", "corrupt", "checksum mismatch", "dropped"]
OUTCOMES: tuple[Outcome, ...] = ("prepared", "reused", "missing", "corrupt", "checksum mismatch", "dropped")


@dataclass(frozen=True, slots=True)
class ClipReport:
    """The outcome of a clip; if it is not in the result, ``reason`` names the file and the remedy."""

    clip_id: str
    outcome: Outcome
    reason: str = ""
    face: bool | None = None
    """Whether the frames show a face; None if none was looked for."""

    @property
    def is_there(self) -> bool:
        """Whether the clip is in the result."""
        return self.outcome in ("prepared", "reused")


@dataclass(frozen=True)
class PrepareReport:
    """The outcome of every clip of the split list; also written as ``report.json``."""

    folder: Path
    clips: tuple[ClipReport, ...]

    @property
    def counts(self) -> dict[Outcome, int]:
        """Clips per outcome; they add up to the split list."""
        found = [clip.outcome for clip in self.clips]
        return {outcome: found.count(outcome) for outcome in OUTCOMES}

    @property
    def faces(self) -> tuple[int, int] | None:
        """In how many clips of how many a face was found; None if none was looked for."""
        found = [clip.face for clip in self.clips if clip.face is not None]
        return (sum(found), len(found)) if found else None

    @property
    def bad(self) -> tuple[ClipReport, ...]:
        """The clips that are not in the prepared dataset, in the order of the split list."""
        return tuple(clip for clip in self.clips if not clip.is_there)


@dataclass(frozen=True, slots=True)
class RawClip:
    """A clip before decoding: its media, the stretch that belongs to it (s; to the end if ``end`` is None).

    ``sha256``: the hash that each media file must have; empty if no checksums are given.
    """

    info: ClipInfo
    sound: Path
    video: Path
    start: float = 0.0
    end: float | None = None
    sha256: tuple[tuple[Path, str], ...] = ()


def prepare_cremad(
    root: Path,
    out: Path,
    *,
    split_csv: Path | None = None,
    checksums: Path | None = None,
    size: int = 224,
    crop: Crop = "none",
    workers: int = 2,
    progress: Progress | None = None,
) -> PrepareReport:
    """Prepare what is present of CREMA-D; absent clips are reported as missing.

    Args:
        root: holds VideoFlash/ID.flv and AudioWAV/ID.wav; a clip without WAV gets the sound of its FLV.
        out: where clips/, index.csv and report.json go; an earlier or interrupted run is completed. Its finished clips
            are kept even if ``root`` has changed since; delete them to decode them again.
        split_csv: clip_id,label,split; ``root/split.csv`` by default.
        checksums: path,sha256,bytes with paths relative to ``root``; files that differ are not prepared.
        size: of the square frames, in pixels.
        crop: ``face``: they show the face; see ``FrameSpec.crop``, which must be the same in experiments.
        workers: decoder processes; 1 decodes in this process.
        progress: called with (clips done, clips in all, clips that are not in the result).

    Raises:
        DataError: unusable split list or checksum table, ``root`` without media, ``out`` of other settings, or
            ``crop`` without the detector.
    """
    _check_folder(root / "VideoFlash", "the folder that holds VideoFlash and AudioWAV")
    clips = [
        RawClip(info, *cremad.media_paths(root, info.clip_id))
        for info in cremad.read_split(split_csv or root / "split.csv")
    ]
    settings = {"dataset": cremad.NAME, "class_names": list(EMOTIONS), "size": size, **_crop_setting(crop)}
    return _prepare(_with_checksums(clips, root, checksums), (), out, settings, workers, progress)


def prepare_ave(
    root: Path,
    out: Path,
    *,
    segment: Literal["event", "full"] = "event",
    deduplicate: bool = False,
    checksums: Path | None = None,
    size: int = 224,
    crop: Crop = "none",
    workers: int = 2,
    progress: Progress | None = None,
) -> PrepareReport:
    """Prepare what is present of AVE; absent clips are reported as missing, events of no length as dropped.

    Args:
        root: holds AVE's four lists and AVE/ID.mp4.
        segment: only the annotated event, as the thesis' line of work does, or the full ten seconds.
        deduplicate: one row per video, see ``ave.read_events``.
        out, checksums, size, crop, workers, progress: see ``prepare_cremad``.

    Raises:
        DataError: see ``prepare_cremad``.
    """
    _check_folder(root / "AVE", "the folder that holds Annotations.txt and AVE")
    class_names, events = ave.read_events(root, deduplicate)
    dropped = tuple(
        ClipReport(event.info.clip_id, "dropped", "its event has no length: nothing to do")
        for event in events
        if event.start == event.end
    )
    clips = []
    for event in events:
        if event.start == event.end:
            continue
        video = ave.video_path(root, event.video_id)
        stretch = (event.start, event.end) if segment == "event" else (0.0, None)
        clips.append(RawClip(event.info, video, video, *stretch))
    settings = {
        "dataset": ave.NAME,
        "class_names": list(class_names),
        "size": size,
        "segment": segment,
        "deduplicate": deduplicate,
        **_crop_setting(crop),
    }
    return _prepare(_with_checksums(clips, root, checksums), dropped, out, settings, workers, progress)


class PreparedSource:
    """A prepared folder as a ClipSource. Decoding a clip is unpacking one .npz.

    Attributes:
        crop: ``face`` if the frames were cut to the face.

    Args:
        out_dir: the ``out`` of ``prepare_cremad`` or ``prepare_ave``.
        class_names: the expected classes; a folder with other classes, or another order, is refused.
        name: of the dataset; as prepared by default.

    Raises:
        DataError: no finished preparation, a damaged index, or other classes than expected.
    """

    def __init__(
        self, out_dir: Path, class_names: Sequence[str] | None = None, name: str | None = None
    ) -> None:
        settings = _read_settings(out_dir)
        if settings is None or not (out_dir / "index.csv").exists():
            raise DataError(f"{out_dir}: holds no finished preparation: run 'fedstill data prepare' first")
        self.class_names = tuple(settings["class_names"])
        if class_names is not None and tuple(class_names) != self.class_names:
            raise DataError(
                f"{out_dir}: has the classes {' '.join(self.class_names)}, not {' '.join(class_names)}: "
                "use them in this order"
            )
        self.name = name or str(settings["dataset"])
        self.crop: Crop = "face" if settings.get("crop") == "face" else "none"
        self.index = tuple(
            _parse_index(row, self.class_names, f"{out_dir / 'index.csv'}, line {line}")
            for line, row in read_table(out_dir / "index.csv", INDEX_COLUMNS)
        )
        self._clips = out_dir / "clips"

    def load(self, position: int) -> Clip:
        """float32 sound at 16 kHz and uint8 (10, size, size, 3). Raises DataError naming the file."""
        info = self.index[position]
        path = self._clips / f"{info.clip_id}.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                face = bool(arrays["face"]) if self.crop == "face" else None
                audio = arrays["audio"].astype(np.float32) / 32768
                return Clip(info, audio, arrays["frames"], SAMPLE_RATE, face=face)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file: prepare the dataset again") from error
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(f"{path}: is damaged: delete it and prepare the dataset again") from error


def _prepare(
    clips: Sequence[RawClip],
    dropped: tuple[ClipReport, ...],
    out: Path,
    settings: dict[str, Any],
    workers: int,
    progress: Progress | None,
) -> PrepareReport:
    if settings.get("crop") == "face":
        require_faces()
    try:
        _claim(out, {"format": FORMAT_VERSION, **settings})
        reports: list[ClipReport] = []
        work = partial(_prepare_clip, out / "clips", settings["size"], settings.get("crop", "none"))
        with closing(in_parallel(work, clips, workers, _lost)) as results:
            skipped = len(dropped)
            for done in results:
                reports.append(done)
                skipped += not done.is_there
                if progress is not None:
                    progress(len(reports), len(clips), skipped)
        report = PrepareReport(out, (*reports, *dropped))
        bad = {clip.clip_id for clip in report.bad}
        _write_index(out, [clip.info for clip in clips if clip.info.clip_id not in bad], settings)
        _write_report(report)
    except NoProcess as error:
        raise DataError(str(error)) from error
    except OSError as error:  # an error of writing; files that cannot be read are in the report
        raise DataError(f"{out}: cannot be written ({error}): free disk space and run again") from error
    return report


def _crop_setting(crop: Crop) -> dict[str, str]:
    """Nothing for whole pictures: folders of older versions are of this kind."""
    return {} if crop == "none" else {"crop": crop}


def _prepare_clip(folder: Path, size: int, crop: Crop, clip: RawClip) -> ClipReport:
    """Decode one clip into ``folder`` unless it is there. Raises OSError only if writing fails."""
    clip_id = clip.info.clip_id
    target = folder / f"{clip_id}.npz"
    try:
        with decoder_errors(clip.video):
            settled = _settled(clip, target)
        if settled is not None:
            known = settled.outcome == "reused" and crop == "face"
            return replace(settled, face=_kept_face(target)) if known else settled
        audio, frames, face = _decode(clip, size, crop)
    except DataError as error:
        return ClipReport(clip_id, "corrupt", str(error))
    arrays: dict[str, npt.NDArray[Any]] = {"audio": audio, "frames": frames}
    if face is not None:
        arrays["face"] = np.asarray(face)
    with _replacing(target) as draft, ZipFile(draft, "w", ZIP_DEFLATED, compresslevel=PACKING) as packed:
        for name, array in arrays.items():
            with packed.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return ClipReport(clip_id, "prepared", face=face)


def _kept_face(target: Path) -> bool | None:
    """Whether a finished clip shows a face; None if its file is damaged, which is said when it is loaded."""
    try:
        with np.load(target, allow_pickle=False) as arrays:
            return bool(arrays["face"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _settled(clip: RawClip, target: Path) -> ClipReport | None:
    """The outcome of a clip that need not be decoded."""
    clip_id = clip.info.clip_id
    absent = next((path for path in (clip.video, clip.sound) if not path.exists()), None)
    if absent is None:
        for path, expected in clip.sha256:
            if not expected:
                return ClipReport(
                    clip_id, "checksum mismatch", f"{path}: has no checksum: add it to the table"
                )
            if _sha256(path) != expected:
                return ClipReport(
                    clip_id, "checksum mismatch", f"{path}: differs from the original: {REPLACE}"
                )
    if target.exists():
        return ClipReport(clip_id, "reused")
    return None if absent is None else ClipReport(clip_id, "missing", f"{absent}: no such file: download it")


def _decode(
    clip: RawClip, size: int, crop: Crop
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], bool | None]:
    """int16 (samples,) at 16 kHz, lossless for 16-bit sources, uint8 (10, size, size, 3), and whether they show a face
    if it is to be cut out."""
    for path in {clip.sound, clip.video}:
        with decoder_errors(path), path.open("rb") as file:
            if file.read(23) == b"version https://git-lfs":
                raise DataError(f"{path}: is a Git LFS pointer, not the media: run 'git lfs pull' there")
    with decoder_errors(clip.sound):
        audio = resample(*read_audio(clip.sound), SAMPLE_RATE)
    stop = None if clip.end is None else round(clip.end * SAMPLE_RATE)
    audio = audio[round(clip.start * SAMPLE_RATE) : stop]
    if not audio.size:
        raise DataError(f"{clip.sound}: its sound ends before {clip.start} s: {REPLACE}")
    frames = read_video_frames(clip.video, FRAME_COUNT, start=clip.start, end=clip.end)
    pcm = np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)
    frames, face = (frames, None) if crop == "none" else crop_to_face(frames)
    return pcm, resize_frames(frames, size), face


def _lost(clip: RawClip) -> ClipReport:
    return ClipReport(clip.info.clip_id, "corrupt", f"{clip.video}: kills its decoder: {REPLACE}")


def _with_checksums(clips: Sequence[RawClip], root: Path, table: Path | None) -> Sequence[RawClip]:
    if table is None:
        return clips
    known = {row["path"]: row["sha256"].lower() for _, row in read_table(table, ("path", "sha256"))}
    return [
        replace(
            clip,
            sha256=tuple(
                (path, known.get(path.relative_to(root).as_posix(), ""))
                for path in dict.fromkeys((clip.sound, clip.video))
            ),
        )
        for clip in clips
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_folder(folder: Path, wanted: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: give {wanted}")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Claim ``out``, or continue an earlier run with the same settings."""
    found = _read_settings(out)
    if found is not None and found != settings:
        differs = next(key for key in {**found, **settings} if found.get(key) != settings.get(key))
        was, wanted = (values.get(differs, "none") for values in (found, settings))
        raise DataError(
            f"{out}: was prepared with {differs} {was}, not {wanted}: "
            "choose another folder or delete this one"
        )
    (out / "clips").mkdir(parents=True, exist_ok=True)
    for leftover in (out / "clips").glob(".*.draft"):  # of a run that was killed
        leftover.unlink()
    replace_text(out / "settings.json", json.dumps(settings, indent=2) + "\n")


def _read_settings(out: Path) -> dict[str, Any] | None:
    path = out / "settings.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return settings
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged: delete {out} and prepare again") from error


def _write_index(out: Path, clips: Sequence[ClipInfo], settings: dict[str, Any]) -> None:
    with _replacing(out / "index.csv") as draft, draft.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*INDEX_COLUMNS, GROUP_COLUMN])
        for clip in clips:
            label = "" if clip.label is None else settings["class_names"][clip.label]
            rows.writerow([clip.clip_id, clip.split, clip.speaker, label, clip.group])


def _parse_index(row: dict[str, str], class_names: tuple[str, ...], where: str) -> ClipInfo:
    if row["label"] not in (*class_names, "") or row["split"] not in ("public", "private"):
        raise DataError(f"{where}: is damaged: prepare the dataset again")
    return ClipInfo(
        clip_id=row["clip_id"],
        split="public" if row["split"] == "public" else "private",
        speaker=row["speaker"],
        label=class_names.index(row["label"]) if row["label"] else None,
        group=row.get(GROUP_COLUMN, ""),
    )


def _write_report(report: PrepareReport) -> None:
    faces = (
        {} if report.faces is None else {"faces": dict(zip(("found", "clips"), report.faces, strict=True))}
    )
    content = {
        "counts": report.counts,
        **faces,
        "bad": [
            {"clip_id": clip.clip_id, "outcome": clip.outcome, "reason": clip.reason} for clip in report.bad
        ],
    }
    replace_text(report.folder / "report.json", json.dumps(content, indent=1) + "\n")


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A sibling to write; it becomes ``target`` only if the block succeeds."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    try:
        yield draft
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)

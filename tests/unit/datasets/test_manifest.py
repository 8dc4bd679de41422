"""A user's own clips: a good table is read as written, a bad row is named with its line and the remedy."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import soundfile
from helpers.command import CliRunner
from helpers.media import cut, write_sound, write_video
from PIL import Image

from fedstill.cli.main import app
from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import ClipInfo
from fedstill.datasets.audiovisual.manifest import COLUMNS, ManifestSource, manifest_problems, speaker_sexes
from fedstill.datasets.audiovisual.open_dataset import open_dataset
from fedstill.datasets.inspection.dataset_check import check_dataset

GOOD = ["a,public,ann,sad,sound/a.wav,face/a.png", "b,private,bob,,sound/b.wav,face/b.png"]


def write_table(folder: Path, rows: list[str], header: str = ",".join(COLUMNS)) -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """sound/a.wav, sound/b.wav (silent), face/a.png (grey 10) and face/b.png (grey 20)."""
    write_sound(tmp_path / "sound" / "a.wav")
    write_sound(tmp_path / "sound" / "b.wav", level=0.0)
    (tmp_path / "face").mkdir()
    Image.new("L", (8, 6), 10).save(tmp_path / "face" / "a.png")
    Image.new("L", (8, 6), 20).save(tmp_path / "face" / "b.png")
    return tmp_path


def test_a_good_table(media: Path) -> None:
    source = ManifestSource(write_table(media, GOOD), frame_count=3)
    assert source.name == media.name
    assert source.class_names == ("sad",)
    assert source.index == (
        ClipInfo("a", "public", "ann", 0, "sound/a.wav"),
        ClipInfo("b", "private", "bob", None, "sound/b.wav"),
    )
    clip = source.load(0)
    assert clip.info == source.index[0]
    assert (clip.audio.shape, clip.sample_rate) == ((16_000,), 16_000)
    assert (clip.frames.shape, clip.frames.dtype) == ((3, 6, 8, 3), np.uint8)
    assert source.load(1).frames.max() == 20
    assert not source.load(1).audio.any()


def test_clips_with_one_sound_are_one_recording_unless_a_column_says_otherwise(media: Path) -> None:
    rows = [f"{name},public,x,sad,sound/a.wav,face/{name}.png" for name in "ab"]
    clips = ManifestSource(write_table(media, rows)).index
    assert [clip.recording for clip in clips] == ["sound/a.wav", "sound/a.wav"]
    named = [f"{row},{group}" for row, group in zip(rows, ("take one", ""), strict=True)]
    clips = ManifestSource(write_table(media, named, ",".join([*COLUMNS, "group"]))).index
    assert [clip.recording for clip in clips] == ["take one", "sound/a.wav"]


def test_the_sex_of_speakers_may_be_said(media: Path) -> None:
    rows = [f"{name},public,{name[0]},sad,sound/a.wav,face/a.png" for name in ("a1", "a2", "b1")]
    assert speaker_sexes(write_table(media, rows)) == {}
    told = [f"{row},{sex}" for row, sex in zip(rows, ("f", "", ""), strict=True)]
    assert speaker_sexes(write_table(media, told, ",".join([*COLUMNS, "sex"]))) == {"a": "f"}
    torn = [f"{row},{sex}" for row, sex in zip(rows, ("f", "m", ""), strict=True)]
    with pytest.raises(DataError, match="line 3: sex of a is 'm' here, 'f' above"):
        speaker_sexes(write_table(media, torn, ",".join([*COLUMNS, "sex"])))


def test_labels_are_sorted_unless_an_order_is_given(media: Path) -> None:
    rows = [f"{label},public,x,{label},sound/a.wav,face/a.png" for label in ("sad", "angry", "happy")]
    table = write_table(media, rows)
    assert ManifestSource(table).class_names == ("angry", "happy", "sad")
    ordered = ManifestSource(table, class_names=["sad", "happy", "angry"])
    assert [clip.label for clip in ordered.index] == [0, 2, 1]


def test_a_root_elsewhere_notes_and_a_byte_order_mark(media: Path) -> None:
    folder = media / "tables"
    folder.mkdir()
    table = write_table(folder, [row + ",nice" for row in GOOD], ",".join(COLUMNS) + ",notes")
    table.write_text("\ufeff" + table.read_text() + "\n", encoding="utf-8")
    assert len(ManifestSource(table, root=media).index) == 2


def test_frames_of_every_kind(media: Path) -> None:
    write_video(media / "clip.flv")
    for number in range(4):
        path = media / "folder" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (number, 0, 0)).save(path)
    np.save(media / "grey.npy", np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((4, 6, 8), np.uint8))
    np.save(media / "colour.npy", np.full((5, 6, 8, 3), 7, np.uint8))
    rows = [
        f"{name},public,x,sad,sound/a.wav,{name}" for name in ("clip.flv", "folder", "grey.npy", "colour.npy")
    ]
    source = ManifestSource(write_table(media, rows), frame_count=2)
    video, folder, grey, colour = (source.load(position).frames for position in range(4))
    assert video.shape == (2, 48, 64, 3)
    assert folder[:, 0, 0].tolist() == [[1, 0, 0], [3, 0, 0]]
    assert grey[:, 0, 0].tolist() == [[1, 1, 1], [3, 3, 3]]
    assert colour.shape == (2, 6, 8, 3)


def test_audio_may_be_a_feature_matrix_or_a_video(media: Path) -> None:
    write_video(media / "clip.mp4")
    np.save(media / "mel.npy", np.ones((4, 9), np.float64))
    rows = [f"{name},public,x,sad,{name},face/a.png" for name in ("mel.npy", "clip.mp4")]
    source = ManifestSource(write_table(media, rows))
    features, waveform = source.load(0), source.load(1)
    assert (features.audio.shape, features.audio.dtype, features.sample_rate) == ((4, 9), np.float32, 0)
    assert (waveform.audio.ndim, waveform.sample_rate) == (1, 44_100)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("c,test,x,sad,sound/a.wav,face/a.png", "split is 'test': write public or private"),
        ("a,public,x,sad,sound/a.wav,face/a.png", "clip_id 'a' is used twice: give"),
        ("c,public,x,glad,sound/a.wav,face/a.png", "label 'glad' is not a class: use one of happy, sad"),
        ("c,public,x,,sound/a.wav,face/a.png", "label is empty: name the class"),
        ("c,public,x,sad,,face/a.png", "audio is empty: fill it in"),
        ("c,public,x,sad,sound/a.wav,", "frames is empty: fill it in"),
        (",public,x,sad,sound/a.wav,face/a.png", "clip_id is empty: fill it in"),
        ("c,public,,sad,sound/a.wav,face/a.png", "speaker is empty: fill it in"),
        ("c,public,x,sad,sound/c.wav,face/a.png", "audio sound/c.wav is not a file below"),
        ("c,public,x,sad,sound,face/a.png", "audio sound is not a file below"),
        ("c,public,x,sad,sound/a.wav,face/c.png", "frames face/c.png is neither a file nor a folder with"),
        ("c,public,x,sad,sound/a.wav,sound", "frames sound is neither a file nor a folder with images"),
        ("c,public,x,sad,../a.wav,face/a.png", r"path \.\./a.wav leads out of .*: use a path below it"),
        ("c,public,x,sad,/etc/passwd,face/a.png", "path /etc/passwd leads out of"),
        ("c,public,x,sad,sound/a.wav", "has 5 values, the header 6: quote"),
        ("c,public,x,sad,sound/a.wav,face/a.png,1", "has 7 values, the header 6: quote"),
    ],
)
def test_a_bad_row_is_named_by_its_line(media: Path, row: str, complaint: str) -> None:
    table = write_table(media, [*GOOD, row])
    with pytest.raises(DataError, match=f"manifest.csv, line 4: {complaint}") as refused:
        ManifestSource(table, class_names=["happy", "sad"])
    assert "\n" not in str(refused.value)


def test_all_problems_are_listed(media: Path) -> None:
    table = write_table(media, ["c,test,x,sad,a,b", *GOOD, "d,public,x,sad,a,b"])
    problems = manifest_problems(table)
    assert [problem.split(": ")[0] for problem in problems] == [f"{table}, line 2", f"{table}, line 5"]
    assert manifest_problems(write_table(media, GOOD)) == []
    with pytest.raises(DataError, match=r"line 2: split .* \(and 1 more problems\)"):
        ManifestSource(write_table(media, ["c,test,x,sad,a,b", *GOOD, "d,public,x,sad,a,b"]))


def test_unusable_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file: check the path"):
        ManifestSource(tmp_path / "manifest.csv")
    with pytest.raises(DataError, match="lacks column audio, frames: use clip_id,split"):
        ManifestSource(write_table(tmp_path, [], "clip_id,split,speaker,label"))
    with pytest.raises(DataError, match="has no clips"):
        ManifestSource(write_table(tmp_path, []))
    with pytest.raises(DataError, match="names a class twice"):
        ManifestSource(write_table(tmp_path, []), class_names=["sad", "sad"])
    (tmp_path / "manifest.csv").write_bytes(b"clip_id,\xff\xfe")
    with pytest.raises(DataError, match="is not a readable UTF-8 CSV"):
        ManifestSource(tmp_path / "manifest.csv")
    assert len(manifest_problems(tmp_path / "manifest.csv")) == 1


def test_bad_arrays_are_refused(media: Path) -> None:
    arrays = {
        "flat": (np.ones(5, np.float32), "store floats of shape"),
        "whole": (np.ones((5, 5), np.int64), "store floats of shape"),
        "nan": (np.full((5, 5), np.nan), "holds NaN or infinity"),
        "objects": (np.array([{}]), "no readable .npy array"),
    }
    for name, (array, complaint) in arrays.items():
        np.save(media / "bad.npy", array, allow_pickle=True)
        source = ManifestSource(write_table(media, [f"{name},public,x,sad,bad.npy,face/a.png"]))
        with pytest.raises(DataError, match=rf"bad\.npy: .*{complaint}"):
            source.load(0)
    source = ManifestSource(write_table(media, ["c,public,x,sad,sound/a.wav,bad.npy"]))
    for frames in (np.ones((2, 6, 8, 3), np.float32), np.ones((6, 8, 3), np.uint8), np.ones(3, np.uint8)):
        np.save(media / "bad.npy", frames)
        with pytest.raises(DataError, match=r"bad\.npy: is .*: store uint8 of shape"):
            source.load(0)


@pytest.fixture
def zipped(media: Path) -> Path:
    """The same media, with ``sound`` zipped without its top folder and ``face`` with it."""
    shutil.make_archive(str(media / "sound"), "zip", media / "sound")
    shutil.make_archive(str(media / "face"), "zip", media, "face")
    shutil.rmtree(media / "sound")
    shutil.rmtree(media / "face")
    return media


def loudest(source: ManifestSource, position: int) -> float:
    return float(np.abs(source.load(position).audio).max())


def test_zips_are_read_in_place(zipped: Path) -> None:
    rows = [*GOOD, "c,public,x,sad,sound/a.wav,face"]
    source = ManifestSource(write_table(zipped, rows), frame_count=2)
    assert loudest(source, 0) > 0.4
    assert loudest(source, 1) == 0
    assert source.load(2).frames[:, 0, 0, 0].tolist() == [10, 20]
    assert not (zipped / "sound").exists()
    problems = manifest_problems(write_table(zipped, ["c,public,x,sad,sound/z.wav,face/a.png"]))
    assert len(problems) == 1
    assert "sound/z.wav is not a file" in problems[0]


def test_threads_and_processes_share_a_zip(media: Path) -> None:
    for name, level in (("a", 0.5), ("b", 0.0)):
        write_sound(media / "sound" / f"{name}.wav", seconds=20.0, level=level)  # long, so that reads overlap
    shutil.make_archive(str(media / "sound"), "zip", media / "sound")
    shutil.rmtree(media / "sound")
    source = ManifestSource(write_table(media, GOOD))
    assert loudest(pickle.loads(pickle.dumps(source)), 0) > 0.4  # noqa: S301
    with ThreadPoolExecutor(4) as pool:
        heard = list(pool.map(lambda turn: loudest(source, turn % 2) > 0, range(80)))
    assert heard == [True, False] * 40
    (media / "source").write_bytes(pickle.dumps(source))
    told = subprocess.run(
        [sys.executable, "-c", FORKED, media / "source"], capture_output=True, text=True, check=True,
        timeout=120, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert json.loads(told.stdout) == [True, False] * 40


FORKED = """
import json, pickle, sys
from multiprocessing import get_context
from pathlib import Path

source = pickle.loads(Path(sys.argv[1]).read_bytes())
source.load(0)

def heard(turn):
    return bool(abs(source.load(turn % 2).audio).max() > 0)

with get_context("fork").Pool(2) as processes:
    print(json.dumps(processes.map(heard, range(80))))
"""
"""A process of its own: forked from pytest's, which has threads by then, a child may wait for a lock for ever."""


def test_an_array_whose_header_is_damaged_is_one_line(media: Path) -> None:
    np.save(media / "bad.npy", np.ones((4, 9), np.float32))
    content = (media / "bad.npy").read_bytes()
    (media / "bad.npy").write_bytes(content.replace(b"}", b"("))  # numpy reads the header as Python
    source = ManifestSource(write_table(media, ["a,public,x,sad,bad.npy,face/a.png"]))
    with pytest.raises(DataError, match=r"bad\.npy: is no readable \.npy array: save it again"):
        source.load(0)


def test_a_broken_zip_is_named(zipped: Path) -> None:
    cut(zipped / "sound.zip", 0.6)
    problems = manifest_problems(write_table(zipped, GOOD))
    assert len(problems) == 2
    assert "sound.zip: is not a readable zip" in problems[0]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_tables_of_other_separators_are_read(media: Path, separator: str) -> None:
    rows = [row.replace(",", separator) for row in (*GOOD, ",,,,,")]
    source = ManifestSource(write_table(media, rows, separator.join(COLUMNS)))
    assert [info.clip_id for info in source.index] == ["a", "b"]
    assert source.load(0).frames.max() == 10
    table = media / "manifest.csv"
    plain = table.read_text()
    table.write_text(f"sep={separator}\n\n" + plain + separator.join("c?????") + "\n")
    assert manifest_problems(table)[0].startswith(f"{table}, line 7: ")
    table.write_text(f"sep={separator}\n" + plain)
    table.rename(media / "manifest.tsv")
    assert len(open_dataset(media / "manifest.tsv").index) == 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_tables_with_a_mark_are_read(media: Path, encoding: str) -> None:
    table = write_table(media, GOOD)
    table.write_text(table.read_text().replace("\n", "\r\n"), encoding=encoding)
    assert ManifestSource(table).class_names == ("sad",)


@pytest.mark.parametrize(("name", "said"), [("label", "'label'"), ("Label", "'label'"), ("notes", "'notes'")])
def test_a_column_that_is_there_twice_is_an_error(media: Path, name: str, said: str) -> None:
    header = ",".join([*COLUMNS, *(["notes"] if name == "notes" else []), name])
    with pytest.raises(DataError, match=f"has 2 columns {said}: keep one"):
        ManifestSource(write_table(media, [f"{row},x" for row in GOOD], header))
    assert (
        len(ManifestSource(write_table(media, [f"{row},," for row in GOOD], f"{','.join(COLUMNS)},,")).index)
        == 2
    )


def test_paths_of_windows_are_read_and_its_drives_are_named(media: Path) -> None:
    source = ManifestSource(write_table(media, [row.replace("/", "\\") for row in GOOD]))
    assert source.load(1).frames.max() == 20
    assert source.index[0].recording == "sound/a.wav"
    for path in ("C:\\clips\\a.wav", "c:/clips/a.wav", "\\\\server\\clips\\a.wav"):
        with pytest.raises(
            DataError, match=r"line 2: path .* is of a Windows computer: write it relative to"
        ):
            ManifestSource(write_table(media, [f"c,public,x,sad,{path},face/a.png"]))
    with pytest.raises(DataError, match="leads out of"):
        ManifestSource(write_table(media, ["c,public,x,sad,sound\\..\\..\\a.wav,face/a.png"]))
    (media / "face" / "c\\d.png").write_bytes((media / "face" / "b.png").read_bytes())
    odd = ManifestSource(write_table(media, ["c,public,x,sad,sound/a.wav,face/c\\d.png"]))
    assert odd.load(0).frames.max() == 20


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("stored", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accented_names_are_found_in_either_form(
    media: Path, stored: str, written: str, packed: bool
) -> None:
    name = "caf\u00e9"
    (media / "face" / "a.png").rename(media / "face" / f"{normalize(stored, name)}.png")
    if packed:
        shutil.make_archive(str(media / "face"), "zip", media / "face")
        shutil.rmtree(media / "face")
    frames = f"face/{normalize(written, name)}.png"
    rows = [f"{form},public,x,{normalize(form, name)},sound/a.wav,{frames}" for form in ("NFC", "NFD")]
    source = ManifestSource(write_table(media, rows))
    assert source.class_names == (name,)
    assert source.load(1).frames.max() == 10
    assert ManifestSource(write_table(media, rows), class_names=[normalize("NFD", name)]).index[0].label == 0


def test_each_folder_of_a_path_may_have_its_own_form(media: Path) -> None:
    name = "caf\u00e9"
    folder = media / normalize("NFC", name) / normalize("NFD", name)
    folder.mkdir(parents=True)
    (media / "face" / "a.png").rename(folder / f"{normalize('NFC', name)}.png")
    for form in ("NFC", "NFD"):
        path = normalize(form, f"{name}/{name}")
        rows = [f"{n},public,x,sad,sound/a.wav,{one}" for n, one in enumerate((path, f"{path}/{name}.png"))]
        source = ManifestSource(write_table(media, rows))
        assert [source.load(place).frames.max() for place in (0, 1)] == [10, 10]


def test_absolute_paths_below_the_root_are_fine(media: Path) -> None:
    rows = [f"a,public,ann,sad,{media}/sound/a.wav,{media}/face"]
    source = ManifestSource(write_table(media, rows), frame_count=2)
    assert source.load(0).frames[:, 0, 0, 0].tolist() == [10, 20]
    assert source.index[0].recording == "sound/a.wav"
    (media / "tables").mkdir()
    with pytest.raises(
        DataError,
        match=r"leads out of .*: use a path below it, without '..', set dataset.root, or give --allow",
    ):
        ManifestSource(write_table(media / "tables", rows))
    assert len(ManifestSource(write_table(media / "tables", rows), root=Path(media.anchor)).index) == 1
    with pytest.raises(DataError, match="leads out of"):
        ManifestSource(write_table(media, [f"a,public,ann,sad,{media}/../a.wav,face"]))


def test_absolute_paths_through_a_link_to_the_root_are_fine(media: Path) -> None:
    link = media.parent / f"link-{media.name}"
    link.symlink_to(media)
    rows = [f"a,public,ann,sad,{link}/sound/a.wav,{link}/face"]
    assert ManifestSource(write_table(media, rows), root=media).index[0].recording == "sound/a.wav"


def test_paths_outside_of_the_root_are_read_if_that_is_allowed(media: Path) -> None:
    (media / "tables").mkdir()
    rows = [
        f"a,public,ann,sad,{media}/sound/a.wav,{media}/face",
        "b,public,ann,sad,../sound/a.wav,../face/b.png",
        "c,public,ann,sad,../tables/../sound/b.wav,../face/b.png",
    ]
    table = write_table(media / "tables", rows)
    source = open_dataset(table, frame_count=2, allow_outside=True)
    assert source.load(0).frames[:, 0, 0, 0].tolist() == [10, 20]
    assert source.load(1).frames.max() == 20
    inside = str((media / "sound").resolve())
    assert [clip.recording for clip in source.index] == [f"{inside}/a.wav"] * 2 + [f"{inside}/b.wav"]
    options = ["data", "check", "quickstart", "--set", "dataset.kind=manifest"]
    options += ["--set", f"dataset.manifest={table}"]
    refused, allowed = (CliRunner().invoke(app, [*options, *more]) for more in ([], ["--allow-outside"]))
    assert refused.exit_code == 2
    assert "--allow-outside" in refused.output
    assert "sad: 3 public, 0 private clips" in allowed.output


def test_a_path_with_other_capital_letters_is_pointed_at(media: Path) -> None:
    problems = manifest_problems(write_table(media, ["c,public,x,sad,Sound\\A.wav,face/a.png"]))
    assert problems[0].endswith(
        f"Sound\\A.wav is not a file below {media}: correct the path (sound/a.wav is there)"
    )
    problems = manifest_problems(write_table(media, ["c,public,x,sad,sound/a.wav,Face/a.png"]))
    assert "(face/a.png is there)" in problems[0]


def test_a_dot_is_the_root_itself(media: Path) -> None:
    row = "c,public,x,sad,{},{}"
    with pytest.raises(DataError, match=r"line 2: frames \. is neither a file nor a folder with images"):
        ManifestSource(write_table(media, [row.format("sound/a.wav", ".")]))
    with pytest.raises(DataError, match=r"line 2: audio \. is not a file below"):
        ManifestSource(write_table(media, [row.format(".", "face")]))
    Image.new("L", (8, 6), 30).save(media / "c.png")
    table = write_table(media, [row.format("./sound/a.wav", ".")])
    assert ManifestSource(table, frame_count=1).load(0).frames.max() == 30


@pytest.mark.parametrize("path", ["a" * 300, "a" * 253, "a/" * 3000, "a\0b"])
def test_paths_that_cannot_be_are_one_line(media: Path, path: str) -> None:
    problems = manifest_problems(
        write_table(media, [f"c,public,x,sad,{path},face", f"d,public,x,sad,sound/a.wav,{path}"])
    )
    assert problems
    assert all("\n" not in problem for problem in problems)


def test_a_file_without_line_ends_is_not_read_into_memory(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(DataError, match="line 1: is longer than 1048576 characters"):
        ManifestSource(tmp_path / "manifest.csv")


def test_content_decides_what_frames_are(media: Path) -> None:
    first, *rest = (Image.new("RGB", (8, 6), (shade,) * 3) for shade in (0, 60, 120, 180))
    for name in ("moving.webp", "moving.gif", "moving.png"):
        first.save(media / name, save_all=True, append_images=rest, duration=100, lossless=True)
    (media / "moving.webp").rename(media / "moving.dat")
    write_video(media / "clip.mp4")
    (media / "clip.mp4").rename(media / "clip.png")
    names = ("moving.dat", "moving.gif", "moving.png", "clip.png")
    rows = [f"{name},public,x,sad,sound/a.wav,{name}" for name in names]
    source = ManifestSource(write_table(media, rows), frame_count=4)
    for position in range(3):
        assert source.load(position).frames[:, 0, 0, 0].tolist() == [0, 60, 120, 180]
    assert source.load(3).frames.shape == (4, 48, 64, 3)


def test_apple_and_windows_files_beside_frames_are_none(media: Path) -> None:
    (media / "face" / "._a.png").write_bytes(b"\0\5\x16\7")
    (media / "face" / "Thumbs.db").write_bytes(b"x")
    rows = ["a,public,ann,sad,sound/a.wav,face"]
    assert ManifestSource(write_table(media, rows), frame_count=2).load(0).frames.max() == 20
    shutil.make_archive(str(media / "face"), "zip", media, "face")
    shutil.rmtree(media / "face")
    assert ManifestSource(write_table(media, rows), frame_count=2).load(0).frames.max() == 20


def test_data_check_counts_classes_and_points_at_look_alikes(media: Path) -> None:
    labels = (
        "Happy",
        "happy",
        "well done",
        "well_done",
        "sad",
        "s\u0430d",
        "",
    )  # the second sad has a Cyrillic letter
    rows = [
        f"{n},{'private' if n % 2 or not label else 'public'},x,{label},sound/a.wav,face/a.png"
        for n, label in enumerate(labels)
    ]
    table = write_table(media, rows)
    options = ["--set", "dataset.kind=manifest", "--set", f"dataset.manifest={table}"]
    lines = CliRunner().invoke(app, ["data", "check", "quickstart", *options]).output.splitlines()
    assert lines[:2] == ["Happy: 1 public, 0 private clips", "happy: 0 public, 1 private clips"]
    assert "without a label: 0 public, 1 private clips" in lines
    assert [line for line in lines if "look alike" in line] == [
        "classes 'Happy' and 'happy' look alike: are they one? They count as 2",
        "classes 'sad' and 's\u0430d' look alike: are they one? They count as 2",
        "classes 'well done' and 'well_done' look alike: are they one? They count as 2",
    ]
    assert any("class 'happy' has no public clip" in line for line in lines)


@pytest.mark.data
def test_real_emotion_pairs(data_dir: Path) -> None:
    source = ManifestSource(data_dir / "emotion_pairs" / "manifest.csv")
    splits = [clip.split for clip in source.index]
    assert (splits.count("public"), splits.count("private")) == (3168, 528)
    assert source.class_names == ("angry", "disgust", "fear", "happy", "neutral", "sad")
    assert len({clip.speaker for clip in source.index}) == 24
    for position in (0, 1847, 3695):
        clip = source.load(position)
        assert clip.sample_rate == 16_000
        assert 2 < len(clip.audio) / 16_000 < 6
        assert clip.frames.shape == (10, 48, 48, 3)


def test_checking_names_channels_that_cancel_out(media: Path) -> None:
    left = np.sin(np.arange(16_000) / 10).astype(np.float32)
    soundfile.write(media / "sound" / "a.wav", np.stack([left, -left], axis=1), 16_000)
    problems = check_dataset(ManifestSource(write_table(media, GOOD))).problems
    assert list(problems) == [
        "clip a: its channels cancel out when mixed (antiphase): invert one of them, or keep only one",
        "clip b: its sound is silence: record it again or remove it",
    ]
    soundfile.write(media / "sound" / "a.wav", np.stack([left, left], axis=1), 16_000)
    assert len(check_dataset(ManifestSource(write_table(media, GOOD))).problems) == 1


def test_features_have_no_channels_to_cancel_out(media: Path) -> None:
    features = np.array([[1, 2, 3], [-1, -2, -3]], np.float32) / 100
    np.save(media / "sound" / "a.npy", features)
    rows = ["a,public,ann,sad,sound/a.npy,face/a.png"]
    assert check_dataset(ManifestSource(write_table(media, rows))).problems == ()

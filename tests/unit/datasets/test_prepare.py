"""Preparing raw data: every clip ends up prepared or in the report, whatever the download looks like."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.focus import white_squares_are_faces
from helpers.media import TONE, cut, write_sound, write_video
from helpers.sound_files import encoded, noise, with_flac_length

from fedstill.common.errors import ConfigError, DataError
from fedstill.datasets.audiovisual import ave
from fedstill.datasets.audiovisual.clip import EMOTIONS, ClipInfo
from fedstill.datasets.audiovisual.cremad import read_split
from fedstill.datasets.audiovisual.prepare import PreparedSource, prepare_ave, prepare_cremad
from fedstill.datasets.decoding.decode import read_audio
from fedstill.datasets.inspection.dataset_check import check_dataset
from fedstill.simulation.config import load_experiment
from fedstill.simulation.sources import open_source

CODES = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
IDS = [f"1001_DFA_{code}_XX" for code in CODES]


def write_split(path: Path, ids: list[str]) -> Path:
    rows = [
        f"{clip_id},{clip_id[9:12]},{'public' if number % 2 else 'private'}"
        for number, clip_id in enumerate(ids)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["clip_id,label,split", *rows]), encoding="utf-8-sig")
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A CREMA-D folder: six clips as FLV, the first three also as WAV, a seventh only in the list."""
    root = tmp_path / "raw"
    for number, clip_id in enumerate(IDS):
        write_video(root / "VideoFlash" / f"{clip_id}.flv", frames=10)
        if number < 3:
            write_sound(root / "AudioWAV" / f"{clip_id}.wav", seconds=1.25, level=0.9)
    write_split(root / "split.csv", [*IDS, "1002_DFA_NEU_XX"])
    return root


def outcomes(counts: dict[str, int]) -> dict[str, int]:
    return {outcome: count for outcome, count in counts.items() if count}


def test_crema_d_from_end_to_end(raw: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    out = tmp_path / "out"
    report = prepare_cremad(raw, out, size=32, workers=1, progress=lambda *done: seen.append(done))
    assert outcomes(report.counts) == {"prepared": 6, "missing": 1}
    assert [count[:2] for count in seen] == [(done, 7) for done in range(1, 8)]
    assert [count[2] for count in seen] == sorted(count[2] for count in seen)
    assert (seen[0][2], seen[-1][2]) == (0, 1)
    (missing,) = report.bad
    assert missing.clip_id == "1002_DFA_NEU_XX"
    assert missing.reason == f"{raw / 'VideoFlash' / '1002_DFA_NEU_XX.flv'}: no such file: download it"
    written = json.loads((out / "report.json").read_text())
    assert written["counts"] == report.counts
    assert [clip["clip_id"] for clip in written["bad"]] == ["1002_DFA_NEU_XX"]

    source = PreparedSource(out)
    assert (source.name, source.class_names) == ("cremad", EMOTIONS)
    assert source.index == tuple(
        ClipInfo(clip_id, "public" if number % 2 else "private", "1001", number)
        for number, clip_id in enumerate(IDS)
    )
    clip = source.load(0)
    assert (clip.frames.shape, clip.frames.dtype) == ((10, 32, 32, 3), np.uint8)
    assert np.diff(clip.frames.mean((1, 2, 3))).min() > 5  # ten different frames, in order
    original, _ = soundfile.read(raw / "AudioWAV" / f"{IDS[0]}.wav", dtype="float32")
    np.testing.assert_array_equal(clip.audio, original)
    assert (clip.audio.dtype, clip.sample_rate) == (np.float32, 16_000)


def test_a_set_keeps_its_recordings_and_one_prepared_before_opens(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_cremad(raw, out, size=32, workers=1)
    table = out / "index.csv"
    header, first, *others = table.read_text(encoding="utf-8").splitlines()
    assert header == "clip_id,split,speaker,label,group"
    assert [clip.recording for clip in PreparedSource(out).index] == IDS
    table.write_text("\n".join([header, first + "take", *others]) + "\n", encoding="utf-8")
    assert [clip.recording for clip in PreparedSource(out).index] == ["take", *IDS[1:]]
    older = [line.rpartition(",")[0] for line in (header, first, *others)]
    table.write_text("\n".join(older) + "\n", encoding="utf-8")
    assert [clip.recording for clip in PreparedSource(out).index] == IDS


def test_sound_comes_from_the_video_where_there_is_no_wav(raw: Path, tmp_path: Path) -> None:
    prepare_cremad(raw, tmp_path / "out", size=32, workers=1)
    clip = PreparedSource(tmp_path / "out").load(5)
    heard, rate = read_audio(raw / "VideoFlash" / f"{IDS[5]}.flv")
    assert len(clip.audio) / 16_000 == pytest.approx(len(heard) / rate, abs=1e-3)
    assert np.abs(np.fft.rfft(clip.audio)).argmax() * 16_000 / len(clip.audio) == pytest.approx(TONE, abs=2)
    assert np.abs(clip.audio).max() == pytest.approx(0.5, abs=0.06)


def test_bad_clips_are_reported_with_their_reason(raw: Path, tmp_path: Path) -> None:
    videos = [raw / "VideoFlash" / f"{clip_id}.flv" for clip_id in IDS]
    cut(videos[3], 0.6)
    write_video(videos[4], frames=10, sound=False)
    videos[5].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    report = prepare_cremad(raw, tmp_path / "out", size=32, workers=1)
    assert outcomes(report.counts) == {"prepared": 3, "corrupt": 3, "missing": 1}
    reasons = [clip.reason for clip in report.bad]
    assert "is truncated, the last" in reasons[0]
    assert "has no audio stream" in reasons[1]
    assert "is a Git LFS pointer, not the media: run 'git lfs pull'" in reasons[2]
    assert all(str(video) in reason for video, reason in zip(videos[3:], reasons, strict=False))
    assert [clip.clip_id for clip in PreparedSource(tmp_path / "out").index] == IDS[:3]

    write_video(videos[3], frames=10)
    repaired = prepare_cremad(raw, tmp_path / "out", size=32, workers=1)
    assert outcomes(repaired.counts) == {"prepared": 1, "reused": 3, "corrupt": 2, "missing": 1}


def test_no_clip_stops_a_preparation(raw: Path, tmp_path: Path) -> None:
    piped, torn, folder = (raw / "AudioWAV" / f"{clip_id}.wav" for clip_id in IDS[:3])
    flac = with_flac_length(encoded(noise(1.25), "FLAC"), 0)
    piped.write_bytes(flac)  # a traceback of NumPy once
    torn.write_bytes(flac[: len(flac) // 2])
    folder.unlink()
    folder.mkdir()
    report = prepare_cremad(raw, tmp_path / "out", size=32, workers=1)
    assert outcomes(report.counts) == {"prepared": 4, "corrupt": 2, "missing": 1}
    reasons = [clip.reason for clip in report.bad]
    assert reasons[0].startswith(f"{torn}: is truncated: ")
    assert reasons[1].startswith(f"{folder}: cannot ")
    assert len(PreparedSource(tmp_path / "out").load(0).audio) == 20_000


def test_a_file_that_differs_from_its_checksum_is_not_prepared(raw: Path, tmp_path: Path) -> None:
    files = sorted([*raw.glob("VideoFlash/*.flv"), *raw.glob("AudioWAV/*.wav")])
    rows = [
        f"{path.relative_to(raw).as_posix()},{hashlib.sha256(path.read_bytes()).hexdigest()},1"
        for path in files
    ]
    table = tmp_path / "sha256.csv"
    table.write_text("\n".join(["path,sha256,bytes", *rows]))
    assert outcomes(prepare_cremad(raw, tmp_path / "good", checksums=table, size=32, workers=1).counts) == {
        "prepared": 6,
        "missing": 1,
    }

    sound = raw / "AudioWAV" / f"{IDS[1]}.wav"
    content = bytearray(sound.read_bytes())
    content[1000] ^= 1  # still a perfectly decodable file
    sound.write_bytes(content)
    for out in ("good", "new"):  # also where it was prepared before
        report = prepare_cremad(raw, tmp_path / out, checksums=table, size=32, workers=1)
        assert report.counts["checksum mismatch"] == 1
        assert report.bad[0].clip_id == IDS[1]
        assert report.bad[0].reason.startswith(f"{sound}: differs from the original: download")
        assert IDS[1] not in [clip.clip_id for clip in PreparedSource(tmp_path / out).index]

    table.write_text("\n".join(["path,sha256,bytes", *rows[:-1]]))
    report = prepare_cremad(raw, tmp_path / "short", checksums=table, size=32, workers=1)
    assert "has no checksum: add it to the table" in report.bad[-2].reason


def test_an_interrupted_run_is_resumed(raw: Path, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int, _skipped: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare_cremad(raw, out, size=32, workers=1, progress=interrupt)
    finished = {path.name: path.stat().st_mtime_ns for path in (out / "clips").iterdir()}
    assert sorted(finished) == sorted(f"{clip_id}.npz" for clip_id in IDS[:2])
    with pytest.raises(DataError, match="holds no finished preparation: run 'fedstill data prepare'"):
        PreparedSource(out)

    (out / "clips" / ".1001_DFA_SAD_XX.npz.1.draft").write_bytes(b"half")  # what kill -9 leaves
    report = prepare_cremad(raw, out, size=32, workers=1)
    assert outcomes(report.counts) == {"prepared": 4, "reused": 2, "missing": 1}
    assert all((out / "clips" / name).stat().st_mtime_ns == stamp for name, stamp in finished.items())
    assert len(list((out / "clips").iterdir())) == len(PreparedSource(out).index) == 6


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_and_leaves_no_half_file(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    ids = [f"{actor}_DFA_ANG_XX" for actor in range(1001, 1201)]
    video = write_video(raw / "VideoFlash" / f"{ids[0]}.flv", frames=10)
    for clip_id in ids[1:]:
        video.with_name(f"{clip_id}.flv").hardlink_to(video)
    write_split(raw / "split.csv", ids)
    program = (
        "import sys; from pathlib import Path; from fedstill.datasets.audiovisual.prepare import prepare_cremad\n"
        "if __name__ == '__main__': prepare_cremad(Path(sys.argv[1]), Path(sys.argv[2]), size=512, workers=2)"
    )
    script = tmp_path / "prepare.py"
    script.write_text(program)
    terminal = subprocess.Popen(
        [sys.executable, script, raw, out],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("clips/*.npz")):
        assert terminal.poll() is None, terminal.stderr.read() if terminal.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(terminal.pid, signal.SIGINT)  # what a terminal does: to the parent and to its workers
    _, errors = terminal.communicate(timeout=30)
    assert errors.count("KeyboardInterrupt") == 1, errors
    names = [path.name for path in (out / "clips").iterdir()]
    assert 0 < len(names) < len(ids)
    assert not [name for name in names if not name.endswith(".npz") or name.startswith(".")]
    assert not (out / "index.csv").exists()
    for name in names:
        with np.load(out / "clips" / name) as arrays:
            assert arrays["frames"].shape == (10, 512, 512, 3)


def test_processes_give_the_same_as_one(raw: Path, tmp_path: Path) -> None:
    cut(raw / "VideoFlash" / f"{IDS[3]}.flv", 0.6)
    one, two = (prepare_cremad(raw, tmp_path / str(count), size=32, workers=count) for count in (1, 2))
    assert one.clips == two.clips
    first, second = PreparedSource(tmp_path / "1"), PreparedSource(tmp_path / "2")
    assert first.index == second.index
    for position in range(len(first.index)):
        np.testing.assert_array_equal(first.load(position).frames, second.load(position).frames)
        np.testing.assert_array_equal(first.load(position).audio, second.load(position).audio)


def test_other_settings_need_another_folder(raw: Path, tmp_path: Path) -> None:
    prepare_cremad(raw, tmp_path / "out", size=32, workers=1)
    with pytest.raises(DataError, match="was prepared with size 32, not 64: choose another folder or delete"):
        prepare_cremad(raw, tmp_path / "out", size=64, workers=1)


def test_a_wrong_class_list_is_refused(raw: Path, tmp_path: Path) -> None:
    prepare_cremad(raw, tmp_path / "out", size=32, workers=1)
    assert PreparedSource(tmp_path / "out", EMOTIONS, "mine").name == "mine"
    with pytest.raises(
        DataError, match=r"has the classes neutral happy .* not angry disgust .*: use"
    ) as refused:
        PreparedSource(tmp_path / "out", sorted(EMOTIONS))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("1001_DFA_ANG_XX,SUR,public", "line 2: label 'SUR' is not a class: use NEU HAP SAD FEA DIS ANG"),
        ("1001_DFA_ANG_XX,anger,public", "line 2: label 'anger' is not a class"),
        ("1001_DFA_ANG_XX,ANG,test", "line 2: split is 'test': write public or private"),
        ("../1001_DFA_ANG_XX,ANG,public", "line 2: clip_id .* is not like 1001_DFA_ANG_XX"),
        ("1001_DFA_ANG_XX,ANG,public\n1001_DFA_ANG_XX,ANG,private", "line 3: .* is listed twice"),
        ("", "lists no clips"),
    ],
)
def test_a_wrong_split_list_is_refused(tmp_path: Path, row: str, complaint: str) -> None:
    path = tmp_path / "split.csv"
    path.write_text(f"clip_id,label,split\n{row}\n")
    with pytest.raises(DataError, match=complaint) as refused:
        read_split(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="VideoFlash: no such folder: give the folder that holds VideoFlash"):
        prepare_cremad(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="AVE: no such folder: give the folder that holds Annotations"):
        prepare_ave(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checking_finds_silence_damage_and_empty_classes(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_sound(raw / "AudioWAV" / f"{IDS[0]}.wav", level=0.0)
    prepare_cremad(raw, out, size=32, workers=1)
    cut(out / "clips" / f"{IDS[1]}.npz", 0.6)
    (out / "clips" / f"{IDS[2]}.npz").unlink()
    problems = check_dataset(PreparedSource(out)).problems
    empty = [f"class {EMOTIONS[label]!r} has no public clip: add" for label in (0, 2, 4)]
    expected = [
        *empty,
        f"clip {IDS[0]}: its sound is silence: record it again",
        f"clip {IDS[1]}: {out / 'clips' / IDS[1]}.npz: is damaged: delete it and prepare",
        f"clip {IDS[2]}: {out / 'clips' / IDS[2]}.npz: no such file: prepare",
    ]
    assert len(problems) == len(expected)
    assert all(found.startswith(start) for found, start in zip(problems, expected, strict=True))


AVE_ROWS = {
    "train": ["Dog bark&-x_1&good&0&1", "Bell&both&good&1&2"],
    "val": ["Bell&absent&good&0&2"],
    "test": ["Bell&both&good&0&2", "Dog bark&b-_2&good&1&2"],
}
FORGOTTEN = "Bell&zero&good&0&0"


@pytest.fixture
def raw_ave(tmp_path: Path) -> Path:
    root = tmp_path / "ave"
    root.mkdir()
    for name, rows in AVE_ROWS.items():
        (root / f"{name}Set.txt").write_text("\n".join(rows) + "\n")
    rows = [row for rows in AVE_ROWS.values() for row in rows]
    header = "Category&VideoID&Quality&StartTime&EndTime"
    (root / "Annotations.txt").write_text("\n".join([header, *rows, FORGOTTEN]) + "\n\n")
    for video_id in ("-x_1", "both", "b-_2", "zero"):
        write_video(root / "AVE" / f"{video_id}.mp4", frames=20)
    return root


def test_ave_from_end_to_end(raw_ave: Path, tmp_path: Path) -> None:
    report = prepare_ave(raw_ave, tmp_path / "out", size=32, workers=1)
    assert outcomes(report.counts) == {"prepared": 4, "missing": 1, "dropped": 1}
    assert [(clip.clip_id, clip.outcome) for clip in report.bad] == [
        ("absent", "missing"),
        ("zero", "dropped"),
    ]
    source = PreparedSource(tmp_path / "out")
    assert (source.name, source.class_names) == ("ave", ("Bell", "Dog bark"))
    assert source.index == (
        ClipInfo("-x_1", "public", "-x_1", 1),
        ClipInfo("both", "public", "both", 0),
        ClipInfo("both~2", "private", "both", 0),
        ClipInfo("b-_2", "private", "b-_2", 1),
    )
    start, second_half, whole = (source.load(position) for position in (0, 1, 2))
    assert len(start.audio) == 16_000
    assert len(whole.audio) == pytest.approx(32_000, abs=1000)
    assert start.frames[-1].mean() < second_half.frames[0].mean()
    np.testing.assert_array_equal(second_half.audio, whole.audio[16_000:][: len(second_half.audio)])


def test_ave_full_length_and_without_repeats(raw_ave: Path, tmp_path: Path) -> None:
    prepare_ave(raw_ave, tmp_path / "out", segment="full", deduplicate=True, size=32, workers=1)
    source = PreparedSource(tmp_path / "out")
    assert [(clip.clip_id, clip.split) for clip in source.index] == [
        ("-x_1", "public"),
        ("both", "private"),
        ("b-_2", "private"),
    ]
    assert len(source.load(0).audio) == pytest.approx(32_000, abs=1000)
    with pytest.raises(DataError, match="was prepared with segment full, not event"):
        prepare_ave(raw_ave, tmp_path / "out", deduplicate=True, size=32, workers=1)
    # Without deduplication "both" is another event: the finished clip of that name must not be taken for it.
    with pytest.raises(DataError, match="was prepared with deduplicate True, not False"):
        prepare_ave(raw_ave, tmp_path / "out", segment="full", size=32, workers=1)


@pytest.mark.parametrize(
    ("name", "row", "complaint"),
    [
        ("trainSet", "Bell&new&good&0&2", "new is in a list but not so in Annotations.txt"),
        ("Annotations", "Bell&x&good&0", "Annotations.txt, line 9: is .*: write class&id&quality&start&end"),
        ("Annotations", "Bell&x&good&5&2", "line 9: start 5 and end 2 are no stretch of time"),
        ("Annotations", "Bell&../x&good&0&2", r"line 9: '\.\./x' is no video id"),
        ("Annotations", "Cat&x&good&0&2", "testSet.txt: has no row of class Cat"),
    ],
)
def test_wrong_ave_lists_are_refused(raw_ave: Path, name: str, row: str, complaint: str) -> None:
    with (raw_ave / f"{name}.txt").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(DataError, match=complaint) as refused:
        ave.read_events(raw_ave)
    assert "\n" not in str(refused.value)


@pytest.mark.data
def test_real_crema_d_sample(data_dir: Path, tmp_path: Path) -> None:
    sample, root = data_dir / "cremad_sample", tmp_path / "root"
    root.mkdir()
    (root / "VideoFlash").symlink_to(sample / "VideoFlash")
    report = prepare_cremad(
        root, tmp_path / "out", split_csv=sample / "split.csv", checksums=sample / "lfs_sha256.csv", workers=1
    )
    assert outcomes(report.counts) == {"prepared": 6, "missing": 7436}
    source = PreparedSource(tmp_path / "out", EMOTIONS)
    assert sorted(clip.clip_id for clip in source.index) == sorted(IDS)
    for position, info in enumerate(source.index):
        clip = source.load(position)
        assert clip.frames.shape == (10, 224, 224, 3)
        assert 1.8 < len(clip.audio) / 16_000 < 2.5
        assert info.label == CODES.index(info.clip_id[9:12])
    assert all("has no public clip" in problem for problem in check_dataset(source).problems)


def test_frames_are_cut_to_the_face_and_clips_without_one_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    white_squares_are_faces(monkeypatch)
    for clip_id, shade in zip(IDS[:2], (255, 30), strict=True):
        picture = np.full((48, 64, 3), 30, np.uint8)
        picture[10:26, 30:46] = shade
        write_video(tmp_path / "VideoFlash" / f"{clip_id}.flv", frames=10, picture=picture)
        write_sound(tmp_path / "AudioWAV" / f"{clip_id}.wav")
    split = tmp_path / "split.csv"
    split.write_text("clip_id,label,split\n" + "".join(f"{one},{one[9:12]},public\n" for one in IDS[:2]))

    report = prepare_cremad(tmp_path, tmp_path / "out", size=22, crop="face", workers=1)
    assert report.faces == (1, 2)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["faces"] == {"found": 1, "clips": 2}
    source = PreparedSource(tmp_path / "out")
    clips = [source.load(position) for position in range(2)]
    assert [clip.face for clip in clips] == [True, False]
    assert clips[0].frames[0].mean() > 120, "the face fills half of the square"
    assert clips[1].frames[0].mean() < 60
    again = prepare_cremad(tmp_path, tmp_path / "out", size=22, crop="face", workers=1)
    assert outcomes(again.counts) == {"reused": 2}
    assert again.faces == (1, 2)

    with pytest.raises(DataError, match="was prepared with crop face, not none: choose another folder"):
        prepare_cremad(tmp_path, tmp_path / "out", size=22, workers=1)
    settings = [f"dataset.root={tmp_path / 'out'}", "frames.size=22"]
    with pytest.raises(ConfigError, match=r"was prepared with --crop face, but frames\.crop is none"):
        open_source(load_experiment("cremad", settings))
    assert len(open_source(load_experiment("cremad", [*settings, "frames.crop=face"])).index) == 2
    assert prepare_cremad(tmp_path, tmp_path / "whole", size=22, workers=1).faces is None

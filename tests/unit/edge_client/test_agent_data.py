"""A device's clips are a manifest, the folder with one, or a prepared folder; all else is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bad_files import KINDS, add_bad_clips, write_good_clips
from helpers.media import write_sound, write_video
from helpers.runs import prepared_run

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip
from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_from_json, format_to_json
from fedstill.datasets.audiovisual.manifest import ManifestSource
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.files.faults import FAULTS
from fedstill.edge_client.folder import BAD_CLIPS_FILE, CLIPS_FILE, DECODING_FILE, FORMAT_FILE
from fedstill.edge_client.node.agent_data import own_clips, use_clips
from fedstill.edge_client.node.bad_clips import bad_clips_of
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy, write_policy
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.protos.messages import faults_in


def write_manifest(folder: Path) -> Path:
    """One unlabelled clip of the device's own."""
    write_video(folder / "walk.mp4")
    manifest = folder / "manifest.csv"
    manifest.write_text("clip_id,split,speaker,label,audio,frames\nwalk,private,me,,walk.mp4,walk.mp4\n")
    return manifest


def noted(folder: Path) -> Path:
    return Path(json.loads((folder / CLIPS_FILE).read_text())["data"])


def test_a_folder_with_a_manifest_is_as_good_as_the_manifest(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "clips")
    for data in (manifest, manifest.parent):
        use_clips(data, tmp_path / "state")
        assert noted(tmp_path / "state") == manifest.resolve()


def test_a_prepared_folder_is_used_as_it_is(tmp_path: Path) -> None:
    store = prepared_run(tmp_path) / "devices" / "0" / "data"
    use_clips(store, tmp_path / "state")
    assert noted(tmp_path / "state") == store.resolve()
    shutil.copy(write_manifest(tmp_path / "clips"), store)
    use_clips(store, tmp_path / "state")
    assert noted(tmp_path / "state") == store.resolve(), "a prepared folder stays one, whatever lies in it"


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    for data in (tmp_path / "absent", tmp_path / "absent.csv"):
        with pytest.raises(DataError, match=r"no manifest\.csv and no prepared folder"):
            use_clips(data, tmp_path / "state")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        use_clips(tmp_path / "empty", tmp_path / "state")


@pytest.mark.parametrize("steps", [None, 12])
def test_features_get_the_length_that_the_cloud_says(tmp_path: Path, steps: int | None) -> None:
    write_video(tmp_path / "walk.mp4")
    np.save(tmp_path / "walk.npy", np.ones((4, 9), np.float32))
    manifest = tmp_path / "clips" / "manifest.csv"
    manifest.parent.mkdir()
    manifest.write_text(
        "clip_id,split,speaker,label,audio,frames\nwalk,private,me,,../walk.npy,../walk.mp4\n"
    )
    state = tmp_path / "state"
    with pytest.raises(DataError, match="allow-outside"):
        use_clips(manifest, state)
    use_clips(manifest, state, allow_outside=True)
    (state / FORMAT_FILE).write_text(format_to_json(ClipFormat(("sad",), AudioSpec(), FrameSpec(), steps)))
    assert own_clips(state).audio.shape == (1, 4, steps or 9)


def test_a_format_of_an_older_cloud_says_nothing_of_features() -> None:
    told = json.loads(format_to_json(ClipFormat(("sad",), AudioSpec(), FrameSpec(), 5)))
    assert format_from_json(json.dumps(told)).feature_steps == 5
    for wrong in (0, "5", True):
        with pytest.raises(DataError, match="feature_steps"):
            format_from_json(json.dumps({**told, "feature_steps": wrong}))
    del told["feature_steps"]
    assert format_from_json(json.dumps(told)).feature_steps is None


def introduced(data: Path, folder: Path) -> None:
    """Start an agent with these clips; the coordinator says which classes and format it has."""
    use_clips(data, folder)
    spec = ClipFormat(("calm", "glad"), AudioSpec(seconds=0.6, mel_bins=8), FrameSpec(size=8, count=1))
    (folder / FORMAT_FILE).write_text(format_to_json(spec))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The clips that have been decoded, one entry for each time."""
    found: list[str] = []
    load = ManifestSource.load

    def counting(self: ManifestSource, position: int) -> Clip:
        found.append(self.index[position].clip_id)
        return load(self, position)

    monkeypatch.setattr(ManifestSource, "load", counting)
    return found


def test_good_clips_are_used_and_bad_ones_noted_with_their_reason(tmp_path: Path, decoded: list[str]) -> None:
    manifest = write_good_clips(tmp_path / "clips", 3, "calm")
    faults = add_bad_clips(manifest)
    with manifest.open("a") as file:
        file.write("bad class,private,me,sad,fine.wav,fine.png\nbad row,secret,me,,fine.wav,fine.png\n")
    introduced(manifest, tmp_path / "state")
    folder = tmp_path / "state"
    store = own_clips(folder)
    assert [clip.clip_id for clip in store.info] == ["good0", "good1", "good2"]
    assert store.profiles is not None
    assert len(store.audio) == len(store.frames) == len(store.profiles) == 3
    assert {clip.clip_id: clip.fault for clip in bad_clips_of(folder)} == {
        **faults, "bad class": "class", "bad row": "row"
    }  # fmt: skip
    for clip in bad_clips_of(folder):
        assert "\n" not in clip.reason
        assert str(tmp_path / "clips") in clip.reason
    assert (folder / BAD_CLIPS_FILE).stat().st_mode & 0o077 == 0, "only its owner reads names"

    before, noted_at = list(decoded), (folder / BAD_CLIPS_FILE).stat().st_mtime_ns
    assert len(own_clips(folder)) == 3
    assert decoded == before, "nothing is decoded for every message"
    assert (folder / BAD_CLIPS_FILE).stat().st_mtime_ns == noted_at


def test_a_bad_clip_that_is_mended_is_used_and_others_are_tried_again_at_the_next_start(
    tmp_path: Path, decoded: list[str]
) -> None:
    manifest = write_good_clips(tmp_path / "clips", 2)
    add_bad_clips(manifest)
    folder = tmp_path / "state"
    introduced(manifest, folder)
    own_clips(folder)
    write_sound(manifest.parent / "nothing.wav")
    write_sound(manifest.parent / "gone.wav")
    assert [clip.clip_id for clip in own_clips(folder).info] == [
        "good0",
        "good1",
        "bad missing",
        "bad no samples",
    ]
    assert len(bad_clips_of(folder)) == len(KINDS) - 2

    decoded.clear()
    introduced(manifest, folder)
    assert {clip.clip_id for clip in bad_clips_of(folder)} >= {"bad empty", "bad folder"}, (
        "known at the start"
    )
    assert len(own_clips(folder)) == 4
    assert {"bad empty", "bad no media", "bad one pixel"} < set(decoded), "tried again"
    assert sorted(decoded) == sorted(set(decoded)), "each once"
    assert not {"good0", "bad missing"} & set(decoded), "and no good clip"
    assert len(bad_clips_of(folder)) == len(KINDS) - 2


def test_without_a_usable_clip_the_owner_is_told_why_and_the_coordinator_how_many(tmp_path: Path) -> None:
    manifest = write_good_clips(tmp_path / "clips", 0)
    add_bad_clips(manifest)
    folder = tmp_path / "state"
    introduced(manifest, folder)
    for _ in range(2):
        with pytest.raises(DeviceError) as refused:
            own_clips(folder)
        told = str(refused.value)
        assert told.startswith("none of this device's clips can be used: file not found (1), a folder where")
        assert not any(name in told for name in (str(tmp_path), "clips/", ".wav", "bad "))
        assert len(bad_clips_of(folder)) == len(KINDS) + 1
    (manifest.parent / "manifest.csv").write_text("clip_id\n")
    with pytest.raises(
        DeviceError, match=r"^none of this device's clips can be used: .*; its own log says why$"
    ):
        own_clips(folder)
    assert "lacks column" in bad_clips_of(folder)[-1].reason
    with pytest.raises(DataError, match="lacks column"):
        use_clips(manifest, folder)


def test_an_owner_may_keep_the_number_of_bad_clips(tmp_path: Path) -> None:
    manifest = write_good_clips(tmp_path / "clips", 1)
    add_bad_clips(manifest)
    folder = tmp_path / "state"
    introduced(manifest, folder)
    device = Device(folder, None)  # type: ignore[arg-type]
    assert len(device.store) == 1
    assert sum(faults_in(device._bad_clips()).values()) == len(KINDS)
    write_policy(folder, PrivacyPolicy(bad_clips=False))
    assert device._bad_clips() == ()


def test_a_damaged_memory_of_bad_clips_is_no_memory(tmp_path: Path) -> None:
    manifest = write_good_clips(tmp_path / "clips", 1)
    add_bad_clips(manifest)
    folder = tmp_path / "state"
    introduced(manifest, folder)
    for damaged in ("no JSON", "[]", '{"clips": [["a"]], "tried_for": ""}', '{"clips": 3, "tried_for": ""}'):
        (folder / BAD_CLIPS_FILE).write_text(damaged)
        assert bad_clips_of(folder) == ()
        assert len(own_clips(folder)) == 1
        assert len(bad_clips_of(folder)) == len(KINDS)


def test_every_kind_of_fault_has_words() -> None:
    assert {fault for fault, _ in KINDS.values()} <= set(FAULTS)
    assert all(words.isprintable() and words for words in FAULTS.values())


def message(folder: Path, *deadly: str) -> int:
    """A process that needs the clips, as for each message; it dies of the ``deadly`` ones, else it counts all."""
    load = ManifestSource.load

    def maybe_deadly(self: ManifestSource, position: int) -> Clip:
        if self.index[position].clip_id in deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, position)

    child = os.fork()
    if child == 0:
        ManifestSource.load = maybe_deadly  # type: ignore[method-assign]
        os._exit(len(own_clips(folder).labels))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


KILLED = -signal.SIGKILL


def test_a_file_that_kills_its_decoder_is_left_out_after_two_deaths(tmp_path: Path) -> None:
    data, folder = write_good_clips(tmp_path / "clips", 4), tmp_path / "state"
    introduced(data, folder)
    names = [info.clip_id for info in ManifestSource(data).index]
    assert [message(folder, names[1]) for _ in range(3)] == [KILLED, KILLED, 3]
    (bad,) = bad_clips_of(folder)
    assert (bad.clip_id, bad.fault) == (names[1], "undecodable")
    assert "convert or remove it" in bad.reason
    assert message(folder, names[1]) == 3, "it is remembered"
    assert not (folder / DECODING_FILE).exists()


def test_a_clip_that_happened_to_be_decoded_when_the_power_went_is_not_blamed(tmp_path: Path) -> None:
    data, folder = write_good_clips(tmp_path / "clips", 4), tmp_path / "state"
    introduced(data, folder)
    names = [info.clip_id for info in ManifestSource(data).index]
    for name in names[:3]:  # three times, at three places
        assert message(folder, name) == KILLED
    assert message(folder) == 4
    assert bad_clips_of(folder) == ()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"clip": "a"}',
        '{"clip": "a", "look": [], "deaths": 1e999}',
        '{"clip": "a", "look": [["x", 1]], "deaths": 9}',
    ],
)
def test_a_damaged_note_of_what_is_decoded_says_nothing(tmp_path: Path, content: str) -> None:
    data, folder = write_good_clips(tmp_path / "clips", 2), tmp_path / "state"
    introduced(data, folder)
    (folder / DECODING_FILE).write_text(content)
    assert len(own_clips(folder).labels) == 2


def test_a_note_that_cannot_be_written_makes_no_clip_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = write_good_clips(tmp_path / "clips", 2), tmp_path / "state"
    introduced(data, folder)
    write = Path.write_text

    def full(self: Path, *arguments: Any, **options: Any) -> int:
        if self.name == DECODING_FILE:
            raise OSError(28, "No space left on device")
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert len(own_clips(folder).labels) == 2
    assert bad_clips_of(folder) == ()

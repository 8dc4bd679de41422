"""A device's clips are a manifest, the folder with one, or a prepared folder; all else is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.media import write_video
from helpers.runs import prepared_run

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_from_json, format_to_json
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.edge_client.folder import CLIPS_FILE, FORMAT_FILE
from fedstill.edge_client.node.agent_data import own_clips, use_clips


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

"""A device's clips are a manifest, the folder with one, or a prepared folder; all else is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.media import write_video
from helpers.runs import prepared_run

from fedstill.common.errors import DataError
from fedstill.edge_client.folder import CLIPS_FILE
from fedstill.edge_client.node.agent_data import use_clips


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

"""Image tasks: nothing of the test set in training, even classes, one clear line for what is wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.image_folders import made_folder

from fedstill.datasets.audiovisual.clip import EMOTIONS, DataError
from fedstill.datasets.images.image_tasks import KNOWN_TASKS, ImageTask, open_image_task, open_known_task
from fedstill.models.vit.preprocess import image_batch, image_tensor


def shades(images) -> set[int]:
    return {int(image[0, 0, 0]) for image in images.images}


@pytest.fixture
def task(tmp_path: Path) -> ImageTask:
    return open_image_task("pets", made_folder(tmp_path))


def test_the_three_splits_share_no_image_and_leave_none_out(task: ImageTask) -> None:
    train, val, test = (task.load(split, seed=3) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (16, 4, 8)
    assert np.bincount(val.labels).tolist() == [2, 2]
    assert len(shades(train) | shades(val) | shades(test)) == 28
    assert shades(task.load("val", seed=4)) != shades(val)
    assert shades(task.load("val", seed=3)) == shades(val)
    assert shades(task.load("test", seed=4)) == shades(test)


def test_a_limit_takes_equally_many_of_each_class(task: ImageTask) -> None:
    some = task.load("train", limit=6, seed=1)
    assert np.bincount(some.labels).tolist() == [3, 3]
    assert shades(some) <= shades(task.load("train", seed=1))
    assert len(task.load("train", limit=1000)) == 16
    assert sorted(np.bincount(task.load("train", limit=7).labels).tolist()) == [3, 4]


def test_a_zip_reads_like_its_folder(task: ImageTask, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for file in [*(tmp_path / "train").rglob("*.png"), *(tmp_path / "test").rglob("*.png")]:
            archive.write(file, file.relative_to(tmp_path).as_posix())
    packed = open_image_task("pets", tmp_path / "pets.zip").load("train", limit=5, seed=2)
    plain = task.load("train", limit=5, seed=2)
    np.testing.assert_array_equal(np.stack(packed.images), np.stack(plain.images))
    np.testing.assert_array_equal(packed.labels, plain.labels)


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or zip: check the path"):
        open_image_task("x", tmp_path / "nothing")
    with pytest.raises(DataError, match="is not known: use cifar10, tinyimagenet100"):
        open_known_task("cifar11", tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK but no zip")
    with pytest.raises(DataError, match="is not a readable zip"):
        open_image_task("x", tmp_path / "broken.zip")
    with pytest.raises(DataError, match="has no images in train/CLASS/"):
        open_image_task("x", tmp_path)
    with pytest.raises(DataError, match="has one class, cat"):
        open_image_task("x", made_folder(tmp_path / "one", classes=("cat",)))
    odd = made_folder(tmp_path / "odd")
    (odd / "test" / "cat").rename(odd / "test" / "cow")
    with pytest.raises(DataError, match="test/cow is not a class of this task"):
        open_image_task("x", odd)
    cut = made_folder(tmp_path / "cut")
    (cut / "train" / "cat" / "3.png").write_bytes(b"\x89PNG cut off")
    damaged = open_image_task("x", cut)
    with pytest.raises(DataError, match=r"3\.png: cannot decode this image"):
        [damaged.load(split) for split in ("train", "val")]
    few = made_folder(tmp_path / "few", per_class=1)
    with pytest.raises(DataError, match="has no images to val on"):
        open_image_task("x", few).load("val")
    with pytest.raises(DataError, match="limit: 0 images"):
        open_image_task("x", few).load("train", limit=0)


def test_network_input_is_the_central_square_between_minus_one_and_one() -> None:
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 2:6] = 255
    tensor = image_tensor(picture, 16)
    assert tensor.shape == (3, 16, 16)
    np.testing.assert_allclose(tensor, 1, atol=1e-6)
    assert float(image_tensor(np.zeros((5, 5, 3), np.uint8), 5).max()) == -1
    assert image_batch([picture, picture[:, :4]], 8).shape == (2, 3, 8, 8)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "classes", "counts"),
    [
        ("cifar10", 10, (8000, 2000)),
        ("tinyimagenet100", 100, (8000, 2000)),
        ("mnist", 10, (3000, 1000)),
        ("emotion_faces", 6, (3436, 660)),
    ],
)
def test_the_real_tasks(data_dir: Path, name: str, classes: int, counts: tuple[int, int]) -> None:
    if not (data_dir / KNOWN_TASKS[name].path).exists():
        pytest.skip(f"{KNOWN_TASKS[name].path} is not there")
    task = open_known_task(name, data_dir / KNOWN_TASKS[name].path)
    assert (len(task.class_names), task.counts["train"], task.counts["test"]) == (classes, *counts)
    some = task.load("test", limit=2 * classes)
    assert set(some.labels) == set(range(classes))
    assert {image.shape[2] for image in some.images} == {3}
    if name == "emotion_faces":
        assert task.class_names == EMOTIONS

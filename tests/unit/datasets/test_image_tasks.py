"""Image tasks: nothing of the test set in training, even classes, one clear line for what is wrong."""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.image_folders import made_folder
from PIL import Image

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import EMOTIONS
from fedstill.datasets.images.image_tasks import KNOWN_TASKS, ImageTask, open_image_task, open_known_task
from fedstill.models.vit.preprocess import image_batch, image_tensor
from fedstill.models.vit.preprocess_settings import PLAIN


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


def zipped(folder: Path, *more: tuple[str, bytes | None]) -> Path:
    """A zip of the folder, then these entries; None repeats what is there under that name."""
    place = folder.parent / f"{folder.name}.zip"
    with zipfile.ZipFile(place, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name used twice
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder).as_posix())
        for name, content in more:
            archive.writestr(name, (folder / name).read_bytes() if content is None else content)
    return place


def counts(task: ImageTask) -> tuple[dict[str, int], dict[str, int]]:
    return task.per_class(task.train_files), task.per_class(task.test_files)


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_of_all_endings_in_folders_below_their_class_are_read(tmp_path: Path, packed: bool) -> None:
    folder = made_folder(tmp_path / "pets")
    picture = Image.new("RGB", (6, 6), (200, 0, 0))
    puppies = folder / "train" / "dog" / "puppies" / "brown"
    puppies.mkdir(parents=True)
    extra = {}
    for ending, form in (
        *(
            ("tif", "TIFF"),
            ("tiff", "TIFF"),
            ("ppm", "PPM"),
            ("jfif", "JPEG"),
            ("gif", "GIF"),
            ("PNG", "PNG"),
        ),
        *(("avif", "AVIF"), ("scan", "PNG")),  # the last one only by its content
    ):
        picture.save(puppies / f"{ending}.{ending}", form)
        extra[f"train/dog/puppies/brown/{ending}.{ending}"] = (puppies / f"{ending}.{ending}").read_bytes()
    place = zipped(folder, *((name, data) for name, data in extra.items() if not name.endswith(".PNG")))
    if packed:
        with zipfile.ZipFile(place, "a") as archive:
            archive.writestr("train/dog/puppies/brown/PNG.PNG", extra["train/dog/puppies/brown/PNG.PNG"])
    task = open_image_task("pets", place if packed else folder)
    assert counts(task) == ({"cat": 10, "dog": 18}, {"cat": 4, "dog": 4})
    assert task.left_out == ()
    assert len(task.load("train")) + len(task.load("val")) == 28


def test_what_is_left_out_is_counted_and_system_files_are_not(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "pets")
    place = zipped(
        folder,
        *(("train/.DS_Store", b"x"), ("train/cat/Thumbs.db", b"x"), ("train/cat/._0.png", b"\0\5\x16\7")),
        *(("__MACOSX/train/cat/._0.png", b"x"), ("train/cat/.ipynb_checkpoints/0-checkpoint.png", b"x")),
        *(
            ("train/cat/notes.txt", b"a"),
            ("train/cat/more.txt", b"b"),
            ("train/readme", b"c"),
            ("val/cat/0.png", b""),
        ),
        *(("train/cat/.hidden.png", b"d"), ("LICENSE", b"e")),
    )
    task = open_image_task("pets", place)
    assert counts(task) == ({"cat": 10, "dog": 10}, {"cat": 4, "dog": 4})
    assert set(task.left_out) == {
        "1 x files without an ending: not below train or test",
        "1 x train/files without an ending: in no class's folder",
        "2 x train/cat/*.txt: no picture",
        "1 x train/cat/*.png: hidden",
        "1 x val/cat/*.png: not below train or test",
    }


def test_damaged_names_in_a_zip_are_one_line(tmp_path: Path) -> None:
    made_folder(tmp_path / "pets")
    path = zipped(tmp_path / "pets", ("train/cat/\n.png", b"no picture"))
    with pytest.raises(DataError, match=r"train/cat/\\n\.png: cannot decode this image") as caught:
        open_image_task("pets", path).load("train")
    assert len(str(caught.value).splitlines()) == 1
    path = zipped(tmp_path / "pets", ("train/cat/\u00e9\u00e9.png", b"no picture"))
    content = path.read_bytes()
    place = content.index(
        "\u00e9\u00e9".encode()
    )  # beside the picture; the list at the end keeps the right name
    path.write_bytes(content[:place] + b"\xe8\xe8\xe8\xe8" + content[place + 4 :])
    with pytest.raises(DataError, match=r"\u00e9\u00e9\.png: cannot be read"):
        open_image_task("pets", path).load("train")


def test_an_entry_that_is_twice_in_a_zip_counts_once(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "pets")
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.png")]
    task = open_image_task("pets", zipped(folder, *((name, None) for name in names)))
    assert counts(task) == ({"cat": 10, "dog": 10}, {"cat": 4, "dog": 4})
    assert task.left_out == ("28 entries of the zip: there twice, the last one counts",)
    assert not shades(task.load("train")) & shades(task.load("val"))


@pytest.mark.parametrize("packed", [False, True])
def test_the_same_picture_under_two_names_is_never_in_training_and_validation(
    tmp_path: Path, packed: bool
) -> None:
    folder = made_folder(tmp_path / "pets")
    for file in (folder / "train").rglob("*.png"):
        file.with_name(f"copy of {file.name}").write_bytes(file.read_bytes())
    task = open_image_task("pets", zipped(folder) if packed else folder)
    assert len(task.same_pictures) == 20
    for seed in range(3):
        train, val = task.load("train", seed=seed), task.load("val", seed=seed)
        assert len(train) + len(val) == 40
        assert len(val) > 0
        assert not shades(train) & shades(val)


def test_a_class_without_pictures_is_an_error(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "pets")
    for name in ("train/bird/", "train\\bird\\"):
        with pytest.raises(DataError, match="train/bird has no images: add some, or remove this class"):
            open_image_task("pets", zipped(folder, (name, b"")))
    (folder / "train" / "bird").mkdir()
    with pytest.raises(DataError, match="train/bird has no images"):
        open_image_task("pets", folder)
    (folder / "train" / "bird" / "0.txt").write_text("no picture")
    with pytest.raises(DataError, match="train/bird has no images"):
        open_image_task("pets", folder)
    Image.new("L", (6, 6), 250).save(folder / "train" / "bird" / "0.png")
    with pytest.raises(DataError, match="test/bird has no images"):
        open_image_task("pets", folder)


def test_a_folder_around_all_is_found_beside_what_a_mac_adds(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "pets")
    place = tmp_path / "mac.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("pets/", b"")
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, f"pets/{file.relative_to(folder).as_posix()}")
        archive.writestr("__MACOSX/", b"")
        archive.writestr("__MACOSX/pets/._train", b"x")
    assert counts(open_image_task("pets", place)) == ({"cat": 10, "dog": 10}, {"cat": 4, "dog": 4})


def test_names_in_odd_encodings_are_the_same_classes(tmp_path: Path) -> None:
    """NFD on disk, UTF-8 that a zip does not announce, backslashes, and a folder around everything."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    folder = made_folder(tmp_path / "pets", classes=("cat", apart))
    (folder / "test" / apart).rename(folder / "test" / composed)
    assert open_image_task("pets", folder).class_names == (composed, "cat")

    place = tmp_path / "odd.zip"
    with zipfile.ZipFile(place, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            name = f"pets\\{file.relative_to(folder)}".replace("/", "\\")
            archive.writestr(name.encode().decode("cp437"), file.read_bytes())
    task = open_image_task("pets", place)
    assert counts(task) == ({composed: 10, "cat": 10}, {composed: 4, "cat": 4})
    assert len(task.load("test")) == 8


def test_names_that_are_no_utf_8_and_links_are_followed(tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "pets")
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / os.fsdecode(b"caf\xe9"))
    (folder / "train" / "dog").rename(tmp_path / "elsewhere")
    (folder / "train" / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "up").symlink_to(folder, target_is_directory=True)
    task = open_image_task("pets", folder)
    assert counts(task) == ({"caf\u00e9": 10, "dog": 10}, {"caf\u00e9": 4, "dog": 4})
    (folder / "test" / os.fsdecode(b"caf\xe9") / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"test/caf\u00e9/0\.png: cannot decode"):
        task.load("test")


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scandir = made_folder(tmp_path / "pets"), os.scandir

    def refuse(path: str):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"a folder cannot be listed .*dog.*: check who may read it"):
        open_image_task("pets", folder)


def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    place = zipped(made_folder(tmp_path / "pets"))
    content = bytearray(place.read_bytes())
    with zipfile.ZipFile(place) as archive:
        info = archive.getinfo("test/dog/1.png")
    content[info.header_offset + 60] ^= 255
    place.write_bytes(content)
    with pytest.raises(DataError, match=r"test/dog/1\.png: cannot be read"):
        open_image_task("pets", place).load("test")


def test_an_entry_that_unpacks_to_gigabytes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = zipped(made_folder(tmp_path / "pets"), ("test/dog/9.png", b"\0" * 5000))
    monkeypatch.setattr("fedstill.datasets.images.listing.MOST_BYTES", 4000)
    with pytest.raises(DataError, match=r"test/dog/9\.png: cannot be read \(5000 bytes are more than 4000\)"):
        open_image_task("pets", place).load("test")


def test_network_input_is_the_central_square_between_minus_one_and_one() -> None:
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 2:6] = 255
    tensor = image_tensor(picture, 16, PLAIN)
    assert tensor.shape == (3, 16, 16)
    np.testing.assert_allclose(tensor, 1, atol=1e-6)
    assert float(image_tensor(np.zeros((5, 5, 3), np.uint8), 5, PLAIN).max()) == -1
    assert image_batch([picture, picture[:, :4]], 8, PLAIN).shape == (2, 3, 8, 8)


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

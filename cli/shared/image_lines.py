"""What an image task was made from, for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedstill.datasets.images.image_tasks import ImageTask

LEFT_OUT_SHOWN = 20
SAME_SHOWN = 5


def images_lines(task: ImageTask) -> list[str]:
    """What the task was made from: images per split and class, and what was left out."""
    from fedstill.datasets.files.class_names import look_alikes, look_alikes_line
    from fedstill.datasets.files.file_names import readable

    lines = [
        f"{split}: {len(files)} images, "
        + ", ".join(f"{name} {count}" for name, count in task.per_class(files).items())
        for split, files in (("train and validation", task.train_files), ("test", task.test_files))
    ]
    lines.append(f"left out: {task.left_out_files} files in all")
    lines += [f"left out: {line}" for line in task.left_out[:LEFT_OUT_SHOWN]]
    if len(task.left_out) > LEFT_OUT_SHOWN:
        lines.append(f"left out: {len(task.left_out) - LEFT_OUT_SHOWN} more kinds of files")
    lines += [
        f"the same picture: {', '.join(map(readable, group))}" for group in task.same_pictures[:SAME_SHOWN]
    ]
    if len(task.same_pictures) > SAME_SHOWN:
        lines.append(f"the same picture: {len(task.same_pictures) - SAME_SHOWN} more groups")
    return lines + [look_alikes_line(group) for group in look_alikes(task.class_names)]

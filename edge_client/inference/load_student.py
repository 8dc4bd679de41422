"""A student from wherever one lies: an exported folder, a device's state folder, a run directory, a checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedstill.common.errors import UserError
from fedstill.common.export_manifest import DESCRIPTION
from fedstill.common.run_layout import EXPERIMENT_FILE, personal_students, student_name
from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_from_json
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.edge_client.folder import FORMAT_FILE, SHELF_FOLDER
from fedstill.edge_client.inference.clip_classifier import ClipClassifier, StrPath
from fedstill.edge_client.students.own_statistics import student_in_use
from fedstill.edge_client.students.pointer import POINTER

EXTRAS = {"torch": "full", "onnxruntime": "edge"}
"""Which extra brings what a student needs."""


class StudentError(UserError):
    """There is no usable student where one was looked for; one line that says what to do."""


def load_student(
    path: StrPath,
    *,
    client: int = 0,
    seed: int = 0,
    scenario: str = "latency_insensitive",
    int8: bool = False,
) -> ClipClassifier:
    """Load a trained student, whatever kind of folder it lies in.

    Args:
        path: one of

            - a folder of ``fedstill export`` (needs onnxruntime, no torch);
            - the ``--state`` folder of ``fedstill agent``: the student that this device uses now;
            - a run directory of ``fedstill simulate``, or the ``--state`` folder of a coordinator: the student that
              was personalised for ``client`` (needs torch);
            - a checkpoint without suffix, such as ``RUN/seed0/all_distill`` (needs torch).
        client: of a run: which device's student, counted from 0.
        seed: of a run: which of its seeds.
        scenario: of a run: ``latency_insensitive`` or ``latency_sensitive``.
        int8: of an export: run its int8 encoders.

    Raises:
        StudentError: no student there, or one that cannot be used; one line that says what to do.
    """
    folder = Path(path)
    try:
        if (folder / DESCRIPTION).exists():
            return _exported(folder, int8)
        if (folder / SHELF_FOLDER / POINTER).exists():
            return _installed(folder)
        if (folder / EXPERIMENT_FILE).exists():
            return _checkpoint(_personal(folder, client, seed, scenario))
        if folder.with_name(f"{folder.name}.safetensors").exists():
            return _checkpoint(folder)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in EXTRAS:
            raise
        raise StudentError(
            f"{folder}: this student needs {package}: install fedstill with the extra [{EXTRAS[package]}]"
        ) from error
    except StudentError:
        raise
    except (OSError, ValueError) as error:
        raise StudentError(str(error)) from error
    raise StudentError(
        f"{folder}: holds no student: give a folder of fedstill export, the --state folder of an agent that has "
        "been personalised, a run directory, or a checkpoint without its suffix"
    )


def _exported(folder: Path, int8: bool) -> ClipClassifier:
    from fedstill.edge_client.students.runtime import ExportFolder

    export = ExportFolder.open(folder)
    return ClipClassifier(
        export.runtime(int8=int8),
        _format(export.described.class_names, export.described.audio, export.described.frames),
    )


def _installed(folder: Path) -> ClipClassifier:
    from fedstill.edge_client.node.loading import loader

    student = student_in_use(folder)
    if student is None or not (folder / FORMAT_FILE).exists():
        raise StudentError(f"{folder}: no student is installed on this device yet: let its agent run")
    load = loader(folder, one_thread=False)
    runtime = load(student.state, student.spec, student.class_names, student.version)
    return ClipClassifier(runtime, format_from_json((folder / FORMAT_FILE).read_text(encoding="utf-8")))


def _checkpoint(stem: Path) -> ClipClassifier:
    from fedstill.edge_client.students.torch_runtime import TorchRuntime
    from fedstill.models.weights.checkpoint import load_checkpoint

    net, meta = load_checkpoint(stem)
    weights = stem.with_name(f"{stem.name}.safetensors").read_bytes()
    runtime = TorchRuntime(net, meta.class_names, hashlib.sha256(weights).hexdigest())
    return ClipClassifier(runtime, _format(meta.class_names, meta.audio, meta.frames))


def _personal(run_dir: Path, client: int, seed: int, scenario: str) -> Path:
    """The checkpoint of one device. Raises StudentError naming the students that are there."""
    folder = personal_students(run_dir, seed)
    stem = folder / student_name(scenario, client)
    if not stem.with_name(f"{stem.name}.json").exists():
        found = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "none"
        raise StudentError(
            f"{run_dir}: has no personal student {stem.name} of seed {seed} (there: {found}): choose another client, "
            f"seed or scenario, finish the run, or load {run_dir / f'seed{seed}' / 'all_distill'}"
        )
    return stem


def _format(class_names: tuple[str, ...], audio: dict[str, object], frames: dict[str, object]) -> ClipFormat:
    return ClipFormat(class_names, AudioSpec(**audio), FrameSpec(**frames))  # type: ignore[arg-type]

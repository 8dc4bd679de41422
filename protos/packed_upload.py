"""An upload in one field of bytes, because Flower's record of one array costs more than all values of a summary.

What the device was asked is not repeated: the job and the class names are two digests, so the cloud unpacks an upload
with its request at hand. Layout 1, little-endian: layout, 1 byte; digest of the job, 8; digest of the class names, 8;
rows, 4; parts, 1; then the counts, 4 bytes each, the probabilities row by row, the confidences and the card. A share
is a multiple of 2**-23 in 3 bytes, so it is off by 2**-24 = 6e-8 at most: float32 is no finer near 1. If the request
says that coarse rows are enough, those of ``coarse_rows`` take 1 byte a share, and come back exactly.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture_card import CARD_BYTES
from fedstill.models.audiovisual.confidence import CONFIDENCE_BINS
from fedstill.protos.messages import Job, PrototypeRequest, PrototypeUpload, WireError

UPLOAD_LAYOUT = 1
CONFIDENCE_PART, CARD_PART = 1, 2

_HEAD = struct.Struct("<B8s8sIB")
_COUNT_BYTES, _SHARE_BYTES = 4, 3
_COARSE_STEPS = 255
"""Of a share, from 0 to the largest one of its row."""
_STEPS = 2**23
"""Of a share, from 0 to 1; the bytes reach just below 2, so that a sum slightly above 1 stays what it is."""


def coarse_rows(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows that sum to 1, float32 (k, classes), each share rounded to 1 / 255 of the largest one of its row."""
    return _from_coarse(_coarse(rows))


def pack_upload(upload: PrototypeUpload, coarse: bool = False) -> bytes:
    """The bytes of an upload; see the top of the file.

    Args:
        coarse: as the request says.
    """
    parts = CONFIDENCE_PART * bool(len(upload.confidence)) | CARD_PART * bool(len(upload.card))
    job, classes = _digest_of_job(upload.job), _digest(upload.class_names)
    return b"".join(
        [
            _HEAD.pack(UPLOAD_LAYOUT, job, classes, len(upload.counts), parts),
            upload.counts.astype("<u4").tobytes(),
            _coarse(upload.probabilities).tobytes() if coarse else _packed_shares(upload.probabilities),
            _packed_shares(upload.confidence),
            upload.card.tobytes(),
        ]
    )


def unpack_upload(data: bytes, asked: PrototypeRequest) -> PrototypeUpload:
    """The answer to ``asked``. Raises WireError naming what does not fit."""
    if data[:1] and data[0] != UPLOAD_LAYOUT:
        raise WireError(f"upload: has layout {data[0]}, and {UPLOAD_LAYOUT} is known: update the older side")
    if len(data) < _HEAD.size:
        raise WireError(f"upload: {len(data)} bytes are too few")
    _, job, classes, rows, parts = _HEAD.unpack_from(data)
    names = asked.student.class_names
    if job != _digest_of_job(asked.job):
        raise WireError("job: answers another question than it was asked")
    if classes != _digest(names):
        raise WireError(f"class_names: other ones than {list(names)}, or in another order")
    if parts & ~(CONFIDENCE_PART | CARD_PART):
        raise WireError(f"upload: has unknown parts {parts:#x}")
    sizes = (
        _COUNT_BYTES * rows,
        (1 if asked.coarse else _SHARE_BYTES) * rows * len(names),
        _SHARE_BYTES * CONFIDENCE_BINS if parts & CONFIDENCE_PART else 0,
        CARD_BYTES if parts & CARD_PART else 0,
    )
    if len(data) != (size := _HEAD.size + sum(sizes)):
        raise WireError(f"upload: {rows} rows and its parts need {size} bytes, got {len(data)}")
    counts, probabilities, confidence, card = _split(data, sizes)
    if asked.coarse:
        shares = _from_coarse(np.frombuffer(probabilities, np.uint8).reshape(rows, len(names)))
    else:
        shares = _shares(probabilities).reshape(rows, len(names))
    return PrototypeUpload(
        asked.job,
        shares,
        np.frombuffer(counts, "<u4").astype(np.int64),
        names,
        _shares(confidence),
        np.frombuffer(card, np.uint8).copy(),
    )


def _split(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The parts behind the head, which have these sizes."""
    ends = np.cumsum([_HEAD.size, *sizes]).tolist()
    return [data[start:end] for start, end in pairwise(ends)]


def _packed_shares(values: npt.NDArray[np.float32]) -> bytes:
    steps = np.round(values.astype(np.float64).ravel() * _STEPS).astype("<u4")
    return steps.view(np.uint8).reshape(-1, 4)[:, :_SHARE_BYTES].tobytes()


def _shares(data: bytes) -> npt.NDArray[np.float32]:
    wide = np.zeros((len(data) // _SHARE_BYTES, 4), np.uint8)
    wide[:, :_SHARE_BYTES] = np.frombuffer(data, np.uint8).reshape(-1, _SHARE_BYTES)
    return (wide.view("<u4").ravel() / np.float64(_STEPS)).astype(np.float32)


def _coarse(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    wide = rows.astype(np.float64)
    largest = np.maximum(wide.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    steps: npt.NDArray[np.uint8] = np.round(np.clip(wide / largest, 0, 1) * _COARSE_STEPS).astype(np.uint8)
    return steps


def _from_coarse(steps: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    wide = steps.astype(np.float64)
    rows: npt.NDArray[np.float32] = (wide / np.maximum(wide.sum(axis=1, keepdims=True), 1)).astype(np.float32)
    return rows


def _digest_of_job(job: Job) -> bytes:
    return _digest((job.scenario, job.arm, job.seed, job.round))


def _digest(said: object) -> bytes:
    return sha256(json.dumps(said).encode()).digest()[:8]

"""An encoder graph in int8: static, symmetric weights per output channel, unsigned activations per tensor.

onnxruntime finds the ranges of the activations on public clips. Weights use seven bits: processors without VNNI
(most small ones with x86) add pairs of products in 16 bits, which eight-bit weights would overflow silently.
Only the encoders are quantised; the head and the compressors are a few thousand multiplications.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from onnx.shape_inference import infer_shapes
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from fedstill.datasets.audiovisual.store import ClipStore

CALIBRATION_CLIPS = 256
BATCH = 32


class _Clips(CalibrationDataReader):  # type: ignore[misc]
    """onnxruntime asks for one batch after the other until it gets None."""

    def __init__(self, store: ClipStore, positions: npt.NDArray[np.int64]) -> None:
        self._batches = self._read(store, positions)

    def get_next(self) -> dict[str, npt.NDArray[np.generic]] | None:
        return next(self._batches, None)

    @staticmethod
    def _read(
        store: ClipStore, positions: npt.NDArray[np.int64]
    ) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
        for start in range(0, len(positions), BATCH):
            rows = positions[start : start + BATCH]
            yield {"audio": store.audio[rows], "frames": store.frames[rows]}


def quantise_graph(graph: ModelProto, store: ClipStore) -> bytes:
    """Int8 ONNX bytes of a graph whose batch norms are folded.

    Args:
        graph: ``models.onnx_export.folded_encoder_graph``.
        store: public clips; up to ``CALIBRATION_CLIPS`` of them, evenly spread, set the ranges.
    """
    public = np.array([row for row, clip in enumerate(store.info) if clip.split == "public"], np.int64)
    count = min(CALIBRATION_CLIPS, len(public))
    chosen = public[np.linspace(0, len(public) - 1, count).round().astype(np.int64)]
    prepared = infer_shapes(graph)
    add_pre_process_metadata(prepared)  # its own preparation would do no more than folding and shapes
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "quantised.onnx"
        quantize_static(
            prepared,
            written,
            _Clips(store, chosen),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return written.read_bytes()

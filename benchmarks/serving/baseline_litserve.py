"""The plain model behind LitServe with its dynamic batching; ``serving_baselines.py`` starts it.

Arguments: state folder, weights, timeout in seconds, port.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve

from fedstill.evaluation.serving.plain_model import BATCH, BATCH_SECONDS, PlainModel


class Api(litserve.LitAPI):  # type: ignore[misc] # litserve ships no types
    """JSON in, JSON out; LitServe makes one in every worker by unpickling this one."""

    def __init__(self, state: Path, weights: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_SECONDS)
        self._state, self._weights = state, weights

    def setup(self, device: str) -> None:
        """In the worker."""
        self._model = PlainModel(self._state, self._weights)

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A batch is a list."""
        return inputs

    def predict(self, x: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer each."""
        return self._model.answer(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """And so are its answers."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(Path(sys.argv[1]), Path(sys.argv[2])), accelerator="cpu", timeout=float(sys.argv[3])
    )
    server.run(host="127.0.0.1", port=int(sys.argv[4]), generate_client_file=False, log_level="error")

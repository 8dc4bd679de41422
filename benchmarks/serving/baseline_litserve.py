"""The model behind LitServe with its dynamic batching; ``serving_baselines.py`` starts it.

Arguments: state folder, weights, timeout in seconds, port, token schedule, backend.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve

from fedstill.evaluation.serving.plain_model import BATCH, BATCH_SECONDS, PlainModel


class Api(litserve.LitAPI):  # type: ignore[misc] # litserve ships no types
    """JSON in, JSON out; LitServe makes one in every worker by unpickling this one."""

    def __init__(self, *model: Any) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_SECONDS)
        self._arguments = model

    def setup(self, device: str) -> None:
        """In the worker."""
        self._model = PlainModel(*self._arguments)

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
    api = Api(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[5], sys.argv[6])
    server = litserve.LitServer(api, accelerator="cpu", timeout=float(sys.argv[3]))
    server.run(host="127.0.0.1", port=int(sys.argv[4]), generate_client_file=False, log_level="error")

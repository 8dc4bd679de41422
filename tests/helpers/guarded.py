"""``fedstill serve`` as people run it: TLS, tokens, both faces; and what it answers to one query."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from fedstill.cloud_server.auth.authority import create_authority, issue_node
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from helpers.serve_process import SIZE, Serve, make_place, serving


@dataclass(frozen=True)
class Guarded:
    """A server with TLS and tokens, and an operator's credentials."""

    server: Serve
    ca_file: Path
    token: str

    @property
    def rest(self) -> str:
        return f"127.0.0.1:{self.server.rest_port}"

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Of ``cats``, by our own stub."""
        request = pb.ModelInferRequest(model_name="cats", raw_input_contents=[images.tobytes()])
        request.inputs.add(name="image", datatype="FP32", shape=images.shape)
        credentials = grpc.ssl_channel_credentials(self.ca_file.read_bytes())
        with grpc.secure_channel(self.server.target, credentials) as channel:
            metadata = (("authorization", f"Bearer {self.token}"),)
            answer = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60, metadata=metadata)
        return np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(len(images), 3)


@contextmanager
def guarded_server(folder: Path, *options: str) -> Iterator[Guarded]:
    """Ends well, without a traceback in its log."""
    place = make_place(folder)
    authority = create_authority(place.folder / "authority")
    issue_node(authority.directory, "boss")
    token = (authority.directory / "nodes" / "boss" / "token").read_text().strip()
    options = (*options, *place.profile, "--authority", str(authority.directory), "--operator", "boss")
    with serving(place, *options) as server:
        yield Guarded(server, authority.ca_file, token)
        assert server.end() == 0
        assert "Traceback" not in server.log.read_text()


def values() -> np.ndarray:
    """The two images of ``triton_ways.py`` and ``kserve_ways.py``."""
    return np.random.default_rng(7).uniform(-1, 1, (2, 3, SIZE, SIZE)).astype(np.float32)

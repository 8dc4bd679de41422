"""A cloud and a device for edge inference, small enough for a test: heads of random weights, a numpy student.

Run as a program it is the cloud: ``python made_inference.py HEADS PORT [CERTIFICATES]`` prints the port once it
serves and ends on SIGTERM.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fedstill.cloud_server.auth.tokens import issue, verify
from fedstill.cloud_server.edge_inference.heads import HeadStore, save_heads
from fedstill.cloud_server.edge_inference.inference_server import InferenceServer
from fedstill.cloud_server.edge_inference.inference_service import InferenceService
from fedstill.cloud_server.grpc.server_tls import TlsFiles
from fedstill.cloud_server.grpc.until_signalled import run_until_signalled
from fedstill.edge_client.students.runtime_api import FeatureArrays
from fedstill.models.audiovisual.compression import RATES, CompressionNet
from fedstill.models.audiovisual.encoders import EncoderSpec
from fedstill.models.audiovisual.network import AudioVisualNet, Features, NetworkSpec

CLASSES = ("calm", "loud", "sad")
WIDTH = 512
SECRET = bytes(range(32))
VERSION = hashlib.sha256(b"a student of the tests").hexdigest()
AUDIO = np.zeros((1, 4, 4), np.float32)
FRAMES = np.zeros((1, 1, 1, 4, 4), np.uint8)


def token(device: str, secret: bytes = SECRET) -> str:
    return issue(secret, device, int(time.time()) + 3600)


def made_student() -> tuple[AudioVisualNet, dict[float, CompressionNet]]:
    """A network with ``WIDTH`` features and a level per rate, always the same."""
    generator = torch.Generator().manual_seed(7)
    net = AudioVisualNet(NetworkSpec(EncoderSpec("resnet10", 2), WIDTH, len(CLASSES)), generator).eval()
    levels = {rate: CompressionNet(WIDTH, len(CLASSES), rate).eval() for rate in RATES if rate != 1}
    for level in levels.values():
        for parameter in level.parameters():
            torch.nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)
    return net, levels


def made_heads(directory: Path) -> Path:
    net, levels = made_student()
    save_heads(directory, VERSION, net, levels, CLASSES)
    return directory


class MadeRuntime:
    """A student whose features come from a seed; head and compressors are those of :func:`made_student`."""

    def __init__(self, seconds: float = 0.0, sleep: Callable[[float], object] = time.sleep) -> None:
        self.class_names: tuple[str, ...] = CLASSES
        self.version = VERSION
        self._net, self._levels = made_student()
        self._random = np.random.default_rng(3)
        self._seconds, self._sleep = seconds, sleep

    def features(self, audio: np.ndarray, frames: np.ndarray) -> FeatureArrays:
        if self._seconds:
            self._sleep(self._seconds)
        return FeatureArrays(*self._random.normal(size=(2, len(audio), WIDTH)).astype(np.float32))

    def logits(self, features: FeatureArrays) -> np.ndarray:
        with torch.inference_mode():
            answer: np.ndarray = self._net.head(Features(*map(torch.from_numpy, features))).joint.numpy()
        return answer

    def compress(self, features: FeatureArrays, rate: float) -> FeatureArrays:
        if rate == 1:
            return features
        with torch.inference_mode():
            reduced = self._levels[rate].compressor(Features(*map(torch.from_numpy, features)))
        return FeatureArrays(reduced.audio.numpy(), reduced.visual.numpy())


def made_certificates(folder: Path) -> Path:
    """``ca.crt``, and ``server.key``, ``server.crt`` signed by it for loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _certificate("test authority", authority_key, None, authority_key)
    server = _certificate("localhost", server_key, authority.subject, authority_key)
    (folder / "ca.crt").write_bytes(authority.public_bytes(Encoding.PEM))
    (folder / "server.crt").write_bytes(server.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(
        server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return folder


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name | None,
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


def made_server(heads: Path, listen: str, certificates: Path | None) -> InferenceServer:
    """With certificates: TLS and tokens; without: neither."""
    if certificates is None:
        return InferenceServer(InferenceService(HeadStore(heads), None), listen, None)
    tls = TlsFiles(certificates / "server.crt", certificates / "server.key")
    service = InferenceService(HeadStore(heads), lambda token: verify(SECRET, token, time.time()))
    return InferenceServer(service, listen, tls)


def start_cloud(
    heads: Path, certificates: Path | None, port: int = 0, log: Path | None = None
) -> tuple[subprocess.Popen[str], int]:
    """The cloud as a process of its own, and its port. End it by its pid."""
    arguments = [
        sys.executable,
        __file__,
        str(heads),
        str(port),
        *([str(certificates)] if certificates else []),
    ]
    with (log or Path(os.devnull)).open("a") as errors:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def wait_until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Poll; AssertionError where it does not become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG)
    _, where, wanted, *rest = sys.argv
    run_until_signalled(
        made_server(Path(where), f"127.0.0.1:{wanted}", Path(rest[0]) if rest else None),
        lambda found: print(found, flush=True),  # noqa: T201
    )
